"""Putting objects over a line that may be slow, or break."""

from collections.abc import Awaitable, Callable
from time import monotonic

import trio

from fusevol.errors import BackendError

__all__ = ["Uploads"]

#: At once, of one volume: as many batches as a log has on their way, and more where others write as well.
_MOST = 8
#: How often the same is tried, the seconds before the second time, and after how many no more is begun.
_TRIES = 5
_PAUSE = 0.2
_PATIENCE = 60.0


class Uploads:
    """Tries uploads again, and fewer at once where they fail: together they may take longer than the client waits.

    What is tried must do no harm when it is done twice.
    """

    def __init__(self) -> None:
        self._slots = trio.CapacityLimiter(_MOST)
        self._width = float(_MOST)

    async def persist(self, upload: Callable[[], Awaitable[None]]) -> None:
        """Upload. Raises what it failed with at last; at once, where that is no failure of line or store."""
        began, pause = monotonic(), _PAUSE
        for left in reversed(range(_TRIES)):
            try:
                async with self._slots:
                    await upload()
            except BackendError as error:
                self._resize(self._width / 2)
                # Of its kinds (no space, missing, damaged) none goes away by itself.
                if type(error) is not BackendError or not left or monotonic() - began > _PATIENCE:
                    raise
                await trio.sleep(pause)
                pause *= 2
            else:
                self._resize(self._width + 1 / 4)
                return

    def _resize(self, width: float) -> None:
        self._width = min(max(width, 1.0), _MOST)
        self._slots.total_tokens = int(self._width)
