"""The volume plugin without an engine: what dockerd says, said here; counts, and what becomes of them."""

import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from fusevol.driver.attachment import server_of
from fusevol.driver.mounts import is_ours, mount_at
from fusevol.forms.options import KNOWN
from fusevol.store import SqliteStore
from tests.daemon.running import Daemon
from tests.e2e.harness import until


def _status(daemon: Daemon, name: str) -> dict[str, Any]:
    answer = daemon.volume("Get", name)
    assert answer["Err"] == "", answer
    status: dict[str, Any] = answer["Volume"]["Status"]
    return status


def _server(daemon: Daemon, name: str) -> int:
    """The process that serves a volume, as its record says."""

    async def ask() -> int:
        store = SqliteStore(daemon.command.home / "fusevol.db")
        try:
            volume = await store.named(name)
        finally:
            await store.aclose()
        assert volume is not None
        server = server_of(volume)
        assert server is not None
        return server.pid

    return trio.run(ask)


def _write(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def test_a_volume_is_mounted_from_its_first_use_to_its_last(daemon: Daemon) -> None:
    assert daemon.volume("Create", "data", Opts={"size": "1G"}) == {"Err": ""}
    assert "Mountpoint" not in daemon.volume("Get", "data")["Volume"]
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    assert daemon.volume("Mount", "data", ID="b")["Mountpoint"] == path
    # docker cp, while a runs.
    assert daemon.volume("Mount", "data", ID="a")["Mountpoint"] == path
    assert _status(daemon, "data")["uses"] == 3
    for mount_id in "aba":
        assert is_ours(mount_at(path))
        assert daemon.volume("Unmount", "data", ID=mount_id) == {"Err": ""}
    assert mount_at(path) is None
    assert not os.path.exists(path)
    assert _status(daemon, "data")["uses"] == 0


def test_dockerd_may_repeat_itself(daemon: Daemon) -> None:
    for _ in range(2):
        assert daemon.volume("Create", "data", Opts={"size": "1G"}) == {"Err": ""}
    daemon.volume("Mount", "data", ID="a")
    for _ in range(2):
        assert daemon.volume("Unmount", "data", ID="a") == {"Err": ""}
    assert daemon.volume("Unmount", "data", ID="never") == {"Err": ""}
    for _ in range(2):
        assert daemon.volume("Remove", "data") == {"Err": ""}
    assert daemon.volume("Unmount", "data", ID="a") == {"Err": ""}
    assert "exist" in daemon.volume("Get", "data")["Err"]


def test_a_volume_in_use_is_not_removed(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    assert "in use by containers" in daemon.volume("Remove", "data")["Err"]
    assert "in use by containers" in daemon.command.fails("rm", "data")
    assert "in use by containers" in daemon.command.fails("rename", "data", "other")
    assert "in use by containers, 1 times" in daemon.command.fails("umount", "data")
    assert is_ours(mount_at(path))
    daemon.volume("Unmount", "data", ID="a")
    place = daemon.command.home / "place"
    place.mkdir()
    daemon.command("mount", "data", str(place))
    assert "mounted on" in daemon.volume("Remove", "data")["Err"]


def test_a_volume_mounted_on_the_host_is_shared_with_containers(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    place = daemon.command.home / "place"
    place.mkdir()
    daemon.command("mount", "data", str(place))
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    Path(path, "file").write_text("from a container")
    assert (place / "file").read_text() == "from a container"
    daemon.volume("Unmount", "data", ID="a")
    assert mount_at(path) is None
    assert (place / "file").read_text() == "from a container"


def test_what_containers_use_can_be_mounted_on_the_host_as_well(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    place = daemon.command.home / "place"
    place.mkdir()
    # It would have the options of the first.
    assert "mounted twice" in daemon.command.fails("mount", "data", str(place), "-o", "ro")
    daemon.command("mount", "data", str(place))
    Path(path, "file").write_text("from a container")
    assert (place / "file").read_text() == "from a container"
    assert "in use by containers" in daemon.command.fails("umount", path)
    daemon.command("umount", "data")
    assert (mount_at(str(place)), is_ours(mount_at(path))) == (None, True)


def test_counts_outlive_the_daemon(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    server = _server(daemon, "data")
    with open(Path(path, "file"), "w") as file:
        daemon.kill()
        file.write("written while no daemon ran")
    daemon.start()
    assert _status(daemon, "data")["uses"] == 1
    assert _server(daemon, "data") == server
    assert Path(path, "file").read_text() == "written while no daemon ran"
    daemon.volume("Unmount", "data", ID="a")
    assert mount_at(path) is None


def test_a_mount_whose_process_is_killed_is_mounted_again(daemon: Daemon) -> None:
    for name in ("data", "other"):
        daemon.volume("Create", name)
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    other = daemon.volume("Mount", "other", ID="b")["Mountpoint"]
    _write(Path(path, "file"), "kept")
    server, untouched = _server(daemon, "data"), _server(daemon, "other")
    os.kill(server, signal.SIGKILL)
    until(lambda: "mounted again" in _status(daemon, "data")["error"], "the daemon to notice")
    assert Path(path, "file").read_text() == "kept"
    assert _server(daemon, "data") != server
    assert f"process {server}" in daemon.log.read_text()
    assert _server(daemon, "other") == untouched
    assert _status(daemon, "other")["error"] == ""
    assert is_ours(mount_at(other))


def test_a_mount_that_died_while_no_daemon_ran_is_mounted_again(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    _write(Path(path, "file"), "kept")
    server = _server(daemon, "data")
    daemon.kill()
    os.kill(server, signal.SIGKILL)
    daemon.start()
    until(lambda: daemon.volume("Path", "data").get("Mountpoint") == path, "the volume to be mounted")
    assert Path(path, "file").read_text() == "kept"
    assert _status(daemon, "data")["uses"] == 1


def test_a_mount_on_the_host_that_died_while_no_daemon_ran_is_detached_and_not_mounted_again(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    place = daemon.command.home / "place"
    place.mkdir()
    daemon.command("mount", "data", str(place))
    server = _server(daemon, "data")
    daemon.kill()
    os.kill(server, signal.SIGKILL)
    daemon.start()
    until(lambda: '"data" is detached' in daemon.log.read_text(), "the daemon to put it in order")
    assert mount_at(str(place)) is None
    # A mount made after that is watched, like any other.
    daemon.command("mount", "data", str(place))
    os.kill(_server(daemon, "data"), signal.SIGKILL)
    until(lambda: "mounted again on" in daemon.log.read_text(), "the daemon to notice")
    assert is_ours(mount_at(str(place)))


def test_a_mount_without_uses_is_taken_away(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    path = daemon.command.home / "mounts" / _status(daemon, "data")["id"]
    path.mkdir(parents=True)
    # As a daemon leaves it that dies between mounting and counting.
    daemon.command("mount", "data", str(path))
    until(lambda: not path.exists(), "the mount to be taken away")
    assert _status(daemon, "data")["state"] == "detached"


@pytest.mark.slow
def test_a_volume_that_hangs_keeps_only_its_own_callers_waiting(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--patience", "5") as daemon:
        for name in ("stuck", "well"):
            daemon.volume("Create", name)
        assert daemon.volume("Mount", "stuck", ID="a")["Err"] == ""
        server = _server(daemon, "stuck")
        assert _status(daemon, "stuck")["used"] > 0
        os.kill(server, signal.SIGSTOP)
        try:
            assert [volume["Name"] for volume in daemon.plugin("VolumeDriver.List")["Volumes"]] == ["stuck", "well"]
            assert _status(daemon, "stuck")["used"] > 0
            answer = daemon.api("POST", "/v1/volumes/stuck/snapshots", {"name": "one"})
            assert answer.status == 409
            assert "does not answer" in answer.body["error"]
            assert "does not answer" in daemon.api("GET", "/v1/volumes/stuck/stats").body["error"]
            assert "does not answer" in daemon.api("GET", "/v1/requests").body["error"]
            assert daemon.volume("Mount", "well", ID="b")["Err"] == ""
            assert daemon.volume("Unmount", "well", ID="b")["Err"] == ""
            assert "fusevol_volume_answers" in daemon.api("GET", "/metrics").body
        finally:
            os.kill(server, signal.SIGCONT)
        found = daemon.api("GET", "/v1/volumes/stuck/snapshots").body["snapshots"]
        assert [snapshot["name"] for snapshot in found] == ["one"]


def test_there_is_one_daemon_for_a_state_directory(daemon: Daemon, tmp_path: Path) -> None:
    second = Daemon(tmp_path / "second")
    second.command.home = daemon.command.home
    assert "another fusevol serve" in daemon.command.fails(*second.words[1:])


def test_ending_it_leaves_mounts_and_takes_the_sockets_away(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    assert daemon.terminate() == 0
    assert not daemon.plugin_socket.exists()
    assert not daemon.api_socket.exists()
    assert is_ours(mount_at(path))


def test_lost_data_is_called_so(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    shutil.rmtree(daemon.command.home / "volumes" / _status(daemon, "data")["id"])
    missing = 'the data of volume "data" is missing from pool "default"'
    assert missing in daemon.volume("Mount", "data", ID="a")["Err"]
    assert _status(daemon, "data")["uses"] == 0
    place = daemon.command.home / "place"
    place.mkdir()
    assert missing in daemon.command.fails("mount", "data", str(place))


def test_snapshots_taken_from_inside_are_known_outside_at_once(daemon: Daemon) -> None:
    daemon.volume("Create", "data")
    control = Path(daemon.volume("Mount", "data", ID="a")["Mountpoint"], ".fusevol")
    (control / "snapshot").write_text("one\n")
    assert _status(daemon, "data")["snapshots"] == 1
    (control / "restore").write_text("one\n")
    assert _status(daemon, "data")["snapshots"] == 2
    (control / "delete-snapshot").write_text("one\n")
    assert _status(daemon, "data")["snapshots"] == 1
    assert [volume["snapshots"] for volume in daemon.command.json("ls")] == [1]


def test_the_help_has_every_option_of_a_volume(daemon: Daemon) -> None:
    said = daemon.command("serve", "--help")
    assert [key for key in KNOWN if not re.search(rf"\b{key.replace('snap_', 'snapshot_')}\b", said)] == []


def test_a_volume_for_reading_is_mounted_so_with_its_schedule_and_labels(daemon: Daemon) -> None:
    options = {"ro": "true", "snapshot_schedule": "daily=03:00,7", "labels": "tier=gold,app=shop", "group": "night"}
    assert daemon.volume("Create", "data", Opts=options) == {"Err": ""}
    path = daemon.volume("Mount", "data", ID="a")["Mountpoint"]
    with pytest.raises(OSError, match="Read-only file system"):
        Path(path, "file").write_text("no")
    found = daemon.api("GET", "/v1/volumes/data").body
    assert (found["labels"], found["group"]) == ({"tier": "gold", "app": "shop"}, "night")
    assert found["snapshot_schedule"] == "daily=03:00,7"
    for bad in (
        {"ro": "maybe"},
        {"snapshot_schedule": "hourly"},
        {"labels": "tier"},
        {"size": "big"},
        {"secure": "true"},
    ):
        assert daemon.volume("Create", "other", Opts=bad)["Err"] != ""
    assert [volume["Name"] for volume in daemon.plugin("VolumeDriver.List")["Volumes"]] == ["data"]
