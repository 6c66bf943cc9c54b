"""What containers, Docker and other volumes see when something is wrong with one volume."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.docker import stuck
from tests.docker.daemon import Daemon
from tests.e2e.harness import until

#: Seconds in which dockerd must have answers that need no store. Very much for such an answer, and much less than
#: what dockerd itself waits.
AT_ONCE = 10.0


def test_a_mount_process_that_dies_is_noticed_said_and_made_up_for(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.create("logs")
    daemon.engine.detached("busy", "web:/data")
    daemon.engine.detached("other", "logs:/data", sh="echo fine > /data/a")
    daemon.engine.exec("busy", "echo hello > /data/a; sync /data/a")
    other = daemon.server("logs")
    first = daemon.server("web")
    os.kill(first, signal.SIGKILL)
    until(lambda: "web" in daemon.log and str(daemon.status("web")["error"]), "the daemon to notice")
    until(lambda: [pid for pid in daemon.machine.processes("fusevol.mount.process", "web on ") if pid != first],
          "the volume to be mounted again")  # fmt: skip
    assert daemon.engine.exec("other", "cat /data/a") == "fine"
    assert daemon.server("logs") == other
    daemon.engine.docker("restart", "busy")
    assert daemon.engine.exec("busy", "cat /data/a; echo more >> /data/a") == "hello"
    daemon.engine.docker("rm", "-f", "busy", "other")
    daemon.all_unmounted()
    assert daemon.engine.run("web:/data", sh="cat /data/a") == "hello\nmore"


def test_a_mount_process_that_dies_while_the_daemon_is_away_is_made_up_for(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data")
    daemon.engine.exec("busy", "echo hello > /data/a; sync /data/a")
    daemon.kill()
    os.kill(daemon.server("web"), signal.SIGKILL)
    daemon.start()
    daemon.engine.docker("restart", "busy")
    assert daemon.engine.exec("busy", "cat /data/a") == "hello"


@pytest.mark.parametrize("when", ["in use", "idle"])
def test_a_store_that_hangs_hangs_nobody_else(daemon: Daemon, when: str) -> None:
    machine, engine = daemon.machine, daemon.engine
    daemon.stop()
    stuck.install(machine)
    daemon.start("--patience", "2")
    daemon.create("web")
    daemon.create("hung", f"pool={stuck.POOL}")
    engine.detached("well", "web:/data", sh="echo fine > /data/a")
    if when == "in use":
        engine.detached("ill", "hung:/data")
        engine.exec("ill", "echo hello > /data/a; sync /data/a")
    else:
        engine.run("hung:/data", sh="echo hello > /data/a")
        until(lambda: len(daemon.mounted()) == 1, "the volume to be unmounted")
    stuck.hang(machine)
    if when == "in use":
        # Something that hangs for certain.
        machine.start("docker", "exec", "ill", "sh", "-c", "echo more >> /data/a; sync")
    machine.start("docker", "run", "--rm", "--name", "late", "-v", "hung:/data", "busybox", "true")
    for words in ("volume", "ls"), ("ps", "-a"), ("volume", "inspect", "hung"), ("volume", "inspect", "web"):
        engine.docker(*words, limit=AT_ONCE)
    assert engine.docker("exec", "well", "cat", "/data/a", limit=AT_ONCE) == "fine"
    engine.docker("run", "--rm", "-v", "web:/data", "busybox", "sh", "-c", "echo new > /data/b", limit=AT_ONCE)
    assert daemon.rest("GET", "/v1/volumes", limit=AT_ONCE).status == 200
    assert daemon.rest("GET", "/metrics", limit=AT_ONCE).status == 200
    # Its own callers have an answer in bounded time, less than the engine would wait.
    said = daemon.plugin("VolumeDriver.Create", {"Name": "new", "Opts": {"pool": stuck.POOL}}, limit=110)
    assert "new" in said["Err"]
    assert "Traceback" not in said["Err"]
    stuck.let_go(machine)
    until(
        lambda: engine.call("run", "--rm", "-v", "hung:/data", "busybox", "cat", "/data/a").status == 0, "it to be well"
    )
    assert engine.run("hung:/data", sh="cat /data/a").startswith("hello")


def test_a_volume_whose_data_is_lost_says_so_and_can_be_removed(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.create("good")
    (place,) = (
        path for path in (daemon.machine.disk / "fusevol" / "volumes").iterdir()
        if path.name == daemon.json("inspect", "web")["id"]
    )  # fmt: skip
    shutil.rmtree(place)
    said = daemon.engine.refused("run", "--rm", "-v", "web:/data", "busybox", "true")
    assert "missing" in said, said
    assert daemon.names() == ["good", "web"]
    assert daemon.engine.run("good:/data", sh="echo fine > /data/a; cat /data/a") == "fine"
    daemon.engine.docker("volume", "rm", "web")
    assert daemon.names() == ["good"]


def test_damaged_data_is_an_error_in_the_container_and_never_wrong(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.run("web:/data", sh="yes hello | head -c 1000000 > /data/a")
    daemon.all_unmounted()
    (data,) = (
        path for path in (daemon.machine.disk / "fusevol" / "volumes").rglob("*") if _holds(path, b"hello\nhello")
    )
    content = bytearray(data.read_bytes())
    content[content.index(b"hello\nhello") + 5000] ^= 1
    data.write_bytes(content)
    said = daemon.engine.refused("run", "--rm", "-v", "web:/data", "busybox", "cat", "/data/a")
    assert "Input/output error" in said


def _holds(path: Path, text: bytes) -> bool:
    return path.is_file() and text in path.read_bytes()
