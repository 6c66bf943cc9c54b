"""Holding changes back for a while, so that a volume stays as it is while somebody looks at it or copies it.

    open ── hold() ──> held ── end(): unquiesced, time is over, too many wait, the mount ends ──> open

Requests that change something come through `enter` and `leave`. While changes are held they wait in `enter`;
everything else goes on. How long that lasts is bounded: whoever asked for it may be gone, and what waits is
other people's programs.
"""

import errno
from collections.abc import Awaitable, Callable
from math import inf, isfinite
from typing import Any

import trio

__all__ = ["DEFAULT_SECONDS", "LONGEST_SECONDS", "Quiesce", "parse_seconds"]

#: For how long changes are held where nobody says otherwise, and at most.
DEFAULT_SECONDS = 60.0
LONGEST_SECONDS = 3600.0

#: How often to look whether there still is a mount, in seconds. The kernel tells nobody that it is being unmounted
#: until all it holds has been written.
_LOOK_SECONDS = 0.1


def parse_seconds(text: str) -> float:
    """What was written to `quiesce`, in seconds. Raises OSError(EINVAL) for what is none, or out of bounds."""
    try:
        seconds = float(text or DEFAULT_SECONDS)
    except ValueError:
        raise OSError(errno.EINVAL, "not a number of seconds") from None
    if not isfinite(seconds) or not 0 < seconds <= LONGEST_SECONDS:
        raise OSError(errno.EINVAL, f"not between 0 and {LONGEST_SECONDS:g} seconds")
    return seconds


class Quiesce:
    """Whether changes are held back, for how long, and who waits. A task has to be at `run` meanwhile.

    gone: whether the mount is being unmounted, or was aborted. widen: has the kernel send more requests at once than
    usual (True), or as many as usual again; must not raise. most: how many changes may wait; each of them occupies
    one of the tasks that also serve reads, and the command that would end it.
    """

    def __init__(self, gone: Callable[[], bool], widen: Callable[[bool], Awaitable[None]], most: int) -> None:
        self._gone = gone
        self._widen = widen
        self._most = most
        self._begun = trio.Event()
        #: Set when changes may go on; None while they may.
        self._open: trio.Event | None = None
        self._deadline = inf
        self._under_way = 0
        self._drained = trio.Event()
        #: How many changes wait.
        self.waiting = 0
        #: Why changes were let go on last, in words; None before that.
        self.ended: str | None = None

    @property
    def held(self) -> bool:
        """Whether changes are held back now."""
        return self._open is not None

    # -- those who change something ---------------------------------------------------------------

    async def allowed(self) -> None:
        """Wait until changes may go on. Does not yield to other tasks where they may."""
        while self._open is not None:
            if self.waiting >= self._most:
                self.end("too many changes waited")
                return
            self.waiting += 1
            try:
                await self._open.wait()
            finally:
                self.waiting -= 1

    def enter(self) -> None:
        """A change begins; without an await since `allowed`."""
        self._under_way += 1

    def leave(self) -> None:
        """A change is over."""
        self._under_way -= 1
        if not self._under_way:
            self._drained.set()

    # -- those who want none ----------------------------------------------------------------------

    async def hold(self, seconds: float) -> None:
        """Hold changes back from now on, for so many seconds at most; return when none is under way any more.

        Where they are held already it is prolonged: the later of both ends counts.
        """
        self.prolong(seconds)
        while self._under_way:
            self._drained = trio.Event()
            await self._drained.wait()

    def confirm(self, seconds: float) -> None:
        """The seconds begin now. Raises OSError(ECANCELED) where changes were let go on since `hold`."""
        if not self.held:
            raise OSError(errno.ECANCELED, self.ended or "let go on")
        self.prolong(seconds)

    def prolong(self, seconds: float) -> None:
        """Hold changes back until so many seconds from now, or later where that was agreed."""
        until = trio.current_time() + seconds
        if self._open is None:
            self._open = trio.Event()
            self._deadline = until
            self.ended = None
            self._begun.set()
        self._deadline = max(self._deadline, until)

    def end(self, why: str) -> None:
        """Let all changes go on. Does nothing where they do."""
        if self._open is not None:
            self.ended = why
            self._open.set()
            self._open = None
            self._begun = trio.Event()

    async def run(self) -> None:
        """See to it that holding ends with its time, with the mount, and when this is cancelled."""
        try:
            while True:
                await self._begun.wait()
                # Else what the kernel writes of its own accord would, waiting here, keep it from reading ahead.
                await self._widen(True)
                while self.held:
                    left = self._deadline - trio.current_time()
                    if left <= 0:
                        self.end("its time was over")
                    elif self._gone():
                        self.end("the mount ended")
                    else:
                        await trio.sleep(min(left, _LOOK_SECONDS))
                await self._widen(False)
        finally:
            self.end("the mount ended")

    def state(self) -> dict[str, Any]:
        """As a JSON object. seconds_left: until changes go on by themselves; 0 where they do."""
        left = max(0.0, self._deadline - trio.current_time()) if self.held else 0.0
        return {"quiesced": self.held, "seconds_left": round(left, 3), "waiting": self.waiting, "ended": self.ended}
