"""Rolling the log forward from a checkpoint (docs/format.md section 5)."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import trio
from msgspec import UNSET

from fusevol.backends.base import Backend
from fusevol.errors import CorruptData
from fusevol.log.batch import BatchHeader, Operation, parse_table
from fusevol.log.format import BATCH_MAGIC, BLOCK, BLOCK_SHIFT, INDEX_BITS, KIND_DATA, KIND_MAP
from fusevol.log.reader import first_mismatch
from fusevol.log.records import Checkpoint, Manifest

__all__ = ["Accepted", "Rolled", "roll_forward"]

_READ_BLOCKS = 256
#: How far behind the end of the chain proof is looked for, in blocks without a header.
_SEARCH_BLOCKS = 64 << 20 >> BLOCK_SHIFT


@dataclass(slots=True)
class Accepted:
    """A batch of the log behind the checkpoint. `operations` and `sums` only where it is to be applied."""

    header: BatchHeader
    operations: list[Operation]
    sums: array[int]
    apply: bool


@dataclass(slots=True)
class Rolled:
    """The log behind a checkpoint.

    batches: all up to the accepted end. end: address behind them. sequence: of the last of them.
    seen: the greatest sequence found anywhere, to be exceeded by what is written from now on.
    """

    batches: list[Accepted]
    end: int
    sequence: int
    seen: int


async def roll_forward(backend: Backend, volume_id: str, manifest: Manifest, checkpoint: Checkpoint) -> Rolled:
    """Find the accepted end of the log and what leads there from the manifest's checkpoint.

    Raises CorruptData where a batch that was durable is damaged.
    """
    position, sequence, record = checkpoint.position, checkpoint.sequence, manifest.checkpoint
    if record is None:  # no writer has got as far as to attach it
        return Rolled([], position, sequence, sequence)
    chain = _Chain(backend, volume_id, bytes.fromhex(manifest.uuid), None if manifest.end is UNSET else manifest.end)
    await chain.follow(position, sequence + 1)
    await chain.search(manifest.epoch)
    if chain.durable > chain.sequence:
        # Where this is a reader, the writer may have written on meanwhile.
        await chain.follow(chain.end, chain.sequence + 1)
    durable = chain.durable
    reached = -1
    for i, (header, _) in enumerate(chain.batches):
        if header.address < record.address < header.address + header.total:
            reached = i
            durable = max(durable, header.sequence)
    if reached < 0:
        raise CorruptData(f'the log of volume "{volume_id}" is damaged between {position:#x} and {record.address:#x}')
    if durable > chain.sequence:
        raise CorruptData(
            f'the batch at {chain.end:#x} of volume "{volume_id}" is damaged, and what was written later proves '
            "that it had been durable",
            hint="restore the volume's files from a copy; a snapshot taken before can still be read",
        )
    accepted = reached
    for i, (header, table) in enumerate(chain.batches):
        proven = header.sequence <= durable
        if table is None or not (proven or await _intact(backend, volume_id, header, table[1])):
            if proven or backend.traits.atomic_writes:
                raise CorruptData(f'the batch at {header.address:#x} of volume "{volume_id}" is damaged')
            break
        if header.barrier:
            accepted = max(accepted, i)
    barrier = max((i for i in range(accepted + 1) if chain.batches[i][0].barrier), default=-1)
    batches = []
    for i, (header, table) in enumerate(chain.batches[: accepted + 1]):
        operations, sums = table if table is not None else ([], array("Q"))
        batches.append(Accepted(header, operations, sums, i <= barrier and header.kind == KIND_DATA))
    last = batches[-1].header
    return Rolled(batches, last.end, last.sequence, max(chain.sequence, chain.seen))


class _Chain:
    """The batches behind a position as far as their headers are intact, and proof found beyond.

    last: where they end at the latest.
    """

    def __init__(self, backend: Backend, volume_id: str, uuid: bytes, last: int | None) -> None:
        self._last = last
        self._backend = backend
        self._volume_id = volume_id
        self._uuid = uuid
        #: Header and table of each; None for a table that does not match its checksum.
        self.batches: list[tuple[BatchHeader, tuple[list[Operation], array[int]] | None]] = []
        self.sequence = 0
        self.seen = 0
        self.durable = 0
        self.end = 0

    async def follow(self, address: int, sequence: int) -> None:
        self.sequence = sequence - 1
        while not (self.batches and self.batches[-1][0].end == self._last):
            data = await self._blocks(address, 1)
            header = self._header(data)
            if header is None or (header.address, header.sequence) != (address, self.sequence + 1):
                if self._backend.traits.atomic_writes and any(data):
                    raise CorruptData(f'the batch at {address:#x} of volume "{self._volume_id}" is damaged')
                break
            table = header.inline_table
            if header.table_blocks:
                table = bytes(await self._blocks(address + 1 + header.blocks, header.table_blocks))
            try:
                self.batches.append((header, parse_table(header, table)))
            except CorruptData as error:
                raise CorruptData(f'the log of volume "{self._volume_id}" is damaged: {error}') from error
            self.sequence = header.sequence
            self.durable = max(self.durable, header.durable)
            address = header.next
            await trio.lowlevel.checkpoint()
        self.end = address

    async def search(self, epoch: int) -> None:
        """Look for headers behind the end of the chain, up to `epoch`: what they say was durable must be there."""
        await self._search(self.end)
        for later in range((self.end >> INDEX_BITS) + 1, epoch + 1):
            address, sequence = later << INDEX_BITS, self.sequence
            while True:
                header = self._header(await self._blocks(address, 1))
                if header is None or header.address != address or header.sequence <= sequence:
                    break
                self.durable = max(self.durable, header.durable)
                self.seen = max(self.seen, header.sequence)
                address, sequence = header.next, header.sequence

    async def _search(self, address: int) -> None:
        empty = 0
        while empty < _SEARCH_BLOCKS:
            data = bytes(await self._blocks(address, _READ_BLOCKS))
            if not data:
                return
            at = data.find(BATCH_MAGIC)
            while at >= 0:
                if at % BLOCK == 0:
                    header = self._header(data[at : at + BLOCK])
                    if header and header.address == address + (at >> BLOCK_SHIFT) and header.sequence > self.sequence:
                        self.durable = max(self.durable, header.durable)
                        self.seen = max(self.seen, header.sequence)
                        empty = 0
                at = data.find(BATCH_MAGIC, at + 1)
            empty += _READ_BLOCKS
            address += _READ_BLOCKS

    def _header(self, data: bytes) -> BatchHeader | None:
        try:
            return BatchHeader.parse(data, self._uuid)
        except CorruptData as error:
            raise CorruptData(f'the log of volume "{self._volume_id}" is damaged: {error}') from error

    async def _blocks(self, address: int, count: int) -> bytes:
        return bytes(await self._backend.read_stored(self._volume_id, count << BLOCK_SHIFT, address << BLOCK_SHIFT))


async def _intact(backend: Backend, volume_id: str, header: BatchHeader, sums: array[int]) -> bool:
    if header.kind == KIND_MAP:
        # Its blocks are reached through pointers with checksums of their own, or not at all.
        return True
    for at in range(0, header.blocks, _READ_BLOCKS):
        wanted = sums[at : at + _READ_BLOCKS].tolist()
        start = (header.address + 1 + at) << BLOCK_SHIFT
        data = await backend.read_stored(volume_id, len(wanted) << BLOCK_SHIFT, start)
        if first_mismatch(data, wanted) is not None:
            return False
    return True
