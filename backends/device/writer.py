"""What one instance is about to change in a volume: where small writes will follow, and what is to be given back.

Only one instance changes the same place, ever: the log has addresses of its own for each that takes a volume over
(docs/format.md, "Attach"). So what one has still to give back cannot be what another one has written since.
"""

import mmap
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from fusevol.backends.ahead import AHEAD_BYTES, Ahead
from fusevol.backends.device.catalog import Catalog
from fusevol.backends.device.disk import BLOCK, Disk
from fusevol.backends.device.extents import Known
from fusevol.backends.device.space import QUIET, Space, Taken
from fusevol.backends.overwriter import Immediate, Overwritten
from fusevol.backends.systemcalls import is_aligned
from fusevol.errors import NoSpace

__all__ = ["Writer"]

_ZEROS = mmap.mmap(-1, AHEAD_BYTES)
#: So many ranges may wait to be given back.
_PENDING = 1024
#: And so many blocks, or a 64th of those that are free if that is less.
_MUCH, _SHARE = 4096, 64


class _Zone:
    """Zeros in the volume, and on the device: a write there needs no transaction. users: those under way."""

    def __init__(self, taken: Taken, shift: int) -> None:
        self.taken = taken
        self.shift = shift
        self.users = 0
        self.left = False


class Writer:
    """One volume. Calls block, but for `start_write`; all raise what the device, the space and the catalog do."""

    def __init__(self, known: Known, disk: Disk, space: Space, catalog: Catalog, relieve: Callable[[], None]) -> None:
        """relieve: gives back what there is to be given back."""
        self.known = known
        self._disk = disk
        self._space = space
        self._catalog = catalog
        self._relieve = relieve
        self._ahead = Ahead(worthwhile=disk.overwrites)
        self._guard = threading.RLock()
        self._zone: _Zone | None = None
        #: Disjoint ranges to be given back, and how many blocks there are in each; and those being given back.
        self._pending: dict[tuple[int, int], int] = {}
        self._leaving: list[tuple[int, int]] = []
        self._giving = threading.Lock()
        self._ended = False
        self._adopted = False

    # -- writing ----------------------------------------------------------------------------------

    def write(self, data: memoryview, offset: int) -> int:
        """Write whole blocks, durably; return how many bytes."""
        start, count = offset // BLOCK, len(data) // BLOCK
        while True:
            with self._ahead.writing:
                with self._guard:
                    # Writes come in any order: this one may be for what was given up as skipped.
                    if clear := not self._overlaps(start, count):
                        zone = self._use(offset, len(data))
                        worthwhile = zone is None and self._skip(offset, len(data))
                if clear and worthwhile and self._prepare(data, offset):
                    return len(data)
            # From now on nobody finds anything to be given back there, but who is told to.
            if clear:
                break
            self.give_back()
        if zone is None:
            done = 0
            while done < len(data):
                done += self._record(data[done:], offset + done)
            return done
        try:
            self._disk.write(data, offset + zone.shift, durable=True)
        finally:
            self._leave(zone)
        return len(data)

    def _record(self, data: memoryview, offset: int) -> int:
        """Write as much of it as one transaction can tell of; return how many bytes."""
        blocks = len(data) // BLOCK
        if offset < self.known.end * BLOCK:
            blocks = self._catalog.reach(self.known, offset // BLOCK, blocks)
        taken = self._take(blocks)
        try:
            done = 0
            for address, count in taken.runs:
                self._disk.write(data[done : done + count * BLOCK], address * BLOCK)
                done += count * BLOCK
            self._catalog.record(self.known, offset // BLOCK, taken.runs)
        finally:
            self._space.settle(taken)
        return done

    def _take(self, blocks: int) -> Taken:
        with suppress(NoSpace):
            return self._space.take(blocks)
        self._relieve()
        ends = time.monotonic() + 3 * QUIET
        while True:
            try:
                return self._space.take(blocks)
            except NoSpace:
                # What is free others may hold, who let go of it soon.
                if not self._catalog.free or time.monotonic() > ends:
                    raise
            time.sleep(QUIET / 20)

    # -- writing ahead ----------------------------------------------------------------------------

    def _prepare(self, data: memoryview, offset: int) -> bool:
        """Write, with zeros behind it that are to be written over; false where it is still to be written."""
        blocks = (len(data) + AHEAD_BYTES) // BLOCK
        end = self.known.end * BLOCK
        if offset + len(data) < end or self._overlaps(offset // BLOCK, blocks):
            return False  # there is something, or there was
        try:
            taken = self._space.take(blocks, together=True)
        except NoSpace:
            return False
        if taken.blocks < blocks or len(taken.runs) > 1:
            self._space.settle(taken)
            return False
        address = taken.runs[0][0] * BLOCK
        try:
            self._disk.write(data, address)
            self._disk.write(memoryview(_ZEROS), address + len(data))
            self._catalog.record(self.known, offset // BLOCK, taken.runs)
        except BaseException:
            self._space.settle(taken)
            raise
        with self._guard:
            self._retire()
            self._zone = _Zone(taken, address - offset)
            self._ahead.prepared(offset + len(data), offset + blocks * BLOCK)
            if self._ended or self._overlaps(offset // BLOCK, blocks):
                self._retire()
        return True

    def _use(self, offset: int, size: int) -> _Zone | None:
        """The zone that a write is within, which stays until `_leave`."""
        with self._guard:
            if self._zone is None or not self._ahead.within(offset, size):
                return None
            self._skip(offset, size)
            self._zone.users += 1
            return self._zone

    def _skip(self, offset: int, size: int) -> bool:
        """A write begins. Zeros before it are of no use any more; return whether there should be some behind it."""
        start, end = self._ahead.unused
        wanted = self._ahead.note(offset, size)
        if start < end and start < offset + size:
            self._lose(start, min(offset, end))
        return wanted

    def _lose(self, start: int, end: int) -> None:
        """Zeros, from byte to byte, are to be given back."""
        if start < end:
            self._pending[start // BLOCK, (end - start) // BLOCK] = (end - start) // BLOCK

    def _leave(self, zone: _Zone) -> None:
        with self._guard:
            zone.users -= 1
            self._settle(zone)

    def _retire(self) -> None:
        """Nothing more goes to the zone: what of it is zeros still is to be given back."""
        self._lose(*self._ahead.unused)
        self._ahead.forget()
        if self._zone is not None:
            self._zone.left = True
            self._settle(self._zone)
            self._zone = None

    def _settle(self, zone: _Zone) -> None:
        if zone.left and not zone.users:
            self._space.settle(zone.taken)

    def start(self, data: memoryview, offset: int, immediate: Immediate) -> Overwritten | None:
        """Write to the zone here and now; None where it would not be there, or could not be expected to be quick."""
        # In this order: a zone is used up by those who use it, whether they write there or not.
        if self._zone is None or not is_aligned(data, offset) or not immediate.quick():
            return None
        if (zone := self._use(offset, len(data))) is None:
            return None
        try:
            return immediate.write(self._disk.direct, data, offset + zone.shift)
        finally:
            self._leave(zone)

    @property
    def prepared_blocks(self) -> int:
        """How many blocks are zeros for writes to come."""
        start, end = self._ahead.unused
        return (end - start) // BLOCK

    def retire(self) -> None:
        """Nobody writes here any more, for now: what was prepared is to be given back. Does not wait."""
        with self._guard:
            self._retire()
            # Others may write meanwhile.
            self._adopted = False

    def end(self) -> None:
        """The volume is not there any more. Does not wait."""
        with self._guard:
            self._ended = True
            self._retire()

    def close(self) -> None:
        """Give back what was prepared, and what is to be given back."""
        self.retire()
        self.give_back()

    # -- giving back ------------------------------------------------------------------------------

    @property
    def pending_blocks(self) -> int:
        """How many blocks are to be given back."""
        with self._guard:
            return sum(self._pending.values())

    def _overlaps(self, start: int, count: int) -> bool:
        with self._guard:
            ranges = [*self._pending, *self._leaving] if self._pending or self._leaving else ()
        return any(first < start + count and start < first + length for first, length in ranges)

    def _is_prepared(self, start: int, count: int) -> bool:
        low, high = self._ahead.unused
        return low < (start + count) * BLOCK and start * BLOCK < high

    def discard(self, start: int, count: int) -> None:
        """Have a range given back with the next flush, or now if there is much to be given back."""
        while True:
            with self._guard:
                if self._is_prepared(start, count):
                    self._retire()
            if self._overlaps(start, count) or len(self._pending) >= _PENDING:
                self.give_back()
            blocks = self._catalog.mapped(self.known, start, count)
            with self._guard:
                # Somebody may have written there meanwhile, and prepared some more.
                if not self._is_prepared(start, count) and not self._overlaps(start, count):
                    if blocks:
                        self._pending[start, count] = blocks
                    break
        # No flush need follow, and others may have need of it.
        if self.pending_blocks >= min(_MUCH, self._catalog.free // _SHARE):
            self.give_back()

    def give_back(self) -> None:
        """Give back what is to be, durably."""
        with self._giving:
            with self._guard:
                pending, self._pending = self._pending, {}
                self._leaving = [*pending]
            try:
                self._catalog.unmap(self.known, self._leaving)
            except BaseException:
                with self._guard:
                    self._pending |= {left: pending[left] for left in self._leaving}
                raise
            finally:
                with self._guard:
                    self._leaving = []

    @property
    def clean(self) -> bool:
        """Whether a flush has nothing to do."""
        return self._adopted and not self._pending and not self._giving.locked()

    def flush(self) -> None:
        """Make durable what earlier owners wrote, and give back what is to be."""
        self.give_back()
        if not self._adopted:
            self._disk.sync()
            self._adopted = True
