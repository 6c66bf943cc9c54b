"""A machine with Docker on it, and one with fusevol as well."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def shared_engine() -> Iterator[Engine]:
    """A machine with an engine for all tests of a module, which leave no containers behind."""
    with _engine() as engine:
        yield engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A machine with an engine for one test."""
    with _engine() as engine:
        yield engine
