"""Containers and their volumes when the daemon, the engine or the whole machine goes away and comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

import pytest

from tests.docker.daemon import API_SOCKET, DRIVER, PLUGIN_SOCKET, Daemon
from tests.e2e.harness import until

#: Believe the engine soon when it says that nobody uses a volume.
_SOON = ("--stale-after", "2")


def _running(daemon: Daemon, name: str) -> bool:
    return bool(daemon.engine.inspect("container", name)["State"]["Running"])


def _restarted(daemon: Daemon, *options: str) -> None:
    """The daemon, with other options."""
    daemon.stop()
    daemon.start(*options)


def _back(daemon: Daemon, name: str) -> None:
    until(lambda: _running(daemon, name), f"container {name} to run again")


# -- the daemon -------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
def test_containers_go_on_without_the_daemon_and_the_next_one_knows_who_uses_what(daemon: Daemon, end: str) -> None:
    daemon.create("web", "size=1G")
    daemon.create("logs")
    daemon.engine.detached("one", "web:/data")
    daemon.engine.detached("two", "web:/data", "logs:/logs")
    server = daemon.server("web")
    if end == "kill":
        daemon.kill()
    else:
        daemon.stop()
    assert daemon.engine.exec("one", "echo without > /data/a; sync; cat /data/a") == "without"
    assert (
        daemon.engine.exec("two", "cat /data/a; echo line >> /logs/all; echo s > /data/.fusevol/snapshot") == "without"
    )
    daemon.start()
    assert daemon.server("web") == server
    assert [snapshot["name"] for snapshot in daemon.json("snapshots", "web")] == ["s"]
    daemon.engine.docker("rm", "-f", "one")
    assert daemon.engine.exec("two", "cat /data/a") == "without"
    assert len(daemon.mounted()) == 2
    daemon.engine.docker("stop", "two")
    daemon.all_unmounted()
    assert daemon.engine.run("logs:/data", sh="cat /data/all") == "line"


@pytest.mark.slow
def test_a_container_removed_while_the_daemon_was_away_uses_nothing_any_more(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.create("logs")
    daemon.engine.detached("gone", "web:/data", sh="echo hello > /data/a")
    daemon.engine.detached("stays", "logs:/data")
    daemon.kill()
    daemon.engine.docker("rm", "-f", "gone", limit=120)
    daemon.start(*_SOON)
    # Nobody says so: it is found out by asking the engine.
    until(lambda: len(daemon.mounted()) == 1, "the volume to be unmounted")
    assert daemon.engine.exec("stays", "echo on > /data/a; cat /data/a") == "on"
    assert daemon.engine.run("web:/data", sh="cat /data/a") == "hello"
    daemon.engine.docker("volume", "rm", "web")


def test_the_daemon_takes_its_sockets_away_and_those_of_one_that_died(daemon: Daemon) -> None:
    daemon.kill()
    assert daemon.machine.path(PLUGIN_SOCKET).exists()
    daemon.start()
    daemon.stop()
    assert not daemon.machine.path(PLUGIN_SOCKET).exists()
    assert not daemon.machine.path(API_SOCKET).exists()


def test_a_second_daemon_is_refused_and_does_the_first_no_harm(daemon: Daemon) -> None:
    said = daemon.call("serve")
    assert said.status == 1, said
    assert said.err.splitlines()[-1].startswith(("fusevol: ", "hint: "))
    assert "Traceback" not in said.err
    daemon.create("web")
    assert daemon.names() == ["web"]


@pytest.mark.slow
def test_two_daemons_with_state_directories_of_their_own_are_two_drivers(daemon: Daemon) -> None:
    machine, engine = daemon.machine, daemon.engine
    daemon.create("web")
    other = ("--home", "/run/other", "serve", "--mounts", "/run/elsewhere", "--api-socket", "/run/other.sock")
    plugin = "/run/docker/plugins/other.sock"
    machine.start("fusevol", *other, "--plugin-socket", plugin, "--stale-after", "1", log=machine.disk / "other.log")
    until(lambda: machine.path(plugin).exists(), "the other daemon")
    engine.docker("volume", "create", "-d", "other", "logs")
    engine.detached("busy", "web:/web", "logs:/logs", sh="echo one > /web/a; echo two > /logs/a")
    assert len(daemon.mounted()) == len(machine.mounts("/run/elsewhere")) == 1
    assert [volume["name"] for volume in daemon.json("ls")] == ["web"]
    assert sorted(engine.docker("volume", "ls", "-q").split()) == ["logs", "web"]
    engine.docker("rm", "-f", "busy")
    daemon.all_unmounted()
    assert machine.mounts("/run/elsewhere") == []
    assert engine.run("web:/web", "logs:/logs", sh="cat /web/a /logs/a") == "one\ntwo"


def test_the_daemon_tells_systemd_when_it_can_be_used(daemon: Daemon) -> None:
    daemon.stop()
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(str(daemon.machine.path("/run/notify")))
        systemd.settimeout(60)
        daemon.begin(env={"NOTIFY_SOCKET": "/run/notify"})
        while "READY=1" not in systemd.recv(4096).decode().split("\n"):
            pass
        # From now on it must answer at once.
        assert daemon.plugin("Plugin.Activate") == {"Implements": ["VolumeDriver"]}
        assert daemon.rest("GET", "/healthz").status == 200


# -- the engine -------------------------------------------------------------------------------------


def test_an_engine_that_is_restarted_stops_its_containers_and_starts_them_again(daemon: Daemon) -> None:
    daemon.create("web", "size=1G")
    daemon.create("logs")
    daemon.engine.detached("always", "web:/data", options=("--restart", "always"))
    daemon.engine.detached("once", "logs:/data")
    daemon.engine.exec("always", "echo hello > /data/a")
    daemon.engine.stop()
    daemon.all_unmounted()
    daemon.engine.start()
    _back(daemon, "always")
    assert daemon.engine.exec("always", "cat /data/a") == "hello"
    assert len(daemon.mounted()) == 1
    assert daemon.names() == ["logs", "web"]
    daemon.engine.docker("rm", "-f", "always")
    daemon.all_unmounted()
    daemon.engine.docker("start", "once")
    assert len(daemon.mounted()) == 1


def test_containers_that_outlive_their_engine_keep_their_volumes(daemon: Daemon) -> None:
    daemon.engine.stop()
    daemon.engine.start("--live-restore")
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data", sh="while :; do echo alive >> /data/log; sleep 0.1; done")
    until(lambda: "alive" in daemon.engine.exec("busy", "cat /data/log || :"), "the container to write")
    daemon.engine.stop()
    (place,) = daemon.mounted()
    before = len(daemon.machine.run("cat", f"{place}/log"))
    until(lambda: len(daemon.machine.run("cat", f"{place}/log")) > before, "the container to write on")
    # The daemon may go and come as well meanwhile; it cannot ask the engine.
    daemon.kill()
    daemon.start()
    assert daemon.mounted() == [place]
    daemon.engine.start("--live-restore")
    assert "alive" in daemon.engine.exec("busy", "cat /data/log")
    daemon.engine.docker("rm", "-f", "busy")
    daemon.all_unmounted()
    daemon.engine.docker("volume", "rm", "web")


def test_an_engine_that_was_killed_uses_nothing_twice(daemon: Daemon) -> None:
    _restarted(daemon, *_SOON)
    daemon.create("web")
    daemon.create("logs")
    daemon.engine.detached("always", "web:/data", options=("--restart", "always"), sh="echo hello > /data/a")
    daemon.engine.detached("once", "logs:/data", sh="echo hello > /data/a")
    until(lambda: daemon.engine.exec("once", "cat /data/a || :") == "hello", "the container to write")
    for _ in range(2):
        daemon.engine.kill()
        daemon.engine.start()
        _back(daemon, "always")
        assert daemon.engine.exec("always", "cat /data/a") == "hello"
    # `always` was mounted with one id several times, and `once` never unmounted.
    if not _running(daemon, "once"):
        daemon.engine.docker("start", "once")
    daemon.engine.docker("rm", "-f", "once")
    daemon.engine.docker("volume", "rm", "logs")
    assert daemon.engine.exec("always", "cat /data/a") == "hello"
    daemon.engine.docker("rm", "-f", "always")
    daemon.all_unmounted()
    daemon.engine.docker("volume", "rm", "web")
    assert daemon.names() == []


#: What systemd does with a socket unit and a service of its name: it listens, and hands that over. The service is
#: started once /run/go is there, and has the socket as fd 3.
_SYSTEMD = """
import os, socket, sys, time
path, *command = sys.argv[1:]
os.makedirs(os.path.dirname(path), exist_ok=True)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(100)
while not os.path.exists("/run/go"):
    time.sleep(0.01)
if listener.fileno() != 3:
    os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="plugin", LISTEN_PID=str(os.getpid()))
os.execvp(command[0], command)
"""


def test_an_engine_waits_for_the_daemon_where_systemd_listens_for_it(daemon: Daemon) -> None:
    daemon.create("web", "size=1G")
    daemon.engine.detached("always", "web:/data", options=("--restart", "always"), sh="echo hello > /data/a")
    daemon.engine.stop()
    daemon.stop()
    daemon.begin(by=(sys.executable, "-c", _SYSTEMD, PLUGIN_SOCKET))
    until(lambda: daemon.machine.path(PLUGIN_SOCKET).exists(), "the socket")
    daemon.engine.begin()
    # It is asking now, and nobody answers.
    until(lambda: _waits(daemon), "the engine to ask for its volumes")
    daemon.machine.run("touch", "/run/go")
    daemon.ready()
    daemon.engine.ready()
    _back(daemon, "always")
    assert daemon.engine.exec("always", "cat /data/a") == "hello"
    assert daemon.names() == ["web"]
    assert daemon.engine.inspect("volume", "web")["Options"] == {"size": "1G"}
    # The socket is systemd's, who goes on to listen.
    daemon.stop()
    assert daemon.machine.path(PLUGIN_SOCKET).exists()


def _waits(daemon: Daemon) -> bool:
    """Whether somebody is connected to the plugin's socket, or waits to be."""
    lines = daemon.machine.path("/proc/1/net/unix").read_text().splitlines()
    return len([line for line in lines if line.endswith(f" {PLUGIN_SOCKET}")]) > 1


@pytest.mark.slow
def test_volumes_are_back_although_the_engine_gave_up_waiting_for_the_daemon(daemon: Daemon) -> None:
    daemon.create("web", "size=1G")
    daemon.engine.docker("create", "--name", "busy", "-v", "web:/data", "busybox", "cat", "/data/a")
    daemon.engine.run("web:/data", sh="echo hello > /data/a")
    daemon.engine.stop()
    daemon.stop()
    daemon.engine.start()
    assert 'plugin "fusevol" not found' in daemon.engine.refused("start", "busy")
    # What is not found is taken for the image by the command, unless it is told to look for none.
    words = ("run", "--pull=never", "--rm", "--volume-driver", DRIVER, "-v", "web:/data", "busybox", "true")
    assert 'plugin "fusevol" not found' in daemon.engine.refused(*words)
    daemon.start()
    assert daemon.names() == ["web"]
    assert daemon.engine.docker("start", "-a", "busy") == "hello"
    assert daemon.engine.inspect("volume", "web")["Options"] == {"size": "1G"}


# -- the machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["daemon", "engine"])
def test_after_a_reboot_all_is_there_whoever_starts_first(daemon: Daemon, first: str) -> None:
    engine, machine = daemon.engine, daemon.machine
    daemon.create("web", "size=1G", "sticky=true")
    daemon.create("copy", "from=web")
    engine.detached("always", "web:/data", options=("--restart", "always"))
    engine.detached("once", "web:/data")
    engine.exec("always", "echo hello > /data/a; echo nightly > /data/.fusevol/snapshot")
    machine.power_off()
    machine.boot()
    if first == "daemon":
        daemon.start()
        assert daemon.mounted() == []
        engine.start()
    else:
        engine.begin()
        daemon.start()
        engine.ready()
    assert daemon.names() == ["copy", "web"]
    assert engine.inspect("volume", "web")["Options"] == {"size": "1G", "sticky": "true"}
    assert daemon.status("web")["size"] == 1 << 30
    assert daemon.json("inspect", "web")["sticky"] is True
    engine.docker("volume", "rm", "copy")
    if not _running(daemon, "always"):
        # An engine that found no driver has given up on it.
        engine.docker("start", "always")
    assert engine.exec("always", "cat /data/a; ls /data/.fusevol/snapshots") == "hello\nnightly"
    engine.docker("start", "once")
    engine.docker("rm", "-f", "always")
    assert engine.exec("once", "cat /data/a") == "hello"
    engine.docker("rm", "-f", "once")
    daemon.all_unmounted()


def test_when_all_processes_die_at_once_the_next_daemon_takes_dead_mounts_away(daemon: Daemon) -> None:
    daemon.create("web")
    daemon.engine.detached("busy", "web:/data")
    daemon.engine.exec("busy", "echo hello > /data/a; sync /data/a")
    daemon.engine.kill()
    daemon.kill()
    for pid in daemon.machine.processes("fusevol.mount.process") + daemon.machine.processes("trap"):
        os.kill(pid, signal.SIGKILL)
    daemon.start(*_SOON)
    daemon.engine.start()
    daemon.engine.docker("start", "busy")
    assert daemon.engine.exec("busy", "cat /data/a") == "hello"
    daemon.engine.docker("rm", "-f", "busy")
    daemon.all_unmounted()
