"""A crowd of processes that all do everything with the same few volumes, and a look at what they leave behind.

A program, too: `python -m tests.e2e.crowd PLACE SECONDS SEED` is one of them; it prints its `Tally` as JSON.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from fusevol.api import LocatorUpdate, SpecUpdate, Volume, VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import server_of
from fusevol.driver.mounts import is_ours, mount_at
from fusevol.driver.snapmounts import servers
from fusevol.errors import BackendError, FusevolError, VolumeNotFound
from fusevol.home import Home
from fusevol.mount.mounttable import mounts
from fusevol.testing.driver import remove_all
from tests.e2e.harness import Bench

__all__ = ["Tally", "add", "crowd", "look"]

NAMES = [f"v{number}" for number in range(10)]
SNAPSHOTS = [f"s{number}" for number in range(3)]
#: Seconds after which an operation counts as hanging.
_PATIENCE = 120.0


class Tally(msgspec.Struct, kw_only=True):
    """What became of the operations: how often each was done, or failed with which error; and what must not be.

    slowest: seconds that the longest one of each kind took.
    """

    outcomes: dict[str, dict[str, int]] = {}
    slowest: dict[str, float] = {}
    problems: list[str] = []

    def count(self, operation: str, outcome: str) -> None:
        """One more."""
        found = self.outcomes.setdefault(operation, {})
        found[outcome] = found.get(outcome, 0) + 1


def add(tallies: list[Tally]) -> Tally:
    """All of them in one."""
    total: dict[str, Counter[str]] = {}
    for tally in tallies:
        for operation, outcomes in tally.outcomes.items():
            total.setdefault(operation, Counter()).update(outcomes)
    return Tally(
        outcomes={operation: dict(total[operation]) for operation in sorted(total)},
        slowest={operation: max(tally.slowest.get(operation, 0.0) for tally in tallies) for operation in total},
        problems=[problem for tally in tallies for problem in tally.problems],
    )


# -- one of them ----------------------------------------------------------------------------------------


class _Member:
    def __init__(self, place: Path, seed: int) -> None:
        self._place = place
        self._rng = random.Random(seed)
        self._driver: LocalDriver

    async def live(self, seconds: float) -> Tally:
        """Do one thing after the other, at random."""
        tally, deadline = Tally(), trio.current_time() + seconds
        work: dict[str, Callable[[], Awaitable[object]]] = {
            "create": self._create, "mount": self._mount, "unmount": self._unmount, "write": self._write,
            "snapshot": self._snapshot, "restore": self._restore, "delete": self._delete, "clone": self._clone,
            "rename": self._rename, "resize": self._resize, "delete-snapshot": self._delete_snapshot,
            "mount-snapshot": self._mount_snapshot, "unmount-snapshot": self._unmount_snapshot, "gc": self._gc,
            "reconcile": self._reconcile,
        }  # fmt: skip
        often = {"create": 2, "delete": 2, "mount": 4, "unmount": 3, "write": 3, "snapshot": 2, "reconcile": 0.3}
        weights = [often.get(operation, 1) for operation in work]
        while trio.current_time() < deadline:
            [operation] = self._rng.choices(list(work), weights)
            began = trio.current_time()
            try:
                with trio.fail_after(_PATIENCE):
                    async with LocalDriver(Home(self._place / "home"), command=f"crowd {operation}") as self._driver:
                        await work[operation]()
            except FusevolError as error:
                tally.count(operation, type(error).__name__)
                if isinstance(error, BackendError):
                    # Nothing is wrong with the disk, and no process was killed.
                    tally.problems.append(f"{operation}: {type(error).__name__}: {error}")
            except OSError as error:
                tally.count(operation, type(error).__name__)
                if operation != "write":
                    tally.problems.append(f"{operation}: {error!r}")
            except trio.TooSlowError:
                tally.problems.append(f"{operation} has not ended after {_PATIENCE:g} seconds")
            except Exception:  # noqa: BLE001  what users would see as a traceback
                tally.problems.append(f"{operation}: {traceback.format_exc()}")
            else:
                tally.count(operation, "done")
            tally.slowest[operation] = max(tally.slowest.get(operation, 0.0), trio.current_time() - began)
        return tally

    async def _volume(self) -> Volume:
        return await self._driver.resolve(self._rng.choice(NAMES))

    async def _of(self, volume: Volume) -> Volume:
        """One of the volume's snapshots."""
        found = await self._driver.snapshots.of(volume)
        if not found:
            raise VolumeNotFound("there are no snapshots")
        return self._rng.choice(found)

    def _path(self) -> str:
        return str(self._place / "mnt" / self._rng.choice(NAMES))

    async def _create(self) -> None:
        size = self._rng.choice([0, 1 << 26])
        locator = VolumeLocator(name=self._rng.choice(NAMES))
        await self._driver.create(locator, None, VolumeSpec(size=size), exist_ok=self._rng.random() < 0.5)

    async def _mount(self) -> None:
        await self._driver.mounting.mount((await self._volume()).id, self._path(), again=self._rng.random() < 0.3)

    async def _unmount(self) -> None:
        volume = await self._volume()
        paths = [*volume.attach_path, ""]
        await self._driver.mounting.unmount(volume.id, self._rng.choice(paths))

    async def _write(self) -> None:
        volume = await self._volume()
        if volume.attach_path:
            path, data = volume.attach_path[0], self._rng.randbytes(self._rng.choice([100, 100_000]))
            await trio.to_thread.run_sync(_write_to, path, self._rng.choice("abc"), data)

    async def _snapshot(self) -> None:
        locator = VolumeLocator(name=self._rng.choice(SNAPSHOTS))
        await self._driver.snapshot((await self._volume()).id, readonly=True, locator=locator)

    async def _restore(self) -> None:
        volume = await self._volume()
        await self._driver.restore(volume.id, (await self._of(volume)).id)

    async def _delete(self) -> None:
        await self._driver.delete((await self._volume()).id, with_snapshots=self._rng.random() < 0.5)

    async def _clone(self) -> None:
        source = await self._volume()
        if self._rng.random() < 0.5:
            source = await self._of(source)
        await self._driver.snapshot(source.id, readonly=False, locator=VolumeLocator(name=self._rng.choice(NAMES)))

    async def _rename(self) -> None:
        await self._driver.set((await self._volume()).id, LocatorUpdate(name=self._rng.choice(NAMES)), None)

    async def _resize(self) -> None:
        size = self._rng.choice([0, 1 << 26, 1 << 27])
        await self._driver.set((await self._volume()).id, None, SpecUpdate(size=size))

    async def _delete_snapshot(self) -> None:
        await self._driver.delete((await self._of(await self._volume())).id)

    async def _mount_snapshot(self) -> None:
        await self._driver.mounting.mount((await self._of(await self._volume())).id, self._path())

    async def _unmount_snapshot(self) -> None:
        snapshot = await self._of(await self._volume())
        await self._driver.mounting.unmount(snapshot.id, self._rng.choice([*snapshot.attach_path, ""]))

    async def _gc(self) -> None:
        await self._driver.upkeep.gc(await self._volume())

    async def _reconcile(self) -> None:
        lines = (await self._driver.reconcile()).lines
        # Whoever deletes a clone drops the snapshot that was taken for it right after, and not at the same moment.
        if wrong := [line for line in lines if "@clone-" not in line]:
            raise AssertionError(f"there was something to put in order: {wrong}")


def _write_to(path: str, name: str, data: bytes) -> None:
    """Write to a file of a mount, durably; nothing where it is not mounted any more."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if os.fstat(directory).st_dev == os.stat(os.path.dirname(path)).st_dev:
            return
        fd = os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=directory)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
    finally:
        os.close(directory)


# -- all of them ----------------------------------------------------------------------------------------


def crowd(bench: Bench, count: int, seconds: float, seed: int) -> Tally:
    """Let `count` processes live for so many seconds; return what became of what they did."""
    for name in NAMES:
        (bench.place / "mnt" / name).mkdir(parents=True, exist_ok=True)
    members = [
        bench.start(
            sys.executable, "-m", "tests.e2e.crowd", bench.place, str(seconds), str(seed * 100 + number),
            cwd=Path(__file__).parents[2], env={"OPENBLAS_NUM_THREADS": "1"},
        )
        for number in range(count)
    ]  # fmt: skip
    said = [bench.finish(member, seconds + 2 * _PATIENCE) for member in members]
    return add([msgspec.json.decode(text.splitlines()[-1], type=Tally) for text in said])


async def look(bench: Bench) -> list[str]:
    """What is wrong with what a crowd left; then everything is unmounted, checked and deleted, and looked at again."""
    async with LocalDriver(Home(bench.place / "home"), command="look") as driver:
        problems = [f"to be put in order: {line}" for line in (await driver.reconcile()).lines]
        records = await driver.store.enumerate()
        paths = [path for record in records for path in record.attach_path]
        problems += [f"{path} is not mounted, but recorded so" for path in paths if not is_ours(mount_at(path))]
        problems += [f"{path} is mounted, but not recorded" for path in bench.mountpoints() if str(path) not in paths]
        serving = {server.pid for record in records for server in servers(record).values()}
        serving |= {server.pid for record in records if (server := server_of(record))}
        problems += [f"process {pid} serves nothing" for pid in bench.servers() if pid not in serving]
        overview = await driver.upkeep.overview()
        problems += [*overview.problems, *(f"held by {lock}" for lock in overview.in_use)]
        for volume, _ in await driver.store.volumes():
            found = await driver.upkeep.check(volume)
            problems += [f"{volume.locator.name}: {problem.what}" for problem in found.problems]
        await remove_all(driver)
    problems += [f"still mounted: {mount}" for mount in mounts() if mount.mountpoint.is_relative_to(bench.place)]
    with trio.move_on_after(30):
        while bench.servers():  # noqa: ASYNC110  they are nobody's children here
            await trio.sleep(0.01)
    problems += [f"still running: {pid}" for pid in bench.servers()]
    left = await trio.to_thread.run_sync(_files, bench.place)
    return problems + [f"still there: {path}" for path in left]


def _files(place: Path) -> list[Path]:
    """What is left of volumes: anything but the records, directories to mount on, and what the pool is made of."""
    home = place / "home"
    known = (home, home / "volumes", home / "log", home / "config.toml", place / "image")
    return [
        path
        for path in sorted(place.rglob("*"))
        if path.name not in ("fusevol.db", "fusevol.db-wal", "fusevol.db-shm")
        and path.relative_to(place).parts[0] != "mnt"
        and path not in known
    ]


def main() -> None:
    place, seconds, seed = sys.argv[1:]
    tally = trio.run(_Member(Path(place), int(seed)).live, float(seconds))
    with suppress(BrokenPipeError):
        print(msgspec.json.encode(tally).decode(), flush=True)


if __name__ == "__main__":
    main()
