"""Keeping space from being given back under those who still read it."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

__all__ = ["Readers"]


class Readers:
    """Tickets of operations that hold addresses across an await.

    What a commit frees may still be on the way to somebody who looked its address up before; `passed`
    waits for those, and for nobody who came later.
    """

    def __init__(self) -> None:
        self._next = 0
        self._active: set[int] = set()
        self._left = trio.Event()

    @contextmanager
    def ticket(self) -> Iterator[None]:
        """Hold addresses while inside."""
        number = self._next
        self._next += 1
        self._active.add(number)
        try:
            yield
        finally:
            self._active.remove(number)
            self._left.set()
            self._left = trio.Event()

    async def passed(self) -> None:
        """Wait until everybody who is inside now has left."""
        last = self._next
        while any(number < last for number in self._active):
            await self._left.wait()
