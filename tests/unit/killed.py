"""Runs operations of the driver in processes that die before their n-th step.

A program: it reads lines of JSON, `{"home", "operation", "step"}`, runs each in a process forked for it, and answers
`killed`, `done` or `failed`. A step is a call that changes the record store or a backend.
"""

import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from fusevol.api import LocatorUpdate, Source, VolumeLocator, VolumeSpec
from fusevol.backends.file import FileBackend
from fusevol.driver import LocalDriver
from fusevol.errors import FusevolError
from fusevol.home import Home
from fusevol.store import SqliteStore

__all__ = ["OPERATIONS"]


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

#: What changes something; of the store's calls those with `write=True`.
_STEPS: dict[type, tuple[str, ...]] = {
    SqliteStore: ("_run",),
    FileBackend: ("create", "delete", "put_manifest", "write", "flush"),
}


def _die_before(step: int) -> None:
    left = step

    def counted(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= named.get("write", method.__name__ != "_run")
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return await method(*arguments, **named)

        return call

    for kind, names in _STEPS.items():
        for name in names:
            setattr(kind, name, counted(getattr(kind, name)))


def _run(home: str, operation: str, step: int) -> None:
    async def main() -> None:
        async with LocalDriver(Home(home)) as driver:
            await OPERATIONS[operation](driver)

    _die_before(step)
    trio.run(main)


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _run(**request)
                status = 0
            except FusevolError as error:
                print(error, file=sys.stderr)
            finally:
                os._exit(status)
        _, result = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(result) and os.WTERMSIG(result) == signal.SIGKILL
        print("killed" if killed else "done" if result == 0 else "failed", flush=True)


if __name__ == "__main__":
    main()
