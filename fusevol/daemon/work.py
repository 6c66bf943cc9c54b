"""Operations on volumes: one at a time for each volume, and nobody waits for one without end.

A store that hangs must hang nobody but its own volume's callers, and those not for ever. So an operation runs in a
task of its own, which is not cancelled when the caller gives up: half of a mount helps nobody. It ends when it can.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

from fusevol.errors import VolumeBusy

__all__ = ["Call", "Work"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class Call(Generic[T]):
    """An operation that somebody waits for. given_up: not any more."""

    def __init__(self) -> None:
        self.given_up = False
        self._done = trio.Event()
        self._value: list[T] = []
        self._error: Exception | None = None

    async def run(self, operation: "Callable[[Call[T]], Awaitable[T]]") -> Exception | None:
        """Do it, and keep what comes of it; return the error if it was one."""
        try:
            self._value.append(await operation(self))
        except Exception as error:  # noqa: BLE001  raised where it is waited for
            self._error = error
        finally:
            self._done.set()
        return self._error

    async def wait(self) -> T:
        """What came of it."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value[0]


class Work:
    """Runs operations in a nursery. patience: seconds that a caller waits for one."""

    def __init__(self, nursery: trio.Nursery, *, patience: float) -> None:
        self.patience = patience
        self._nursery = nursery
        self._locks: dict[str, trio.Lock] = {}

    def busy(self, name: str) -> bool:
        """Whether an operation on that volume is under way."""
        return name in self._locks

    async def on(
        self, name: str, what: str, operation: Callable[[Call[T]], Awaitable[T]], *, must_run: bool = False
    ) -> T:
        """Run an operation on the volume of that name once those before it are through, and return its result.

        name: "" for one on all volumes, which waits for others of the same kind only. what: the operation, for an error
        and the log. must_run: it is done also where the caller gave up before its
        turn came. Raises what it raises, and VolumeBusy where it takes too long.
        """
        call: Call[T] = Call()

        async def task() -> None:
            # No volume has such a name.
            async with self._turn(name or f"@{what}"):
                if call.given_up and not must_run:
                    return
                error = await call.run(operation)
                if call.given_up:
                    log.info("%s: %s is over now: %s", name, what, error or "done")

        self._nursery.start_soon(task)
        with trio.move_on_after(self.patience):
            return await call.wait()
        call.given_up = True
        log.warning("%s: %s has taken more than %g seconds", name or "volumes", what, self.patience)
        whose = f'volume "{name}" does not answer' if name else "some volume does not answer"
        raise VolumeBusy(
            f"{whose}: {what} has taken more than {self.patience:g} seconds, and goes on",
            hint="fusevol status, and the logs of the state directory, may tell why",
        )

    def _turn(self, name: str) -> "_Turn":
        return _Turn(self._locks, name)


class _Turn:
    """Holds the lock of a name; the last to leave throws it away."""

    def __init__(self, locks: dict[str, trio.Lock], name: str) -> None:
        self._locks, self._name = locks, name

    async def __aenter__(self) -> None:
        await self._locks.setdefault(self._name, trio.Lock()).acquire()

    async def __aexit__(self, *_: object) -> None:
        lock = self._locks[self._name]
        lock.release()
        if not lock.statistics().tasks_waiting and not lock.locked():
            del self._locks[self._name]
