"""Processes that end, by SIGKILL, before a step of theirs that was chosen beforehand.

A step is a call that changes the records, a backend's bytes or the mounts, or that starts a process or says that one
is ready. Which process counts its steps, and which one then dies, is in a file (a `Doom`), whose path is in the
environment of all of them. Nothing is counted while there is no such file.
"""

import os
import shutil
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from fusevol.backends.file import FileBackend
from fusevol.driver import server
from fusevol.mount import process, syscalls
from fusevol.mount.process import Arguments
from fusevol.store import SqliteStore

__all__ = ["DOOM", "Doom", "count_steps", "serve_mount", "serve_snapshot_mount"]

#: The environment variable with the path of the file.
DOOM = "FUSEVOL_TEST_DOOM"

#: What changes something; of the store's calls those with `write=True`.
_METHODS: dict[type, tuple[str, ...]] = {
    SqliteStore: ("_run",),
    FileBackend: ("create", "delete", "put_manifest", "write", "flush", "discard"),
}


class Doom(msgspec.Struct, frozen=True, kw_only=True):
    """Who counts its steps, "driver" or "server"; before which step, from 1; the pid that dies then, 0 for itself."""

    counts: str
    step: int
    victim: int = 0

    def announce(self, path: Path) -> None:
        """From now on it counts."""
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(self))
        new.rename(path)

    @staticmethod
    def fulfilled(path: Path) -> bool:
        """Whether the step was reached."""
        return path.with_suffix(".done").exists()


class _Steps:
    def __init__(self, me: str) -> None:
        self._me = me
        self._path = Path(os.environ[DOOM])
        self._done = 0

    def step(self) -> None:
        try:
            doom = msgspec.json.decode(self._path.read_bytes(), type=Doom)
        except FileNotFoundError:
            return
        if doom.counts != self._me:
            return
        self._done += 1
        if self._done == doom.step:
            self._path.with_suffix(".done").touch()
            os.kill(doom.victim or os.getpid(), signal.SIGKILL)


def count_steps(me: str) -> Callable[[], None]:
    """Have all steps of this process counted, which is called `me`; return what counts one more."""
    steps = _Steps(me)

    def counted(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **named: Any) -> Any:
            if method.__name__ != "_run" or named.get("write"):
                steps.step()
            return await method(*arguments, **named)

        return call

    def counted_function(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            steps.step()
            return function(*arguments, **named)

        return call

    for kind, names in _METHODS.items():
        for name in names:
            setattr(kind, name, counted(getattr(kind, name)))
    for module, name in ((syscalls, "mount"), (syscalls, "umount2"), (process, "spawn"), (shutil, "rmtree")):
        setattr(module, name, counted_function(getattr(module, name)))
    return steps.step


_serve_mount, _serve_snapshot_mount = server.serve_mount, server.serve_snapshot_mount


async def serve_mount(arguments: Arguments, ready: Callable[[], None]) -> None:
    """The entry of that name in `fusevol.driver.server`, with its steps counted as those of "server"."""
    await _serve_mount(arguments, _counted_ready(ready))


async def serve_snapshot_mount(arguments: Arguments, ready: Callable[[], None]) -> None:
    """The entry of that name in `fusevol.driver.server`, with its steps counted as those of "server"."""
    await _serve_snapshot_mount(arguments, _counted_ready(ready))


def _counted_ready(ready: Callable[[], None]) -> Callable[[], None]:
    step = count_steps("server")

    def counted() -> None:
        step()
        ready()

    return counted
