"""Where the blocks of a volume are on the device, as far as it is known in memory."""

from bisect import bisect_right
from collections.abc import Iterable

from fusevol.backends.base import NO_VERSION, Manifest

__all__ = ["WINDOW", "Extent", "Hole", "Known"]

#: Blocks of a volume whose extents are read from the tables, and kept, together: 64 MiB of it.
WINDOW = 1 << 14
_KEPT = 1024

#: (block of the volume, how many, where they are on the device), all in blocks.
Extent = tuple[int, int, int]
#: (block of the volume, how many) that are nowhere.
Hole = tuple[int, int]


class Known:
    """One volume, as the tables had it when they were last looked at.

    number: of the volume, never used again. changed: its mark, another one whenever anything of this is. end: behind
    its last block. blocks: how many it has.

    What is here is replaced, never changed: whoever reads is not waited for. So `changed` is replaced last.
    """

    def __init__(self, volume_id: str, number: int) -> None:
        self.id = volume_id
        self.number = number
        self.changed = b""
        self.manifest = Manifest(b"", NO_VERSION)
        self.blocks = self.end = 0
        self._windows: dict[int, list[Extent]] = {}

    def forget(self) -> None:
        """Others have changed something."""
        self._windows = {}

    def keep(self, window: int, extents: list[Extent]) -> None:
        """Those of a window, sorted; parts of extents where these go on in the next."""
        self._windows[window] = extents

    def make_room(self, windows: int) -> None:
        """For so many, where there are very many already."""
        if len(self._windows) + windows > _KEPT:
            self._windows = {}

    def missing(self, start: int, count: int) -> list[int]:
        """The windows of a range whose extents are not known."""
        windows = self._windows
        return [window for window in range(start // WINDOW, -(-(start + count) // WINDOW)) if window not in windows]

    def pieces(self, start: int, count: int) -> list[Extent | Hole] | None:
        """What a range consists of, in order; None where that is not known."""
        found: list[Extent | Hole] = []
        at, end = start, start + count
        while at < end:
            extents = self._windows.get(at // WINDOW)
            if extents is None:
                return None
            stop = min(end, (at // WINDOW + 1) * WINDOW)
            index = max(0, bisect_right(extents, at, key=_start) - 1)
            for first, length, address in extents[index:]:
                if first >= stop:
                    break
                low, high = max(first, at), min(first + length, stop)
                if low >= high:
                    continue
                if at < low:
                    found.append((at, low - at))
                found.append((low, high - low, address + low - first))
                at = high
            if at < stop:
                found.append((at, stop - at))
                at = stop
        return found

    def replace(self, start: int, count: int, extents: Iterable[Extent] = ()) -> None:
        """A range consists of these now, and of nothing else."""
        end = start + count
        new = list(extents)
        for window in [*self._windows]:
            low, high = window * WINDOW, (window + 1) * WINDOW
            if low < end and start < high:
                old = self._windows[window]
                kept = [part for extent in old for part in _without(extent, start, end)]
                kept += [part for extent in new for part in _within(extent, low, high)]
                self._windows[window] = sorted(kept)


def _start(extent: Extent) -> int:
    return extent[0]


def _within(extent: Extent, low: int, high: int) -> list[Extent]:
    first, length, address = extent
    start, end = max(first, low), min(first + length, high)
    return [(start, end - start, address + start - first)] if start < end else []


def _without(extent: Extent, low: int, high: int) -> list[Extent]:
    first, length, _ = extent
    return _within(extent, first, min(low, first + length)) + _within(extent, max(high, first), first + length)
