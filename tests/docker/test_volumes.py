"""Volumes for containers, with a real engine: what its users do, and what they see."""

from __future__ import annotations

import pytest

from tests.docker.daemon import DRIVER, MOUNTS, Daemon
from tests.e2e.harness import until


@pytest.fixture
def daemon(tidied: Daemon) -> Daemon:
    """The machine of all tests in here."""
    return tidied


# -- making them ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../web", "a/b", ".web", "-web", "a b", "a" * 129, "a@b", "wéb", "a\nb"])
def test_a_name_that_is_none_is_refused(daemon: Daemon, name: str) -> None:
    answer = daemon.plugin("VolumeDriver.Create", {"Name": name, "Opts": {}})
    assert answer["Err"]
    assert daemon.engine.call("volume", "create", "-d", DRIVER, "--", name).status != 0
    assert daemon.json("ls") == []


@pytest.mark.slow
def test_a_volume_of_that_name_is_made_once(daemon: Daemon) -> None:
    daemon.create("web", "size=1G")
    daemon.engine.run("web:/data", sh="echo hello > /data/a")
    daemon.create("web", "size=1G")
    assert daemon.plugin("VolumeDriver.Create", {"Name": "web", "Opts": {"size": "1G"}}) == {"Err": ""}
    assert daemon.plugin("VolumeDriver.Create", {"Name": "web", "Opts": {"size": "2G"}})["Err"]
    assert daemon.engine.run("web:/data", sh="cat /data/a") == "hello"


def test_a_volume_made_by_the_command_is_one_of_docker_too(daemon: Daemon) -> None:
    daemon.fusevol("create", "web", "--size", "1G")
    assert daemon.names() == ["web"]
    assert daemon.engine.run("web:/data", sh="echo hello > /data/a; cat /data/a") == "hello"
    daemon.engine.docker("volume", "rm", "web")
    assert daemon.json("ls") == []


# -- using them -------------------------------------------------------------------------------------


def test_what_one_container_writes_the_next_one_reads(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.run("web:/data", sh="echo hello > /data/a; mkdir /data/d; sync")
    daemon.all_unmounted()
    assert daemon.engine.run("web:/data", sh="cat /data/a; ls /data") == "hello\na\nd"
    daemon.all_unmounted()


def test_two_containers_share_a_volume_until_the_last_one_stops(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("one", "web:/data")
    daemon.engine.detached("two", "web:/data")
    daemon.engine.exec("one", "echo from one > /data/a")
    assert daemon.engine.exec("two", "cat /data/a; echo from two > /data/a") == "from one"
    assert daemon.engine.exec("one", "cat /data/a") == "from two"
    daemon.engine.docker("stop", "one")
    assert daemon.engine.exec("two", "cat /data/a") == "from two"
    assert len(daemon.mounted()) == 1
    daemon.engine.docker("stop", "two")
    daemon.all_unmounted()


def test_services_share_volumes_made_for_their_project(daemon: Daemon) -> None:
    labels = ["--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.volume=db"]
    daemon.engine.docker("volume", "create", "-d", DRIVER, *labels, "-o", "size=64M", "shop_db")
    daemon.engine.detached("db", "shop_db:/data", sh="echo row > /data/table")
    daemon.engine.detached("backup", options=("--volumes-from", "db:ro"))
    until(lambda: daemon.engine.exec("backup", "cat /data/table || :") == "row", "the row")
    assert daemon.engine.docker("volume", "ls", "-q", "--filter", "label=com.docker.compose.project=shop") == "shop_db"
    assert "Read-only" in daemon.engine.refused("exec", "backup", "touch", "/data/b")
    daemon.engine.docker("rm", "-f", "db")
    assert daemon.engine.exec("backup", "cat /data/table") == "row"


def test_copying_to_and_from_a_running_container_leaves_its_volume_alone(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data")
    for number in range(3):
        daemon.machine.shell(f"echo copied {number} > /run/file")
        daemon.engine.docker("cp", "/run/file", f"busy:/data/{number}")
        assert daemon.engine.exec("busy", f"cat /data/{number}; sync") == f"copied {number}"
        daemon.engine.docker("cp", f"busy:/data/{number}", "/run/back")
        assert daemon.machine.run("cat", "/run/back") == f"copied {number}\n"
    assert len(daemon.mounted()) == 1
    daemon.engine.docker("stop", "busy")
    daemon.all_unmounted()


def test_copying_to_and_from_a_stopped_container_mounts_its_volume_for_that_long(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.docker("create", "--name", "idle", "-v", "web:/data", "busybox", "cat", "/data/file")
    daemon.machine.shell("echo copied > /run/file; rm -f /run/back")
    daemon.engine.docker("cp", "/run/file", "idle:/data/file")
    daemon.all_unmounted()
    daemon.engine.docker("cp", "idle:/data/file", "/run/back")
    assert daemon.machine.run("cat", "/run/back") == "copied\n"
    assert daemon.engine.docker("start", "-a", "idle") == "copied"
    daemon.all_unmounted()


def test_a_read_only_container_reads_what_another_one_writes(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("reader", "web:/data:ro")
    daemon.engine.run("web:/data", sh="echo hello > /data/a")
    assert daemon.engine.exec("reader", "cat /data/a") == "hello"
    assert "Read-only" in daemon.engine.refused("exec", "reader", "touch", "/data/b")


def test_a_volume_in_use_is_not_removed_and_one_that_is_not_is_gone(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data")
    assert "in use" in daemon.engine.refused("volume", "rm", "web")
    assert daemon.plugin("VolumeDriver.Remove", {"Name": "web"})["Err"]
    assert daemon.call("rm", "web").status == 1
    daemon.engine.docker("rm", "-f", "busy")
    daemon.engine.docker("volume", "rm", "web")
    assert daemon.json("ls") == []
    assert list((daemon.machine.disk / "fusevol" / "volumes").iterdir()) == []
    assert daemon.plugin("VolumeDriver.Remove", {"Name": "web"}) == {"Err": ""}


@pytest.mark.parametrize("first", ["host", "container"])
def test_the_same_volume_on_the_host_and_in_a_container(daemon: Daemon, first: str) -> None:
    daemon.create("web")
    daemon.engine.run("web:/data", sh="echo hello > /data/a")
    daemon.machine.shell("mkdir -p /mnt/web")
    if first == "host":
        daemon.fusevol("mount", "web", "/mnt/web")
        daemon.engine.detached("busy", "web:/data")
    else:
        daemon.engine.detached("busy", "web:/data")
        daemon.fusevol("mount", "web", "/mnt/web")
    assert daemon.machine.run("cat", "/mnt/web/a") == "hello\n"
    daemon.machine.shell("echo from the host > /mnt/web/b")
    assert daemon.engine.exec("busy", "cat /data/b; echo again > /data/b") == "from the host"
    assert daemon.machine.run("cat", "/mnt/web/b") == "again\n"
    if first == "host":
        daemon.engine.docker("rm", "-f", "busy")
        assert daemon.mounted() == []
        assert "mounted on /mnt/web" in daemon.engine.refused("volume", "rm", "web")
        assert daemon.machine.run("cat", "/mnt/web/b") == "again\n"
        daemon.fusevol("umount", "web")
    else:
        daemon.fusevol("umount", "/mnt/web")
        assert daemon.engine.exec("busy", "cat /data/b") == "again"
        daemon.engine.docker("rm", "-f", "busy")
    daemon.all_unmounted()
    daemon.engine.docker("volume", "rm", "web")


def test_what_containers_use_is_neither_renamed_nor_unmounted_nor_deleted(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data", sh="echo hello > /data/a")
    place = daemon.mounted()
    for words in ("rename", "web", "www"), ("umount", "web"), ("umount", place[0]), ("rm", "web"):
        said = daemon.call(*words)
        assert said.status == 1, (words, said)
        assert "in use by containers" in said.err, (words, said)
    assert daemon.rest("PATCH", "/v1/volumes/web", {"name": "www"}).status == 409
    assert daemon.rest("DELETE", "/v1/volumes/web").status == 409
    assert daemon.rest("POST", "/v1/volumes/web/unmount", {}).status == 409
    assert daemon.mounted() == place
    assert daemon.engine.exec("busy", "cat /data/a") == "hello"


def test_the_host_sees_a_containers_volume_where_docker_says_it_is(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data", sh="echo hello > /data/a")
    place = daemon.engine.inspect("volume", "web")["Mountpoint"]
    assert place.startswith(f"{MOUNTS}/")
    until(lambda: daemon.machine.call("cat", f"{place}/a").out == "hello\n", "the file to be there")
    said = daemon.call("umount", "web")
    assert said.status == 1, said
    assert daemon.engine.exec("busy", "cat /data/a") == "hello"


def test_a_new_volume_gets_what_the_image_has_there(daemon: Daemon) -> None:
    daemon.create("web")
    assert daemon.engine.run("web:/srv", sh="cat /srv/page") == "from the image"
    assert daemon.engine.run("web:/data", sh="ls /data") == "page"
    daemon.all_unmounted()


def test_a_container_may_have_a_volume_twice(daemon: Daemon) -> None:
    daemon.create("web")
    said = daemon.engine.run("web:/a", "web:/b", sh="echo one > /a/file; cat /b/file; echo two > /b/file; cat /a/file")
    assert said == "one\ntwo"
    daemon.all_unmounted()


def test_a_container_is_restarted_with_its_volume(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data")
    daemon.engine.exec("busy", "echo hello > /data/a")
    for command in ("restart", "kill", "start", "pause", "unpause"):
        daemon.engine.docker(command, "busy")
    assert daemon.engine.exec("busy", "cat /data/a") == "hello"
    assert len(daemon.mounted()) == 1


def test_a_container_that_cannot_start_leaves_nothing_mounted(daemon: Daemon) -> None:
    daemon.create("web")
    assert daemon.engine.call("run", "--rm", "-v", "web:/data", "busybox", "no-such-program").status == 127
    daemon.all_unmounted()
    daemon.engine.docker("volume", "rm", "web")


def test_volumes_are_made_on_the_fly_and_anonymous_ones_go_with_their_container(daemon: Daemon) -> None:
    options = ("--volume-driver", DRIVER)
    daemon.engine.run("fresh:/data", "/more", sh="echo a > /data/a; echo b > /more/b", options=options)
    assert daemon.names() == ["fresh"]
    assert daemon.engine.run("fresh:/data", sh="cat /data/a") == "a"


def test_any_user_of_a_container_may_use_a_volume(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.run("web:/data", sh="mkdir /data/home; chown 1000:1000 /data/home")
    daemon.engine.run("web:/data", sh="echo mine > /data/home/a", options=("--user", "1000:1000"))
    assert daemon.engine.run("web:/data", sh="stat -c %u /data/home/a") == "1000"
    assert daemon.engine.call("run", "--rm", "-u", "7", "-v", "web:/data", "busybox", "touch", "/data/b").status == 1


def test_a_volume_holds_no_more_than_its_size(daemon: Daemon) -> None:
    daemon.create("web", "size=16M")
    said = daemon.engine.refused(
        "run", "--rm", "-v", "web:/data", "busybox", "sh", "-c", "dd if=/dev/zero of=/data/a bs=1M count=20 && sync"
    )
    assert "No space left" in said
    daemon.engine.run("web:/data", sh="rm /data/a; echo fits > /data/b")
    assert daemon.engine.run("web:/data", sh="cat /data/b") == "fits"


# -- snapshots --------------------------------------------------------------------------------------


def test_a_container_takes_a_snapshot_looks_into_it_and_goes_back(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data")
    daemon.engine.exec("busy", "echo before > /data/page; echo nightly > /data/.fusevol/snapshot")
    daemon.engine.exec("busy", "echo after > /data/page")
    assert daemon.engine.exec("busy", "cat /data/.fusevol/snapshots/nightly/page /data/page") == "before\nafter"
    assert daemon.status("web")["snapshots"] == 1
    failed = daemon.engine.call("exec", "busy", "sh", "-c", "echo nightly > /data/.fusevol/snapshot")
    assert failed.status != 0
    assert "File exists" in failed.err
    daemon.engine.exec("busy", "echo nightly > /data/.fusevol/restore")
    assert daemon.engine.exec("busy", "cat /data/page") == "before"
    # What was there before the restore is kept.
    assert daemon.status("web")["snapshots"] == 2
    daemon.engine.docker("rm", "-f", "busy")
    assert daemon.engine.run("web:/data", sh="cat /data/page") == "before"


def test_a_volume_in_use_is_cloned_for_another_container(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("production", "web:/data")
    daemon.engine.exec("production", "echo before > /data/page; echo nightly > /data/.fusevol/snapshot")
    daemon.engine.exec("production", "echo after > /data/page")
    daemon.create("test", "from=web@nightly")
    daemon.create("live", "from=web")
    assert daemon.engine.run("test:/data", sh="cat /data/page; echo broken > /data/page") == "before"
    assert daemon.engine.run("live:/data", sh="cat /data/page") == "after"
    assert daemon.engine.exec("production", "cat /data/page") == "after"
    assert daemon.engine.call("volume", "rm", "test").status == 0


def test_a_volume_with_snapshots_is_not_removed_by_mistake(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.run("web:/data", sh="echo nightly > /data/.fusevol/snapshot")
    said = daemon.engine.refused("volume", "rm", "web")
    assert "nightly" in said
    assert daemon.engine.run("web:/data", sh="ls /data/.fusevol/snapshots") == "nightly"
    daemon.fusevol("rm", "web@nightly")
    daemon.engine.docker("volume", "rm", "web")
