"""Who uses a volume, and how often: what dockerd says to the daemon, in every order, and with a daemon that dies."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.docker.daemon import Daemon
from tests.e2e.harness import seed, until


def _mount(daemon: Daemon, use: str) -> str:
    answer = daemon.plugin("VolumeDriver.Mount", {"Name": "web", "ID": use})
    assert answer["Err"] == ""
    return str(answer["Mountpoint"])


def _unmount(daemon: Daemon, use: str) -> None:
    assert daemon.plugin("VolumeDriver.Unmount", {"Name": "web", "ID": use}) == {"Err": ""}


@pytest.fixture
def daemon(tidied: Daemon) -> Daemon:
    """The machine of all tests in here, with a volume."""
    tidied.create("web")
    return tidied


def test_an_id_that_is_mounted_twice_is_unmounted_twice(daemon: Daemon) -> None:
    place = _mount(daemon, "a")
    assert _mount(daemon, "a") == place
    _unmount(daemon, "a")
    assert daemon.mounted() == [place]
    _unmount(daemon, "a")
    daemon.all_unmounted()


def test_each_id_is_counted_by_itself_in_any_order(daemon: Daemon) -> None:
    chance = random.Random(seed())
    uses = ["a", "b", "a", "c", "b", "a"]
    for use in uses:
        place = _mount(daemon, use)
    chance.shuffle(uses)
    while uses:
        assert daemon.mounted() == [place]
        _unmount(daemon, uses.pop())
    daemon.all_unmounted()


def test_to_unmount_what_was_not_mounted_takes_nothing_from_others(daemon: Daemon) -> None:
    _unmount(daemon, "nobody")
    place = _mount(daemon, "a")
    for _ in range(3):
        _unmount(daemon, "nobody")
        _unmount(daemon, "b")
    assert daemon.mounted() == [place]
    assert daemon.plugin("VolumeDriver.Path", {"Name": "web"}) == {"Mountpoint": place, "Err": ""}
    _unmount(daemon, "a")
    _unmount(daemon, "a")
    daemon.all_unmounted()
    assert daemon.plugin("VolumeDriver.Path", {"Name": "web"}) == {"Mountpoint": "", "Err": ""}


def test_many_who_mount_at_once_get_one_mount(daemon: Daemon) -> None:
    with ThreadPoolExecutor(8) as threads:
        places = set(threads.map(lambda number: _mount(daemon, f"id{number}"), range(16)))
        assert len(places) == len(daemon.mounted()) == len(daemon.machine.processes("fusevol.mount.process")) == 1
        list(threads.map(lambda number: _unmount(daemon, f"id{number}"), range(16)))
    daemon.all_unmounted()


def test_mounts_and_unmounts_that_overlap_end_as_the_last_one_says(daemon: Daemon) -> None:
    def flutter(number: int) -> None:
        for _ in range(4):
            _mount(daemon, f"id{number}")
            _unmount(daemon, f"id{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(flutter, range(4)))
    daemon.all_unmounted()
    # A use that came while another one was going is there for all that.
    place = _mount(daemon, "a")
    assert daemon.machine.call("touch", f"{place}/file").status == 0
    _unmount(daemon, "a")


def test_what_the_host_is_busy_in_is_unmounted_once_it_is_not(daemon: Daemon) -> None:
    daemon.stop()
    daemon.start("--stale-after", "1")
    daemon.engine.detached("busy", "web:/data")
    (place,) = daemon.mounted()
    sleeper = daemon.machine.start("bash", "-c", f"cd {place}; exec sleep 1000")
    until(lambda: os.readlink(f"/proc/{sleeper.pid}/cwd") == place, "somebody to be there")
    daemon.engine.docker("rm", "-f", "busy")
    assert "web" in daemon.engine.refused("volume", "rm", "web")
    assert daemon.engine.run("web:/data", sh="echo hello > /data/a; cat /data/a") == "hello"
    sleeper.kill()
    daemon.all_unmounted()
    daemon.stop()
    daemon.start()


@contextlib.contextmanager
def _dying(daemon: Daemon, chance: random.Random) -> Iterator[list[float]]:
    """The daemon is killed again and again meanwhile, and started again at once as systemd does. Gives the kills."""
    over, kills, errors = threading.Event(), list[float](), list[BaseException]()

    def kill() -> None:
        try:
            while not over.wait(chance.uniform(0.1, 1.5)):
                daemon.kill()
                kills.append(time.monotonic())
                daemon.start("--stale-after", "2")
        except BaseException as error:
            errors.append(error)
            raise

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield kills
    finally:
        over.set()
        thread.join()
    assert errors == []


@pytest.mark.slow
@pytest.mark.parametrize("containers", [3, 40], ids=["few", "many"])
def test_containers_come_and_go_while_the_daemon_dies_again_and_again(daemon: Daemon, containers: int) -> None:
    engine, chance = daemon.engine, random.Random(seed())
    daemon.create("logs")
    engine.detached("stays", "web:/data", sh="echo here > /data/here")
    daemon.stop()
    daemon.start("--stale-after", "2")

    def life(number: int) -> None:
        # Whatever the daemon was about when it died may have failed; then it is done once more.
        name, volumes = f"c{number}", ["web:/a", "logs:/b"][: chance.randint(1, 2)]
        until(lambda: _tried(daemon, name, volumes), f"{name} to be started")
        engine.exec(name, f"echo {name} >> /a/log")
        until(lambda: engine.call("rm", "-f", name).status == 0, f"{name} to be removed")

    with _dying(daemon, chance) as kills, ThreadPoolExecutor(2) as threads:
        list(threads.map(life, range(containers)))
    print(f"{len(kills)} kills")
    assert engine.exec("stays", "cat /data/here") == "here"
    # What was counted too much goes by itself; what is used stays.
    until(lambda: len(daemon.mounted()) == 1, "the other volume to be unmounted")
    assert sorted(engine.exec("stays", "cat /data/log").split()) == sorted(f"c{n}" for n in range(containers))
    engine.docker("rm", "-f", "stays")
    daemon.all_unmounted()
    engine.docker("volume", "rm", "web", "logs")
    daemon.stop()
    daemon.start()


def _tried(daemon: Daemon, name: str, volumes: list[str]) -> bool:
    words = [word for volume in volumes for word in ("-v", volume)]
    if daemon.engine.call("run", "-d", "--init", "--name", name, *words, "busybox", "sleep", "100000").status == 0:
        return True
    daemon.engine.call("rm", "-f", name)
    return False
