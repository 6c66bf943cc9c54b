"""Runs that go the same way every time: a seeded scheduler, a clock that jumps, backends that dawdle, or go on alone.

Trio shuffles the tasks that are ready, with a random generator of its own. Its switch for tests (the one
that Hypothesis uses) orders them first; seeding the generator then makes a run repeatable. Both are private
to trio, so this module is the only place that touches them; where a version of trio has them no more, `run`
still works, and a failing seed may need a few attempts to fail again (`REPEATABLE` says so).
"""

import importlib
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio
from trio.testing import MockClock

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Manifest, Started
from fusevol.backends.wrappers.wrapper import Wrapper

__all__ = ["REPEATABLE", "Dawdling", "GoingOn", "run"]

T = TypeVar("T")

_scheduler: Any = importlib.import_module("trio._core._run")
_SWITCH = "_ALLOW_DETERMINISTIC_SCHEDULING"

#: Whether the same seed gives the same run.
REPEATABLE = hasattr(_scheduler, _SWITCH) and isinstance(getattr(_scheduler, "_r", None), random.Random)


def run(function: Callable[..., Awaitable[T]], *args: Any, seed: object) -> T:
    """`trio.run` with a scheduler seeded by `seed`, and a clock on which sleeping takes no time."""
    if not REPEATABLE:
        return trio.run(function, *args, clock=MockClock(autojump_threshold=0))
    before, state = getattr(_scheduler, _SWITCH), _scheduler._r.getstate()
    setattr(_scheduler, _SWITCH, True)
    _scheduler._r.seed(f"{seed}")
    try:
        return trio.run(function, *args, clock=MockClock(autojump_threshold=0))
    finally:
        setattr(_scheduler, _SWITCH, before)
        _scheduler._r.setstate(state)


class Dawdling(Wrapper):
    """Lets other tasks run, now more and now less often, before and after each call; answers no read at once.

    So calls of a MemoryBackend take time, overlap, and return in another order than they began. One that is
    cancelled has had no effect.
    """

    _TURNS = (0, 0, 1, 2, 5, 20)

    def __init__(self, inner: Backend, seed: object) -> None:
        super().__init__(inner)
        self._random = random.Random(f"{seed}")

    async def _dawdle(self, *, done: bool = False) -> None:
        with trio.CancelScope(shield=done):
            for _ in range(self._random.choice(self._TURNS)):
                await trio.lowlevel.checkpoint()

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Dawdle and forward."""
        await self._dawdle()
        data = await self.inner.read(volume_id, size, offset)
        await self._dawdle(done=True)
        return data

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Answer every other time."""
        return self.inner.read_nowait(volume_id, size, offset) if self._random.random() < 0.5 else None

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Dawdle and forward."""
        await self._dawdle()
        written = await self.inner.write(volume_id, data, offset)
        await self._dawdle(done=True)
        return written

    async def flush(self, volume_id: str) -> None:
        """Dawdle and forward."""
        await self._dawdle()
        await self.inner.flush(volume_id)
        await self._dawdle(done=True)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Dawdle and forward."""
        await self._dawdle()
        await self.inner.discard(volume_id, length, offset)
        await self._dawdle(done=True)

    async def get_manifest(self, volume_id: str) -> Manifest:
        """Dawdle and forward."""
        await self._dawdle()
        manifest = await self.inner.get_manifest(volume_id)
        await self._dawdle(done=True)
        return manifest

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """Dawdle and forward."""
        await self._dawdle()
        version = await self.inner.put_manifest(volume_id, data, if_version)
        await self._dawdle(done=True)
        return version


class GoingOn(Wrapper):
    """Takes every other write that it may, to go on with it alone, as the kernel does with those to a file."""

    def __init__(self, inner: Backend, seed: object) -> None:
        super().__init__(inner)
        self._random = random.Random(f"{seed}")

    def start_write(self, volume_id: str, data: Buffer, offset: int, *, alone: bool = False) -> Started | None:
        """Take it or leave it."""
        return None if self._random.random() < 0.5 else _Taken(self.inner, volume_id, data, offset)


class _Taken(Started):
    """A write that goes on, whether or not anybody waits for it."""

    def __init__(self, store: Backend, volume_id: str, data: Buffer, offset: int) -> None:
        self._done = trio.Event()
        self._written = 0
        self._error: Exception | None = None
        trio.lowlevel.spawn_system_task(self._write, store, volume_id, data, offset)

    async def _write(self, store: Backend, volume_id: str, data: Buffer, offset: int) -> None:
        try:
            self._written = await store.write(volume_id, data, offset)
        except Exception as error:  # noqa: BLE001  # for whoever asks
            self._error = error
        self._done.set()

    async def finished(self) -> int:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._written
