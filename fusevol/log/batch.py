"""A batch: the unit in which the log is written (docs/format.md section 2).

`Batch` is the one being filled, in a page-aligned buffer that is used again; `BatchHeader` is what
recovery reads back.
"""

from __future__ import annotations

import mmap
import time
from array import array
from dataclasses import dataclass
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from fusevol.api.io import Buffer
from fusevol.errors import CorruptData, FusevolError
from fusevol.log.format import (
    BATCH_BLOCKS,
    BATCH_MAGIC,
    BATCH_OPS,
    BLOCK,
    BLOCK_SHIFT,
    CHECKSUM,
    CHECKSUM_OFFSET,
    FLAG_BARRIER,
    FORMAT_VERSION,
    HEADER,
    INLINE_TABLE,
    KIND_DATA,
    KIND_MARK,
    OP_BYTES,
    OP_COUNT_MASK,
    OP_DISCARD,
    OP_KIND_SHIFT,
    OP_WRITE,
    TABLE_OFFSET,
)

__all__ = ["BUFFER_BYTES", "Batch", "BatchHeader", "Operation", "parse_table"]

#: Header, payload and the longest table.
BUFFER_BYTES = BLOCK * (1 + BATCH_BLOCKS) + -(-(BATCH_OPS * OP_BYTES + BATCH_BLOCKS * 8) // BLOCK) * BLOCK
_DISCARD = OP_DISCARD << OP_KIND_SHIFT
_ZERO_BLOCK = bytes(BLOCK)


class Batch:
    """A batch being filled, then sealed and immutable.

    base: address of its header; first: address of payload slot 0; count: payload blocks so far.
    sums: their checksums; ops: pairs of words, as in the table.
    total: blocks in all, once sealed. error: why its last push failed, or None.
    """

    __slots__ = (
        "base",
        "buffer",
        "count",
        "error",
        "first",
        "ops",
        "sealed_at",
        "sequence",
        "sums",
        "total",
        "view",
    )

    def __init__(self, buffer: mmap.mmap, base: int) -> None:
        self.buffer = buffer
        self.view = memoryview(buffer)
        self.sums = array("Q")
        self.ops = array("Q")
        self.count = 0
        self.sequence = 0
        self.total = 0
        self.sealed_at = 0
        self.error: FusevolError | None = None
        self.base = base
        self.first = base + 1

    def move(self, base: int) -> None:
        """Give an empty batch another address."""
        self.base = base
        self.first = base + 1

    @property
    def empty(self) -> bool:
        """Whether nothing was put in yet."""
        return not self.ops

    def room(self) -> int:
        """How many more blocks can be appended; 0 when the batch must be sealed."""
        return BATCH_BLOCKS - self.count if len(self.ops) < 2 * BATCH_OPS else 0

    def append(self, block: int, data: Buffer, sums: list[int]) -> int:
        """Add consecutive logical blocks, at most `room()`; return the address of the first."""
        count = len(sums)
        slot = self.count
        start = BLOCK + (slot << BLOCK_SHIFT)
        self.view[start : start + len(data)] = data
        self.sums.extend(sums)
        self.count = slot + count
        ops = self.ops
        # A run that continues the last one needs no operation of its own (a discard's count has a kind on top).
        if ops and ops[-1] < _DISCARD and ops[-2] + ops[-1] == block:
            ops[-1] += count
        else:
            ops.append(block)
            ops.append(count)
        return self.first + slot

    def replace(self, slot: int, data: Buffer, checksum: int) -> None:
        """Overwrite a block that is in this batch already."""
        start = BLOCK + (slot << BLOCK_SHIFT)
        self.view[start : start + BLOCK] = data
        self.sums[slot] = checksum

    def discard(self, block: int, count: int) -> None:
        """Add a discard of logical blocks; `room()` must not be 0."""
        self.ops.append(block)
        self.ops.append(count | _DISCARD)

    def payload(self, address: int, count: int) -> memoryview:
        """The bytes of `count` blocks from `address`, which must be in this batch."""
        start = (address - self.base) << BLOCK_SHIFT
        return self.view[start : start + (count << BLOCK_SHIFT)]

    def seal(
        self, uuid: bytes, sequence: int, durable: int, *, kind: int = KIND_DATA, barrier: bool = False,
        checkpoint: int = 0, jump: int | None = None,
    ) -> int:  # fmt: skip
        """Write header and table; return the address of the next header.

        jump: where that is, if not right behind this batch. Afterwards `bytes()` is what to store.
        """
        has_table = kind == KIND_DATA and len(self.ops) > 0
        table = self.ops.tobytes() + self.sums.tobytes() if has_table else b""
        inline = len(table) <= INLINE_TABLE
        table_blocks = 0 if inline else -(-len(table) // BLOCK)
        self.sequence = sequence
        self.total = 1 + self.count + table_blocks
        self.sealed_at = time.time_ns()
        following = self.base + self.total if jump is None else jump
        view = self.view
        view[:BLOCK] = _ZERO_BLOCK
        HEADER.pack_into(
            self.buffer, 0, BATCH_MAGIC, FORMAT_VERSION, kind, FLAG_BARRIER if barrier else 0, self.count, uuid,
            self.base, sequence, durable, following, checkpoint, len(self.ops) // 2 if has_table else 0,
            table_blocks, xxh3_64_intdigest(table) if table else 0, self.sealed_at,
        )  # fmt: skip
        start = TABLE_OFFSET if inline else BLOCK * (1 + self.count)
        view[start : start + len(table)] = table
        if not inline:
            view[start + len(table) : self.total * BLOCK] = bytes(self.total * BLOCK - start - len(table))
        CHECKSUM.pack_into(self.buffer, CHECKSUM_OFFSET, xxh3_64_intdigest(view[:CHECKSUM_OFFSET]))
        return following

    def bytes(self) -> memoryview:
        """The sealed batch as it is stored."""
        return self.view[: self.total << BLOCK_SHIFT]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a batch's table; `slot` is the first payload block of a write."""

    start: int
    count: int
    discard: bool
    slot: int


class BatchHeader(NamedTuple):
    """The header of a stored batch, and the table if it stands in the header."""

    kind: int
    barrier: bool
    blocks: int
    address: int
    sequence: int
    durable: int
    next: int
    checkpoint: int
    ops: int
    table_blocks: int
    table_checksum: int
    time: int
    inline_table: bytes

    @property
    def total(self) -> int:
        """Blocks of the whole batch."""
        return 1 + self.blocks + self.table_blocks

    @property
    def end(self) -> int:
        """The address behind it, where the next one begins unless it is in another epoch."""
        return self.address + self.total

    @property
    def table_size(self) -> int:
        """Bytes of the table, without padding."""
        return self.ops * OP_BYTES + self.blocks * 8 if self.ops else 0

    @classmethod
    def parse(cls, data: Buffer, uuid: bytes) -> BatchHeader | None:
        """The header in this block, or None if it is not an intact one of the volume with this uuid."""
        if len(data) < BLOCK or data[: len(BATCH_MAGIC)] != BATCH_MAGIC:
            return None
        data = bytes(data[:BLOCK])
        if CHECKSUM.unpack_from(data, CHECKSUM_OFFSET)[0] != xxh3_64_intdigest(data[:CHECKSUM_OFFSET]):
            return None
        (_, version, kind, flags, blocks, owner, address, sequence, durable, following, checkpoint, ops,
         table_blocks, table_checksum, sealed_at) = HEADER.unpack_from(data)  # fmt: skip
        if owner != uuid:
            return None
        if version != FORMAT_VERSION or not KIND_DATA <= kind <= KIND_MARK or flags & ~FLAG_BARRIER:
            raise CorruptData(f"the batch at {address:#x} has version {version}, kind {kind}, flags {flags:#x}")
        size = ops * OP_BYTES + blocks * 8 if ops else 0
        inline = data[TABLE_OFFSET : TABLE_OFFSET + size] if not table_blocks else b""
        return cls(kind, bool(flags & FLAG_BARRIER), blocks, address, sequence, durable, following, checkpoint,
                   ops, table_blocks, table_checksum, sealed_at, inline)  # fmt: skip


def parse_table(header: BatchHeader, table: Buffer) -> tuple[list[Operation], array[int]] | None:
    """Operations and payload checksums, or None if the table does not match its checksum.

    table: the stored bytes, padding included, or the header's inline table.
    """
    size = header.table_size
    if not size:
        return [], array("Q")
    if len(table) < size or xxh3_64_intdigest(table[:size]) != header.table_checksum:
        return None
    words = array("Q", bytes(table[:size]))
    split = 2 * header.ops
    operations = []
    slot = 0
    for start, word in zip(words[:split:2], words[1:split:2], strict=True):
        kind, count = word >> OP_KIND_SHIFT, word & OP_COUNT_MASK
        if kind not in (OP_WRITE, OP_DISCARD):
            raise CorruptData(f"the batch at {header.address:#x} has an operation of kind {kind}")
        operations.append(Operation(start, count, kind == OP_DISCARD, slot))
        if kind == OP_WRITE:
            slot += count
    if slot != header.blocks:
        raise CorruptData(f"the batch at {header.address:#x} maps {slot} blocks, but has {header.blocks}")
    return operations, words[split:]
