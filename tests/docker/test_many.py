"""Many containers at once, on few volumes."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.docker.daemon import Daemon
from tests.docker.engine import Engine
from tests.e2e.harness import seed, until

_AT_ONCE = 4


def _life(engine: Engine, number: int, volumes: list[str], steps: list[str]) -> None:
    name = f"c{number}"
    engine.detached(name, *(f"{volume}:/data/{volume}" for volume in volumes))
    for step in steps:
        if step == "exec":
            for volume in volumes:
                engine.exec(name, f"echo {name} >> /data/{volume}/log")
        elif step == "cp":
            engine.machine.run("docker", "cp", "/etc/hostname", f"{name}:/data/{volumes[0]}/{name}")
        else:
            engine.docker(step, name)
    engine.docker("rm", "-f", name)


@pytest.mark.parametrize(
    ("containers", "volumes"), [(6, 3), pytest.param(50, 20, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_containers_come_and_go_and_in_the_end_nothing_is_mounted(
    daemon: Daemon, containers: int, volumes: int
) -> None:
    chance = random.Random(seed())
    names = [f"v{number}" for number in range(volumes)]
    for name in names:
        daemon.create(name)
    lives = [
        (chance.sample(names, chance.randint(1, 3)), ["exec", *chance.choices(["restart", "cp", "kill", "stop"], k=2)])
        for _ in range(containers)
    ]
    daemon.engine.run(f"{names[0]}:/data", sh=":")
    files = _open_files(daemon)
    # What is killed or stopped cannot be copied to as running, but it can be copied to.
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        futures = [
            threads.submit(_life, daemon.engine, number, mounts, _sensible(steps))
            for number, (mounts, steps) in enumerate(lives)
        ]
        for future in futures:
            future.result()
    daemon.all_unmounted()
    for name in names:
        wanted = sorted(f"c{number}" for number, (mounts, _) in enumerate(lives) if name in mounts)
        assert sorted(daemon.engine.run(f"{name}:/data", sh="cat /data/log || :").split()) == wanted
    daemon.all_unmounted()
    for name in names:
        assert daemon.status(name)["state"] != "attached"
    # Connections of the engine's may be open for a while.
    until(lambda: _open_files(daemon) < files + containers / 2, "files of the daemon to be closed")
    daemon.engine.docker("volume", "rm", *names)
    assert daemon.names() == []


def _open_files(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.program.pid}/fd"))


def _sensible(steps: list[str]) -> list[str]:
    """Steps of which each is possible: what does not run cannot be killed."""
    done: list[str] = []
    for step in steps:
        if step == "kill" and {"kill", "stop"} & set(done):
            continue
        done.append(step)
    return done
