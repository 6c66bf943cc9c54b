"""The data path of a volume: reads and writes at byte offsets, through the live map to the log."""

from array import array
from collections.abc import Sequence

import numpy as np
import trio
from xxhash import xxh3_64_intdigest

from fusevol.api.io import Buffer
from fusevol.errors import InvalidArgument, ReadOnly, VolumeBusy
from fusevol.log.appender import Appender
from fusevol.log.batch import BUFFER_BYTES
from fusevol.log.extents import ExtentMap
from fusevol.log.format import BLOCK, BLOCK_SHIFT, FANOUT, FANOUT_BITS, LOGICAL_BLOCKS
from fusevol.log.reader import BlockReader
from fusevol.log.readers import Readers
from fusevol.log.runs import Run, fetch, fetch_nowait, runs_in, split
from fusevol.log.tree import Node, Words

__all__ = ["DataPath"]

_LIMIT = LOGICAL_BLOCKS << BLOCK_SHIFT
_MASK = BLOCK - 1
#: Up to so many blocks are mapped one by one: numpy takes longer to begin.
_FEW = 8


class DataPath:
    """The data path: logical bytes through the live map to the log, and back.

    gate: while it is set, the live map is about to be replaced; writers wait for it.
    data_blocks: own data blocks appended since the count was last taken.
    """

    def __init__(self, log: Appender | None, reader: BlockReader, live: ExtentMap) -> None:
        self._log = log
        self._reader = reader
        self.live = live
        self.readers = Readers()
        self.gate: trio.Event | None = None
        self.data_blocks = 0
        self._dead = array("Q")
        self._dead_rows: list[Words] = []

    # -- reading ----------------------------------------------------------------------------------

    def _pending(self, address: int, count: int) -> memoryview | None:
        return self._log.pending(address, count) if self._log else None

    def read_nowait(self, size: int, offset: int) -> Buffer | None:
        """Like `read`, but None where it would have to wait, or where something is damaged."""
        _check_range(size, offset)
        first = offset >> BLOCK_SHIFT
        count = ((offset + size + _MASK) >> BLOCK_SHIFT) - first
        if not count:
            return b""
        data = fetch_nowait(self.live.leaf_nowait, self._reader, self._pending, first, count)
        return data if data is None else _cut(data, offset & _MASK, size)

    async def read(self, size: int, offset: int) -> Buffer:
        """Return exactly `size` bytes from `offset`; what was never written or was discarded reads as zeros.

        Does not always yield to other tasks. Raises CorruptData, BackendError, InvalidArgument.
        """
        data = self.read_nowait(size, offset)
        if data is not None:
            return data
        first = offset >> BLOCK_SHIFT
        count = ((offset + size + _MASK) >> BLOCK_SHIFT) - first
        with self.readers.ticket():
            runs: list[Run] = []
            live = self.live
            for start, piece in split(first, count):
                runs += runs_in(await live.leaf(start >> FANOUT_BITS), start, piece)
            return _cut(await fetch(runs, self._reader, self._pending), offset & _MASK, size)

    # -- writing ----------------------------------------------------------------------------------

    def _writable(self) -> Appender:
        if self._log is None:
            raise ReadOnly(f'volume "{self._reader.volume_id}" is open for reading only')
        return self._log

    def write_nowait(self, data: Buffer, offset: int) -> bool:
        """Write whole blocks without waiting; False, with nothing written, if that cannot be done.

        Takes as many buffers as it needs: who writes much this way calls `throttle` in between.
        """
        return self.write_all_nowait([(data, offset)])

    def write_all_nowait(self, parts: Sequence[tuple[Buffer, int]]) -> bool:
        """As `write_nowait`, to several places at once."""
        log = self._writable()
        for data, offset in parts:
            _check_range(len(data), offset)
            if (offset | len(data)) & _MASK or self.gate is not None:
                return False
        log.check()
        placed = [(memoryview(data), split(at >> BLOCK_SHIFT, len(data) >> BLOCK_SHIFT)) for data, at in parts]
        for _, pieces in placed:
            for block, _ in pieces:
                if self.live.own(block >> FANOUT_BITS) is None:
                    return False
        for view, pieces in placed:
            at = 0
            for start, piece in pieces:
                block = start
                while block < start + piece:
                    count = min(start + piece - block, log.room())
                    self._put(log, self.live.dirty[block >> FANOUT_BITS], block, view[at : at + (count << BLOCK_SHIFT)])
                    block, at = block + count, at + (count << BLOCK_SHIFT)
        return True

    async def throttle(self) -> None:
        """Wait until the backend has kept up. Raises what writing failed with."""
        await self._writable().throttle()

    async def write(self, data: Buffer, offset: int) -> int:
        """Write `data` at `offset`; return its length. Durable after the next `flush` only.

        Does not always yield to other tasks. Whole blocks are cheapest; others are read, changed and
        written. Raises ReadOnly, NoSpace, BackendError, Fenced, InvalidArgument, CorruptData; blocks
        written before the error stay written.
        """
        log = self._writable()
        view = memoryview(data).cast("B")
        size = len(view)
        _check_range(size, offset)
        if (offset | size) & _MASK:
            return await self._write_unaligned(view, offset)
        at, block, end = 0, offset >> BLOCK_SHIFT, (offset + size) >> BLOCK_SHIFT
        live, admitted = self.live, 0
        while block < end:
            if at >= admitted:
                # Not in turn where there is room: whoever waited for that before would go to the end of the queue.
                if log.full():
                    await log.throttle()
                # Nor again before another batch is full: others would come in between.
                admitted = at + BUFFER_BYTES
            log.check()
            if self.gate is not None:
                await self.gate.wait()
                admitted = at
                continue
            self._check_still(live)
            leaf = self.live.own(block >> FANOUT_BITS)
            if leaf is None:
                await self._load(block >> FANOUT_BITS)
                admitted = at
                continue
            count = min(end - block, FANOUT - (block & (FANOUT - 1)), log.room())
            self._put(log, leaf, block, view[at : at + (count << BLOCK_SHIFT)])
            block, at = block + count, at + (count << BLOCK_SHIFT)
        return size

    def _put(self, log: Appender, leaf: Node, block: int, data: memoryview) -> None:
        """Map `data`, whole blocks within one leaf and the open batch's room, to fresh addresses."""
        batch, live = log.open, self.live
        if batch.empty:
            log.note_open()
        at = block & (FANOUT - 1)
        if len(data) == BLOCK:
            checksum = xxh3_64_intdigest(data)
            old = leaf.w[at]
            leaf.s[at] = checksum
            if old >= batch.first:
                batch.replace(old - batch.first, data, checksum)
                return
            leaf.w[at] = batch.append(block, data, [checksum])
            self.data_blocks += 1
            if not old:
                live.mapped += 1
                return
            self._dead.append(block)
            self._dead.append(old)
            if old < self._reader.own_from:
                live.inherited -= 1
            return
        count = len(data) >> BLOCK_SHIFT
        words = leaf.words[at : at + count]
        if count <= _FEW or int(words.max()) >= batch.first:
            for i in range(count):
                self._put(log, leaf, block + i, data[i << BLOCK_SHIFT : (i + 1) << BLOCK_SHIFT])
            return
        sums = [xxh3_64_intdigest(data[low : low + BLOCK]) for low in range(0, len(data), BLOCK)]
        live.mapped += count - self._let_go(block, words)
        address = batch.append(block, data, sums)
        words[:] = np.arange(address, address + count, dtype=np.uint64)
        leaf.sums[at : at + count] = sums
        self.data_blocks += count

    def _let_go(self, block: int, words: Words) -> int:
        """Note that the addresses in `words`, of blocks from `block`, are no longer live; how many there were."""
        used = np.flatnonzero(words)
        if len(used):
            self._dead_rows.append(np.column_stack((used.astype(np.uint64) + np.uint64(block), words[used])))
            self.live.inherited -= int(np.count_nonzero(words[used] < self._reader.own_from))
        return len(used)

    def _check_still(self, live: ExtentMap) -> None:
        """Raise VolumeBusy if the volume is not the one any more that a write was meant for."""
        if self.live is not live:
            raise VolumeBusy(f'volume "{self._reader.volume_id}" was restored before a write to it was through')

    async def _write_unaligned(self, view: memoryview, offset: int) -> int:
        """Write with partial blocks at the edges: those are read, changed, and written whole."""
        size, at = len(view), 0
        live = self.live
        while at < size:
            self._check_still(live)
            start = offset + at
            inner = start & _MASK
            if not inner and size - at >= BLOCK:
                count = (size - at) & ~_MASK
                await self.write(view[at : at + count], start)
            else:
                count = min(BLOCK - inner, size - at)
                await self._merge(view[at : at + count], start)
            at += count
        return size

    async def _merge(self, part: memoryview, offset: int) -> None:
        """Change a part of one block. No other write to it is lost: none comes between the last look and the write."""
        start = offset & ~_MASK
        live = self.live
        while True:
            self._check_still(live)
            old = self.read_nowait(BLOCK, start)
            if old is None:
                seen = await self._word(start >> BLOCK_SHIFT)
                old = await self.read(BLOCK, start)
                if await self._word(start >> BLOCK_SHIFT) != seen or self.gate is not None:
                    continue
                self._check_still(live)
            block = bytearray(old)
            block[offset - start : offset - start + len(part)] = part
            if self.write_nowait(block, start):
                return
            log = self._writable()
            log.check()
            if self.gate is not None:
                await self.gate.wait()
            else:
                await self._load(start >> (BLOCK_SHIFT + FANOUT_BITS))
            await log.throttle()

    async def _word(self, block: int) -> int:
        with self.readers.ticket():
            leaf = await self.live.leaf(block >> FANOUT_BITS)
        return int(leaf.w[block & (FANOUT - 1)])

    async def _load(self, leaf: int) -> None:
        with self.readers.ticket():
            await self.live.leaf(leaf)

    async def discard(self, length: int, offset: int) -> None:
        """Make the range read as zeros and give its blocks back. Parts of blocks are zeroed.

        Durable after the next `flush`. Raises as `write` does.
        """
        log = self._writable()
        _check_range(length, offset)
        end = offset + length
        first, last = (offset + _MASK) >> BLOCK_SHIFT, end >> BLOCK_SHIFT
        if first > last:
            await self._write_unaligned(memoryview(bytes(length)), offset)
            return
        if offset & _MASK:
            await self._write_unaligned(memoryview(bytes((first << BLOCK_SHIFT) - offset)), offset)
        if end & _MASK:
            await self._write_unaligned(memoryview(bytes(end & _MASK)), last << BLOCK_SHIFT)
        if first == last:
            return
        for index in self.live.leaves_in(first >> FANOUT_BITS, (last - 1) >> FANOUT_BITS):
            low, high = max(first, index << FANOUT_BITS), min(last, (index + 1) << FANOUT_BITS)
            while not self._discard_in(log, index, low, high - low):
                if self.gate is not None:
                    await self.gate.wait()
                elif log.full():
                    await log.throttle()
                else:
                    await self._load(index)
            await trio.lowlevel.checkpoint()

    def _discard_in(self, log: Appender, index: int, block: int, count: int) -> bool:
        """Discard within one leaf; False if it must be loaded first, or writers must wait."""
        log.check()
        if self.gate is not None or log.full():
            return False
        leaf = self.live.leaf_nowait(index)
        if leaf is None:
            return False
        at = block & (FANOUT - 1)
        if not leaf.words[at : at + count].any():
            return True
        leaf = self.live.own(index)
        if leaf is None:
            return False
        log.room()
        if log.open.empty:
            log.note_open()
        self.live.mapped -= self._let_go(block, leaf.words[at : at + count])
        leaf.words[at : at + count] = 0
        leaf.sums[at : at + count] = 0
        log.open.discard(block, count)
        return True

    def discard_nowait(self, blocks: Words, most: int) -> tuple[int, bool]:
        """Discard those of `blocks`, sorted, that are mapped; how many runs of them, and whether that was all.

        It ends after `most` runs, and where it would have to wait. Raises as `write` does.
        """
        log, runs = self._writable(), 0
        for index in np.unique(blocks >> np.uint64(FANOUT_BITS)).tolist():
            leaf = self.live.leaf_nowait(index)
            if leaf is None:
                return runs, False
            low, high = np.searchsorted(blocks, [index << FANOUT_BITS, (index + 1) << FANOUT_BITS]).tolist()
            mine = blocks[low:high]
            mapped = mine[leaf.words[mine & np.uint64(FANOUT - 1)] != 0]
            for run in np.split(mapped, np.flatnonzero(np.diff(mapped) > 1) + 1) if len(mapped) else ():
                if runs == most or not log.open.room() or not self._discard_in(log, index, int(run[0]), len(run)):
                    return runs, False
                runs += 1
        return runs, True

    # -- for recovery and commits -----------------------------------------------------------------

    async def replay(self, start: int, count: int, address: int, sums: list[int]) -> None:
        """Apply an operation that recovery found: a write to `address` on, or a discard for address 0."""
        words = np.arange(address, address + count, dtype=np.uint64) if address else np.zeros(count, np.uint64)
        at = 0
        for index in self.live.leaves_in(start >> FANOUT_BITS, (start + count - 1) >> FANOUT_BITS):
            low, high = max(start, index << FANOUT_BITS), min(start + count, (index + 1) << FANOUT_BITS)
            leaf = await self.live.load_own(index)
            at, slot, n = low - start, low & (FANOUT - 1), high - low
            self.live.mapped -= self._let_go(low, leaf.words[slot : slot + n])
            if address:
                leaf.words[slot : slot + n] = words[at : at + n]
                leaf.sums[slot : slot + n] = sums[at : at + n]
                self.live.mapped += n
                self.data_blocks += n
            else:
                leaf.words[slot : slot + n] = leaf.sums[slot : slot + n] = 0

    def dead(self) -> Words:
        """The (logical block, address) rows let go since the last `take_dead`."""
        if self._dead:
            self._dead_rows.append(np.frombuffer(self._dead.tobytes(), np.uint64).reshape(-1, 2))
            self._dead = array("Q")
        if len(self._dead_rows) != 1:
            self._dead_rows = [np.concatenate(self._dead_rows) if self._dead_rows else np.zeros((0, 2), np.uint64)]
        return self._dead_rows[0]

    def take_dead(self) -> Words:
        """The same, and start anew."""
        rows, self._dead_rows = self.dead(), []
        return rows

    def put_back_dead(self, rows: Words) -> None:
        """Undo `take_dead`: the commit it was for failed."""
        self._dead_rows.insert(0, rows)

    def take_data_blocks(self) -> int:
        """Own data blocks appended since the last call."""
        count, self.data_blocks = self.data_blocks, 0
        return count


def _check_range(size: int, offset: int) -> None:
    if size < 0 or offset < 0 or offset + size > _LIMIT:
        raise InvalidArgument(f"bytes {offset} to {offset + size} are outside of a volume's 0 to {_LIMIT}")


def _cut(data: Buffer, start: int, size: int) -> Buffer:
    return data if not start and len(data) == size else memoryview(data)[start : start + size]
