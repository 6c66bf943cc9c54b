"""A process that dies between any two steps of an operation leaves something that the next one copes with.

Each operation is run again and again; each time a process dies one step later, until all steps are done. By default
some of the steps are tried, drawn by a seed that is printed; the slow tests try all of them.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fusevol.api import Source, VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver
from fusevol.driver.context import LEFTOVER
from fusevol.errors import AlreadyExists, VolumeBusy, VolumeDetached, VolumeNotFound
from fusevol.home import Home
from fusevol.mount.mounttable import mounts
from tests.e2e.harness import seed
from tests.unit.doomed import DOOM, Doom
from tests.unit.killed import LAST, MOUNTED, OPERATIONS, mountpoint

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")

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
#: Whose steps are counted, and who dies before one of them.
DEATHS = [("driver", "driver"), ("server", "driver"), ("server", "server")]
#: No operation has as many.
_MANY = 100
#: Of how many steps one is tried, where not all are.
_STRIDE = 6
_SECONDS = 60.0

Run = Callable[..., str]


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

    def run(home: Path, operation: str, step: int, death: tuple[str, str] = DEATHS[0], mounted: bool = False) -> str:
        counts, victim = death
        request = {"home": str(home), "operation": operation, "step": step, "counts": counts, "victim": victim}
        stdin.write(json.dumps(request | {"mounted": mounted}) + "\n")
        stdin.flush()
        return stdout.readline().strip()

    yield run
    program.communicate()


def steps(complete: bool) -> Iterator[int]:
    """The steps to be tried."""
    if complete:
        return iter(range(1, _MANY))
    return iter(range(random.Random(seed()).randrange(1, _STRIDE + 1), _MANY, _STRIDE))


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
@pytest.mark.parametrize("complete", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["sampled", "complete"])
def test_an_operation_may_die_before_any_of_its_steps(
    run: Run, template: Path, tmp_path: Path, operation: str, complete: bool
) -> None:
    for step in steps(complete):
        home = tmp_path / str(step)
        shutil.copytree(template, home)
        outcome = run(home, operation, step)
        assert outcome in ("killed", "done"), step
        trio.run(_recover, home, operation, f"step {step}")
        if outcome == "done":
            break
    assert outcome == "done"
    assert step > 3


async def _recover(home: Path, operation: str, where: str) -> None:
    """Do the operation again, and look for leftovers and damage."""
    async with LocalDriver(Home(home)) as driver:
        # An error means that it had been done: what it was to make is there, or what it was to delete is not.
        with suppress(AlreadyExists, VolumeNotFound):
            await OPERATIONS[operation](driver)
        await _is_sound(driver, where)
        await _is_as_wanted(driver, operation, where)


async def _is_sound(driver: LocalDriver, where: str) -> None:
    await driver.reconcile()
    pool = driver.context.home.path / "volumes"
    assert set(await trio.to_thread.run_sync(os.listdir, pool)) == set(await driver.context.backend("default").list())
    for volume, _ in await driver.store.volumes():
        await driver.upkeep.gc(volume)
        assert (await driver.upkeep.check(volume)).problems == (), where
    overview = await driver.upkeep.overview()
    assert overview.problems == (), where
    assert overview.in_use == (), where


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


# -- with mounts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mounted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with the volume `web`, which holds the file `kept`, and its snapshot `before`."""
    home = tmp_path_factory.mktemp("once") / "template"

    async def make() -> None:
        async with LocalDriver(Home(home)) as driver:
            path = Path(mountpoint(driver))
            await trio.to_thread.run_sync(path.mkdir)
            web = await driver.create(VolumeLocator(name="web"), None, VolumeSpec(size=1 << 24))
            await driver.mounting.mount(web, str(path))
            await trio.to_thread.run_sync((path / "kept").write_text, "of before")
            await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="before"))
            await driver.mounting.unmount(web)

    trio.run(make)
    return home


@needs_fuse
@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS, ids=" of the ".join)
@pytest.mark.parametrize("operation", MOUNTED)
def test_a_process_may_die_before_any_step_of_what_is_done_with_a_mount(
    run: Run, mounted_once: Path, tmp_path: Path, operation: str, death: tuple[str, str]
) -> None:
    for step in steps(complete=True):
        if not _die_once(run, mounted_once, tmp_path / str(step), operation, death, step):
            break
    assert step > 1


@needs_fuse
@pytest.mark.parametrize("operation", MOUNTED)
def test_a_process_may_die_before_some_step_of_what_is_done_with_a_mount(
    run: Run, mounted_once: Path, tmp_path: Path, operation: str
) -> None:
    drawn = random.Random(f"{seed()} {operation}")
    death, step = drawn.choice(DEATHS), drawn.randint(1, 8)
    _die_once(run, mounted_once, tmp_path / str(step), operation, death, step)


def _die_once(run: Run, template: Path, home: Path, operation: str, death: tuple[str, str], step: int) -> bool:
    """Let a process die, put things in order, and look at them; return whether there was such a step."""
    where = f"{operation}: {death[1]} dies before step {step} of the {death[0]}"
    shutil.copytree(template, home)
    home.with_name(home.name + ".mnt").mkdir()
    outcome = run(home, operation, step, death, True)
    doom = home.with_name(home.name + ".doom")
    reached = Doom.fulfilled(doom)
    assert outcome != "crashed", where
    assert reached or outcome == "done", where
    # Whoever is left over lives on.
    doom.unlink(missing_ok=True)
    trio.run(_recover_mounted, home, operation, outcome, where)
    return reached


async def _recover_mounted(home: Path, operation: str, outcome: str, where: str) -> None:
    async with LocalDriver(Home(home)) as driver:
        path = Path(mountpoint(driver))
        if operation == "unmount" and outcome == "done":
            # That was a promise.
            assert await _content(driver, path) == {"kept": b"of before", "last": LAST}, where
        # Doing it again either works, or says that it was done, or needs what was done before it.
        await _insist(driver, operation)
        await _unmount_all(driver)
        # That a process was killed is a problem of the volume's until somebody mounts it again.
        found = await _content(driver, path)
        assert found.pop("kept") == b"of before", where
        assert found.pop("last", LAST) in (LAST, b""), where
        assert found == {}, where
        await _unmount_all(driver)
        await _is_sound(driver, where)
        records = {volume.id for volume, _ in await driver.store.volumes()}
        assert set(await driver.context.backend("default").list()) == records, where
        assert not [volume for volume, _ in await driver.store.volumes() if volume.state in LEFTOVER], where
        names = {item.locator.name for item in await driver.snapshots.of(await driver.resolve("web"))}
        if operation == "delete-snapshot":
            assert "before" not in names, where
        else:
            assert "before" in names, where
        assert ("new" in names) == (operation == "snapshot"), where
        if operation == "resize":
            assert (await driver.resolve("web")).spec.size == 1 << 30, where
    assert [mount for mount in mounts() if str(home) in str(mount.mountpoint)] == [], where
    deadline = time.monotonic() + _SECONDS
    while left := _servers(home):
        assert time.monotonic() < deadline, (where, left)
        await trio.sleep(0.01)


async def _insist(driver: LocalDriver, operation: str) -> None:
    """Do one of the operations, which may be done already."""
    await _try(lambda: MOUNTED[operation][1](driver))


async def _try(work: Callable[[], Awaitable[None]]) -> None:
    """Do it, as somebody does who tries again while a process that is left over is busy with it."""
    with trio.fail_after(_SECONDS):
        while True:
            try:
                await work()
            except VolumeBusy:
                await trio.sleep(0.05)
            except (AlreadyExists, VolumeNotFound, VolumeDetached):
                return
            else:
                return


async def _content(driver: LocalDriver, path: Path) -> dict[str, bytes]:
    """The files of the volume, mounted anew if it is not."""

    def read() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in path.iterdir()}

    await _insist(driver, "mount")
    try:
        return await trio.to_thread.run_sync(read)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise
    # The server had come to its step when it was told to live on.
    await _insist(driver, "mount")
    return await trio.to_thread.run_sync(read)


async def _unmount_all(driver: LocalDriver) -> None:
    for volume in await driver.enumerate():
        if volume.attached_on:
            await _try(partial(driver.mounting.unmount, volume.id))


def _servers(home: Path) -> list[str]:
    """The processes that are to do with a state directory, by their environment."""
    found, mark = [], f"{DOOM}={home}.doom".encode()
    for entry in os.listdir("/proc"):
        with suppress(OSError):
            if entry.isdigit() and mark in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                found.append(Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found
