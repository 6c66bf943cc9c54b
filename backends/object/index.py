"""Which objects hold the bytes of a volume. Plain bookkeeping: nothing here waits or talks to a store."""

import re
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["MAX_OBJECT", "Index", "Stored"]

#: The longest object that is written. It bounds how far before a byte an object holding it may start.
MAX_OBJECT = 64 * 1024 * 1024

_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})")

Run = tuple[int, int]


@dataclass(slots=True, eq=False)
class Stored:
    """One object: a range of the volume's bytes, of which some runs may be dead (discarded)."""

    offset: int
    length: int
    dead: list[Run] = field(default_factory=list)
    #: Being deleted or rewritten; whoever does it looks again when done.
    busy: bool = False
    #: The index's clock when the object was added.
    added: int = 0

    @classmethod
    def parse(cls, name: str) -> "Stored | None":
        """The object of that name; None if the name is not one of an object."""
        match = _NAME.fullmatch(name)
        return cls(int(match[1], 16), int(match[2], 16)) if match else None

    @property
    def name(self) -> str:
        """The last part of the object's path. Names sort as offsets do."""
        return f"{self.offset:016x}-{self.length:08x}"

    @property
    def end(self) -> int:
        """The first offset after the object."""
        return self.offset + self.length

    def bury(self, start: int, stop: int) -> bool:
        """Mark a range as dead; say whether that was news."""
        start, stop = max(start, self.offset), min(stop, self.end)
        if start >= stop or any(a <= start and stop <= b for a, b in self.dead):
            return False
        merged: list[Run] = []
        for run in sorted([*self.dead, (start, stop)]):
            if merged and run[0] <= merged[-1][1]:
                merged[-1] = merged[-1][0], max(run[1], merged[-1][1])
            else:
                merged.append(run)
        self.dead = merged
        return True

    def live(self) -> list[Run]:
        """The runs that are not dead, in order."""
        edges = [self.offset, *(edge for run in self.dead for edge in run), self.end]
        return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]

    def live_size(self) -> int:
        """Bytes that are not dead."""
        return self.length - sum(stop - start for start, stop in self.dead)


class Index:
    """The objects of a volume by offset.

    Objects may overlap: after a crash in the middle of a rewrite, an object and its pieces are both
    there, with the same bytes.
    """

    def __init__(self) -> None:
        self._keys: list[Run] = []
        self._objects: dict[Run, Stored] = {}
        self.size = 0
        #: The highest end ever seen. It does not move back when objects go.
        self.end = 0
        #: Counts additions, so that a listing can tell what came after it began.
        self.clock = 0

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Stored]:
        return iter([self._objects[key] for key in self._keys])

    def find(self, offset: int, length: int) -> Stored | None:
        """The object with exactly that range."""
        return self._objects.get((offset, length))

    def add(self, stored: Stored) -> Stored:
        """Add an object, or return the one of the same name that is there."""
        key = stored.offset, stored.length
        known = self._objects.get(key)
        if known is not None:
            return known
        insort(self._keys, key)
        self._objects[key] = stored
        self.clock += 1
        stored.added = self.clock
        self.size += stored.length
        self.end = max(self.end, stored.end)
        return stored

    def remove(self, stored: Stored) -> None:
        """Forget an object; no harm if it is not there."""
        key = stored.offset, stored.length
        if self._objects.get(key) is stored:
            del self._objects[key]
            del self._keys[bisect_left(self._keys, key)]
            self.size -= stored.length

    def overlapping(self, start: int, stop: int) -> list[Stored]:
        """The objects with a byte in the range, by offset."""
        first = bisect_left(self._keys, (start - MAX_OBJECT, 0))
        last = bisect_left(self._keys, (stop, 0))
        found = (self._objects[key] for key in self._keys[first:last])
        return [stored for stored in found if stored.end > start]

    def cover(self, start: int, stop: int) -> tuple[list[tuple[Stored, int, int]], list[Run]]:
        """How to read a range: parts of objects, in order and without overlap, and the holes between."""
        parts: list[tuple[Stored, int, int]] = []
        holes: list[Run] = []
        at = start
        for stored in self.overlapping(start, stop):
            if at >= stop:
                break
            if stored.end <= at:
                continue
            if stored.offset > at:
                holes.append((at, stored.offset))
                at = stored.offset
            until = min(stop, stored.end)
            parts.append((stored, at, until))
            at = until
        if at < stop:
            holes.append((at, stop))
        return parts, holes
