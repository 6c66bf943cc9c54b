"""What the options of a new volume mean (`docker volume create -o`), with a real engine."""

from __future__ import annotations

import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest

from tests.docker.daemon import DRIVER, Daemon
from tests.e2e.harness import until

#: What options mean to a daemon is in tests/daemon, too.
pytestmark = pytest.mark.slow


@pytest.fixture
def daemon(tidied: Daemon) -> Daemon:
    """The machine of all tests in here."""
    return tidied


def test_a_volume_is_made_with_options_and_shows_them(daemon: Daemon) -> None:
    daemon.create("web", "size=1G", "labels=app=shop,tier=gold", "group=g1")
    assert daemon.names() == ["web"]
    shown = daemon.engine.inspect("volume", "web")
    assert (shown["Name"], shown["Driver"], shown["Scope"]) == ("web", DRIVER, "local")
    assert shown["Options"] == {"size": "1G", "labels": "app=shop,tier=gold", "group": "g1"}
    created = datetime.fromisoformat(shown["CreatedAt"])
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=5)
    assert shown["Status"]["size"] == 1 << 30
    assert shown["Status"]["snapshots"] == 0
    record = daemon.json("inspect", "web")
    assert (record["size"], record["labels"]) == (1 << 30, {"app": "shop", "tier": "gold"})


@pytest.mark.parametrize(
    "option",
    [
        "colour=red", "size=much", "size=-1", "size=", "pool=nowhere", "from=nobody", "from=web@never", "labels=app",
        "write_iops=many", "readahead=perhaps",
        "snapshot_schedule=sometimes", "snapshot_interval=often", "control=perhaps", "ro=perhaps", "sticky=7",
        "ephemeral=perhaps", "mount_options=colour",
    ],
)  # fmt: skip
def test_an_option_that_means_nothing_is_refused_and_nothing_is_made(daemon: Daemon, option: str) -> None:
    said = daemon.engine.refused("volume", "create", "-d", DRIVER, "-o", option, "new")
    assert option.split("=")[0] in said or option.split("=")[1].split("@")[0] in said, said
    assert "Traceback" not in said
    assert daemon.json("ls") == []
    assert daemon.names() == []


def test_a_read_only_volume_is_written_to_by_nobody(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.run("web:/data", sh="echo hello > /data/a; echo now > /data/.fusevol/snapshot")
    daemon.create("copy", "from=web@now", "ro=true")
    assert daemon.engine.run("copy:/data", sh="cat /data/a") == "hello"
    said = daemon.engine.refused("run", "--rm", "-v", "copy:/data", "busybox", "touch", "/data/b")
    assert "Read-only" in said


@pytest.mark.parametrize("mode", ["ro", "off"])
def test_a_container_takes_no_snapshot_where_control_does_not_let_it(daemon: Daemon, mode: str) -> None:
    daemon.create("web", f"control={mode}")
    daemon.engine.detached("busy", "web:/data")
    command = "echo nightly > /data/.fusevol/snapshot"
    assert daemon.engine.call("exec", "busy", "sh", "-c", command).status != 0
    assert (daemon.engine.call("exec", "busy", "cat", "/data/.fusevol/used_size").status == 0) is (mode == "ro")
    assert daemon.json("snapshots", "web") == []


def test_a_sticky_volume_is_not_removed(daemon: Daemon) -> None:
    daemon.create("web", "sticky=true")
    assert "sticky" in daemon.engine.refused("volume", "rm", "web")
    assert daemon.names() == ["web"]
    daemon.fusevol("set", "web", "--no-sticky")
    daemon.engine.docker("volume", "rm", "web")
    assert daemon.names() == []


def test_an_ephemeral_volume_is_empty_again_after_its_containers(daemon: Daemon) -> None:
    daemon.create("scratch", "ephemeral=true")
    daemon.engine.detached("one", "scratch:/data")
    daemon.engine.exec("one", "echo hello > /data/a")
    assert daemon.engine.run("scratch:/data", sh="cat /data/a") == "hello"
    daemon.engine.docker("rm", "-f", "one")
    daemon.all_unmounted()
    assert daemon.engine.run("scratch:/data", sh="ls /data") == ""


@pytest.mark.slow
def test_an_ephemeral_volume_is_as_it_was_for_containers_whose_daemon_died(daemon: Daemon) -> None:
    daemon.create("scratch", "ephemeral=true")
    daemon.engine.detached("one", "scratch:/data")
    daemon.engine.exec("one", "echo hello > /data/a; sync /data/a")
    daemon.kill()
    daemon.start()
    assert daemon.engine.run("scratch:/data", sh="cat /data/a") == "hello"
    # But what is mounted again after its process died is empty.
    os.kill(daemon.server("scratch"), signal.SIGKILL)
    until(lambda: "mounted again" in daemon.status("scratch")["error"], "it to be mounted again")
    daemon.engine.docker("restart", "one")
    assert daemon.engine.run("scratch:/data", sh="ls /data") == ""
    assert daemon.json("check", "scratch")["problems"] == []


def test_a_schedule_of_snapshots_is_kept_with_the_volume(daemon: Daemon) -> None:
    daemon.create("web", "snapshot_schedule=daily=03:00,7")
    daemon.create("logs", "snapshot_interval=15")
    assert daemon.json("inspect", "web")["snapshot_schedule"] == "daily=03:00,7"
    assert daemon.json("inspect", "logs")["snapshot_interval"] == 15


@pytest.mark.slow
def test_bounds_on_writes_hold_for_containers(daemon: Daemon) -> None:
    daemon.create("slow", "write_bw_mbytes=4")
    daemon.engine.detached("busy", "slow:/data")
    started = time.monotonic()
    daemon.engine.exec("busy", "dd if=/dev/zero of=/data/a bs=1M count=12 && sync /data/a")
    # A bound has time as its least; what may come at once of it at first is a second's worth, or less.
    assert time.monotonic() - started > (12 - 2 * 4) * (1 << 20) / 4e6


def test_a_volume_may_be_in_a_pool_in_an_object_store(daemon: Daemon) -> None:
    config = daemon.machine.disk / "fusevol" / "config.toml"
    config.write_text('[pools.remote]\nbackend = "object"\nurl = "file:///var/lib/fusevol/objects"\n')
    daemon.stop()
    daemon.start()
    daemon.create("web", "pool=remote")
    daemon.engine.detached("busy", "web:/data")
    daemon.engine.exec("busy", "echo before > /data/a; echo one > /data/.fusevol/snapshot; echo after > /data/a")
    daemon.create("copy", "from=web@one")
    assert daemon.engine.run("copy:/data", sh="cat /data/a") == "before"
    daemon.engine.docker("rm", "-f", "busy")
    assert daemon.engine.run("web:/data", sh="cat /data/a") == "after"
    assert daemon.status("web")["pool"] == "remote"
