"""Runs operations of the driver in processes of which one dies before the n-th step of one.

A program: it reads lines of JSON, the arguments of `_run`, runs each in a process forked for it, and answers `killed`,
`done` or `failed`. The process that runs the operation is the "driver"; it may start a "server" for a mount. counts,
step: before which step of which of the two. victim: which of them dies; the driver, or whoever counts.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from fusevol.api import LocatorUpdate, Source, SpecUpdate, VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver, server
from fusevol.errors import FusevolError
from fusevol.home import Home
from tests.unit.doomed import DOOM, Doom, count_steps, serve_mount, serve_snapshot_mount

__all__ = ["LAST", "MOUNTED", "OPERATIONS", "mountpoint"]

#: Written to the file `last` of a mount, and not synced.
LAST = b"what was written last\n" * 1000


async def _create(driver: LocalDriver) -> None:
    await driver.create(VolumeLocator(name="new"), None, VolumeSpec(size=1 << 20), exist_ok=False)


async def _clone(driver: LocalDriver) -> None:
    source = Source(parent=(await driver.resolve("web@before")).id)
    await driver.create(VolumeLocator(name="new"), source, VolumeSpec(), exist_ok=False)


async def _clone_live(driver: LocalDriver) -> None:
    source = Source(parent=(await driver.resolve("web")).id)
    await driver.create(VolumeLocator(name="new"), source, VolumeSpec(), exist_ok=False)


async def _snapshot(driver: LocalDriver) -> None:
    volume = await driver.resolve("web")
    await driver.snapshot(volume.id, readonly=True, locator=VolumeLocator(name="new"))


async def _restore(driver: LocalDriver) -> None:
    volume, snapshot = await driver.resolve("web"), await driver.resolve("web@before")
    await driver.restore(volume.id, snapshot.id)


async def _rename(driver: LocalDriver) -> None:
    await driver.set((await driver.resolve("web")).id, LocatorUpdate(name="new"), None)


async def _delete(driver: LocalDriver) -> None:
    await driver.delete((await driver.resolve("web")).id, with_snapshots=True)


async def _delete_snapshot(driver: LocalDriver) -> None:
    await driver.delete((await driver.resolve("web@before")).id)


async def _delete_clone(driver: LocalDriver) -> None:
    await driver.delete((await driver.resolve("copy")).id)


async def _mount(driver: LocalDriver) -> None:
    await driver.mounting.mount((await driver.resolve("web")).id, mountpoint(driver))


async def _mount_and_write(driver: LocalDriver) -> None:
    await _mount(driver)
    await trio.to_thread.run_sync((Path(mountpoint(driver)) / "last").write_bytes, LAST)


async def _unmount(driver: LocalDriver) -> None:
    await driver.mounting.unmount((await driver.resolve("web")).id)


async def _mount_snapshot(driver: LocalDriver) -> None:
    await driver.mounting.mount((await driver.resolve("web@before")).id, mountpoint(driver))


async def _unmount_snapshot(driver: LocalDriver) -> None:
    await driver.mounting.unmount((await driver.resolve("web@before")).id)


async def _resize(driver: LocalDriver) -> None:
    await driver.set((await driver.resolve("web")).id, None, SpecUpdate(size=1 << 30))


def mountpoint(driver: LocalDriver) -> str:
    """Where volumes of a state directory are mounted here."""
    return f"{driver.context.home.path}.mnt"


OPERATIONS: dict[str, Callable[[LocalDriver], Awaitable[None]]] = {
    "create": _create,
    "clone": _clone,
    "clone-live": _clone_live,
    "snapshot": _snapshot,
    "restore": _restore,
    "rename": _rename,
    "delete": _delete,
    "delete-snapshot": _delete_snapshot,
    "delete-clone": _delete_clone,
}

#: Those with mounts; first the volume is mounted, and what is before the operation is done.
MOUNTED: dict[str, tuple[Callable[[LocalDriver], Awaitable[None]] | None, Callable[[LocalDriver], Awaitable[None]]]] = {
    "mount": (None, _mount),
    "unmount": (_mount_and_write, _unmount),
    "mount-snapshot": (None, _mount_snapshot),
    "unmount-snapshot": (_mount_snapshot, _unmount_snapshot),
    "snapshot": (_mount_and_write, _snapshot),
    "restore": (_mount_and_write, _restore),
    "clone-live": (_mount_and_write, _clone_live),
    "delete-snapshot": (_mount_and_write, _delete_snapshot),
    "resize": (_mount_and_write, _resize),
}


def _run(home: str, operation: str, step: int, counts: str, victim: str, mounted: bool) -> None:
    path = Path(home + ".doom")
    os.environ[DOOM] = str(path)
    before, work = MOUNTED[operation] if mounted else (None, OPERATIONS[operation])
    doom = Doom(counts=counts, step=step, victim=os.getpid() if victim == "driver" else 0)

    async def main() -> None:
        async with LocalDriver(Home(home)) as driver:
            if before:
                await before(driver)
            doom.announce(path)
            await work(driver)

    server.serve_mount, server.serve_snapshot_mount = serve_mount, serve_snapshot_mount
    count_steps("driver")
    trio.run(main)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 2
            try:
                _run(**request)
                status = 0
            except FusevolError as error:
                print(error, file=sys.stderr)
                status = 1
            except BaseException:  # noqa: BLE001  what users would see as a traceback
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        _, result = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(result) and os.WTERMSIG(result) == signal.SIGKILL
        status = os.waitstatus_to_exitcode(result)
        print("killed" if killed else {0: "done", 1: "failed"}.get(status, "crashed"), flush=True)


if __name__ == "__main__":
    main()
