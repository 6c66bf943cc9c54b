"""Machines with Docker on them, and with fusevol as well."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docker.daemon import Daemon
from tests.docker.engine import IMAGE, NEEDED, Engine
from tests.docker.machine import Machine


@contextmanager
def _engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="fusevol-docker-", dir="/var/tmp", ignore_cleanup_errors=True) as place:
        disk = Path(place, "disk")
        disk.mkdir()
        machine = Machine(disk)
        engine = Engine(machine)
        try:
            machine.boot()
            engine.start()
            engine.import_image()
            yield engine
        finally:
            machine.power_off()
            engine.close()


@pytest.fixture(autouse=True, scope="session")
def _possible() -> None:
    """Skip all of these tests where no engine can run, and say why."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in NEEDED if shutil.which(name, path=path) is None]:
        pytest.skip(
            f"Docker's engine cannot run here: not installed: {', '.join(missing)} (scripts/setup installs them)"
        )
    if os.geteuid() != 0:
        pytest.skip("Docker's engine cannot run here: it takes root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("Docker's engine could run here, but there is no /dev/fuse")
    try:
        with _engine() as engine:
            engine.docker("run", "--rm", IMAGE, "echo", "hello")
    except (OSError, AssertionError) as error:
        pytest.skip(f"Docker's engine cannot run here: {' '.join(str(error).split())[:500]}")


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A machine with an engine for one test."""
    with _engine() as engine:
        yield engine


@contextmanager
def _daemon() -> Iterator[Daemon]:
    with _engine() as engine:
        daemon = Daemon(engine)
        daemon.start()
        yield daemon


@pytest.fixture(scope="module")
def shared() -> Iterator[Daemon]:
    """A machine with an engine and fusevol for all tests of a module. They leave no containers behind."""
    with _daemon() as daemon:
        yield daemon


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A machine with an engine and fusevol for one test, which may do with them what it likes."""
    with _daemon() as daemon:
        yield daemon


@pytest.fixture
def tidied(shared: Daemon) -> Iterator[Daemon]:
    """The machine of a module, which has neither volumes nor containers when the test begins, nor when it has ended."""
    yield shared
    docker = shared.engine.docker
    if containers := docker("ps", "-aq").split():
        docker("rm", "-f", *containers)
    shared.all_unmounted()
    while volumes := shared.rest("GET", "/v1/volumes").json["volumes"]:
        # Clones go before what they are of.
        assert [volume for volume in volumes if _removed(shared, volume["name"])], volumes
    if left := docker("volume", "ls", "-q").split():
        docker("volume", "rm", "-f", *left)


def _removed(daemon: Daemon, name: str) -> bool:
    url = f"/v1/volumes/{name}"
    daemon.rest("PATCH", url, {"sticky": False})
    for snapshot in daemon.rest("GET", f"{url}/snapshots").json["snapshots"]:
        daemon.rest("DELETE", f"{url}/snapshots/{snapshot['name']}")
    return daemon.rest("DELETE", url).status == 204
