"""Upper bounds on reads and writes per second, for the requests of one mount.

Each bound has a clock of its own that says when the next request may begin, and which every request puts forward by
what it costs. So requests begin in the order in which they came, and none waits for longer than those before it cost.
After a pause the clock is at most a tenth of a second behind: that much may come at once.
"""

from collections.abc import Callable
from math import inf

import trio

from fusevol.api.types import IoThrottle

__all__ = ["Throttle"]

_BURST_SECONDS = 0.1
_MEGABYTE = 1_000_000


class _Bound:
    """At most `rate` units a second; anything where that is 0."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._next = -inf

    def begin(self, now: float, cost: int) -> float:
        """When a request of that many units may begin, which comes at `now`."""
        if not self._rate:
            return now
        begin = max(self._next, now - _BURST_SECONDS)
        self._next = begin + cost / self._rate
        return begin


class Throttle:
    """The bounds of one mount, which can be changed at any time; who waits then goes by the new ones.

    Where writes wait, a task has to be at `run`.

    told: called after each change.
    """

    def __init__(self, limits: IoThrottle | None = None) -> None:
        self.told: Callable[[], None] = lambda: None
        self._changed = trio.Event()
        self.set(limits or IoThrottle())

    def set(self, limits: IoThrottle) -> None:
        """Go by these bounds from now on."""
        self.limits = limits
        self._reads = _Bound(limits.read_iops), _Bound(limits.read_bw_mbytes * _MEGABYTE)
        self._writes = _Bound(limits.write_iops), _Bound(limits.write_bw_mbytes * _MEGABYTE)
        before, self._changed = self._changed, trio.Event()
        before.set()
        self.told()

    async def run(self) -> None:
        """Lift all bounds when this is cancelled: unmounting needs the writes that wait."""
        try:
            await trio.sleep_forever()
        finally:
            self.set(IoThrottle())

    async def read(self, size: int) -> None:
        """Wait until so many bytes may be read. Does not yield to other tasks where they may be now."""
        while await self._again(*self._reads, size):
            pass

    async def write(self, size: int) -> None:
        """Wait until so many bytes may be written, likewise."""
        while await self._again(*self._writes, size):
            pass

    async def _again(self, requests: _Bound, bytes_: _Bound, size: int) -> bool:
        """Wait by these bounds; whether they were changed meanwhile."""
        now = trio.current_time()
        wait = max(requests.begin(now, 1), bytes_.begin(now, size)) - now
        if wait <= 0:
            return False
        with trio.move_on_after(wait):
            await self._changed.wait()
            return True
        return False
