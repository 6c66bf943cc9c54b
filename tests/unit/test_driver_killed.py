"""A process that dies between any two steps of an operation leaves something that the next one copes with."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from fusevol.api import Source, VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver
from fusevol.errors import AlreadyExists, VolumeNotFound
from fusevol.home import Home
from tests.unit.killed import OPERATIONS

#: The volumes there are in the end. At first there is `web` with a snapshot; for `delete-clone` also a clone of `db`.
WANTED = {
    "create": {"web", "new"},
    "clone": {"web", "new"},
    "clone-live": {"web", "new"},
    "snapshot": {"web"},
    "restore": {"web"},
    "rename": {"new"},
    "delete": set(),
    "delete-snapshot": {"web"},
    "delete-clone": {"web", "db"},
}

Run = Callable[[Path, str, int], str]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run an operation in a process that dies before a step of it; tell how that ended."""
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.killed"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert program.stdin
    assert program.stdout
    stdin, stdout = program.stdin, program.stdout

    def run(home: Path, operation: str, step: int) -> str:
        stdin.write(json.dumps({"home": str(home), "operation": operation, "step": step}) + "\n")
        stdin.flush()
        return stdout.readline().strip()

    yield run
    program.communicate()


@pytest.fixture
def template(tmp_path: Path, operation: str) -> Path:
    home = tmp_path / "template"

    async def make() -> None:
        async with LocalDriver(Home(home)) as driver:
            web = await driver.create(VolumeLocator(name="web"), None, VolumeSpec())
            async with driver.context.hold(web) as volume, driver.context.writing(volume) as log:
                await log.write(b"x" * 4096, 1 << 50)
            await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="before"))
            if operation == "delete-clone":
                db = await driver.create(VolumeLocator(name="db"), None, VolumeSpec())
                await driver.create(VolumeLocator(name="copy"), Source(parent=db), VolumeSpec())

    trio.run(make)
    return home


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_may_die_before_any_of_its_steps(run: Run, template: Path, tmp_path: Path, operation: str) -> None:
    step, outcome = 0, "killed"
    while outcome == "killed":
        step += 1
        home = tmp_path / str(step)
        shutil.copytree(template, home)
        outcome = run(home, operation, step)
        assert outcome in ("killed", "done"), step
        trio.run(_recover, home, operation, f"step {step}")
    assert step > 3


async def _recover(home: Path, operation: str, where: str) -> None:
    """Do the operation again, and look for leftovers and damage."""
    async with LocalDriver(Home(home)) as driver:
        # An error means that it had been done: what it was to make is there, or what it was to delete is not.
        with suppress(AlreadyExists, VolumeNotFound):
            await OPERATIONS[operation](driver)
        for volume, _ in await driver.store.volumes():
            await driver.upkeep.gc(volume)
            assert (await driver.upkeep.check(volume)).problems == (), where
        overview = await driver.upkeep.overview()
        assert overview.problems == (), where
        assert overview.in_use == (), where
        await _is_as_wanted(driver, operation, where)


async def _is_as_wanted(driver: LocalDriver, operation: str, where: str) -> None:
    names = {volume.locator.name for volume, _ in await driver.store.volumes()}
    snapshots: dict[str, list[Any]] = {
        volume.locator.name: [item.locator.name for item in await driver.snapshots.of(volume)]
        for volume, _ in await driver.store.volumes()
    }
    assert names == WANTED[operation], where
    if operation == "snapshot":
        assert snapshots["web"] == ["before", "new"], where
    elif operation == "delete-snapshot":
        assert snapshots["web"] == [], where
    elif operation == "delete-clone":
        assert snapshots["db"] == [], where
    elif operation == "clone-live":
        # Those taken for clones that never came to be are gone.
        assert len(snapshots["web"]) == 2, where
