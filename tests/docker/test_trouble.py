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


@pytest.fixture
def hanging(daemon: Daemon) -> Daemon:
    """A machine with a pool that can be made to hang, its volume "hung", and a container on another volume."""
    daemon.stop()
    stuck.install(daemon.machine)
    daemon.start("--patience", "2")
    daemon.create("web")
    daemon.create("hung", f"pool={stuck.POOL}")
    daemon.engine.detached("well", "web:/data", sh="echo fine > /data/a")
    return daemon


def _nobody_else_hangs(daemon: Daemon) -> None:
    docker = daemon.engine.docker
    for words in ("volume", "ls"), ("ps", "-a"), ("volume", "inspect", "hung"), ("volume", "inspect", "web"):
        docker(*words, limit=AT_ONCE)
    assert docker("exec", "well", "cat", "/data/a", limit=AT_ONCE) == "fine"
    docker("run", "--rm", "-v", "web:/data", "busybox", "sh", "-c", "echo new > /data/b", limit=AT_ONCE)
    for url in "/v1/volumes", "/v1/volumes/hung", "/metrics", "/healthz":
        assert daemon.rest("GET", url, limit=AT_ONCE).status == 200


def test_a_store_that_hangs_keeps_containers_of_its_volumes_from_starting_and_no_others(hanging: Daemon) -> None:
    daemon, engine = hanging, hanging.engine
    engine.run("hung:/data", sh="echo hello > /data/a")
    stuck.hang(daemon.machine)
    late = daemon.machine.start("docker", "run", "--rm", "-v", "hung:/data", "busybox", "true")
    _nobody_else_hangs(daemon)
    # Those who want that volume are told, in less time than the engine would wait.
    assert late.wait() != 0
    said = engine.refused("run", "--rm", "-v", "hung:/data", "busybox", "true")
    assert 'volume "hung" does not answer' in said
    said = daemon.plugin("VolumeDriver.Create", {"Name": "new", "Opts": {"pool": stuck.POOL}})["Err"]
    assert 'volume "new" does not answer' in said
    assert "hung" in daemon.engine.refused("volume", "rm", "hung")
    # A new daemon is there at once as well.
    daemon.kill()
    daemon.begin("--patience", "2", "--stale-after", "2")
    daemon.ready(limit=AT_ONCE)
    _nobody_else_hangs(daemon)
    stuck.let_go(daemon.machine)
    until(lambda: engine.call("run", "--rm", "-v", "hung:/data", "busybox", "true").status == 0, "it to be well again")
    assert engine.run("hung:/data", sh="cat /data/a") == "hello"
    engine.docker("rm", "-f", "well")
    daemon.all_unmounted()


@pytest.mark.slow
def test_a_container_whose_store_hangs_is_let_go_by_killing_the_mount_process(hanging: Daemon) -> None:
    daemon, engine = hanging, hanging.engine
    engine.detached("ill", "hung:/data")
    engine.exec("ill", "echo hello > /data/a; sync /data/a")
    stuck.hang(daemon.machine)
    waits = daemon.machine.start("docker", "exec", "ill", "sh", "-c", "echo more > /data/b; sync /data/b")
    until(lambda: daemon.rest("GET", "/v1/requests").json["requests"], "a request to wait for the store")
    _nobody_else_hangs(daemon)
    os.kill(daemon.server("hung"), signal.SIGKILL)
    assert waits.wait() != 0
    engine.docker("rm", "-f", "ill")
    _nobody_else_hangs(daemon)
    stuck.let_go(daemon.machine)
    until(lambda: len(daemon.mounted()) == 1, "the volume to be unmounted")
    assert engine.run("hung:/data", sh="cat /data/a") == "hello"
    engine.docker("volume", "rm", "hung")


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


@pytest.mark.slow
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
