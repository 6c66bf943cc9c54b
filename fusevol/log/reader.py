"""Reading blocks by address, from whichever space holds them, each verified against its checksum."""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from xxhash import xxh3_64_intdigest

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend
from fusevol.errors import CorruptData
from fusevol.log.format import BLOCK, BLOCK_SHIFT, INDEX_BITS
from fusevol.log.records import Ancestor, Blob

__all__ = ["BlockReader", "first_mismatch"]


def first_mismatch(data: Buffer, sums: Sequence[int]) -> int | None:
    """Index of the first block of `data` that does not match its checksum, or None."""
    count = len(sums)
    if count == 1:
        return None if len(data) == BLOCK and xxh3_64_intdigest(data) == sums[0] else 0
    view = memoryview(data)
    whole = len(data) >> BLOCK_SHIFT
    found = [xxh3_64_intdigest(view[at : at + BLOCK]) for at in range(0, whole << BLOCK_SHIFT, BLOCK)]
    if found == sums:
        return None
    return next((i for i, (a, b) in enumerate(zip(found, sums, strict=False)) if a != b), min(whole, count))


class BlockReader:
    """Verified reads of one volume's blocks, its own and its ancestors'."""

    def __init__(self, backend: Backend, volume_id: str, ancestors: Sequence[Ancestor]) -> None:
        self.backend = backend
        self.volume_id = volume_id
        self._now: Callable[[str, int, int], Buffer | None] = backend.read_nowait
        self._epochs = [ancestor.epoch for ancestor in ancestors]
        self._spaces = [ancestor.volume_id for ancestor in ancestors]
        #: Addresses below this belong to ancestors: they are read, but never freed.
        self.own_from = (self._epochs[-1] + 1 if self._epochs else 0) << INDEX_BITS

    def blocking(self) -> AbstractContextManager[None]:
        """Inside, what is called nowait reads from the store all the same, and blocks. No await inside."""
        return self._reading(self.backend.read_blocking)

    def keeping(self) -> AbstractContextManager[None]:
        """Inside, what is read nowait stays in the cache, where there is one. No await inside."""
        return self._reading(self.backend.read_kept)

    @contextmanager
    def _reading(self, now: Callable[[str, int, int], Buffer | None]) -> Iterator[None]:
        self._now = now
        try:
            yield
        finally:
            self._now = self.backend.read_nowait

    def space(self, address: int) -> str:
        """The volume id of the space that holds the address."""
        if address >= self.own_from:
            return self.volume_id
        return self._spaces[bisect_left(self._epochs, address >> INDEX_BITS)]

    async def blocks(self, address: int, sums: Sequence[int], block: int) -> Buffer:
        """Read consecutive blocks. `block` is the logical block of the first, for the error message.

        Raises CorruptData naming volume, block and address; reads a second time before it does.
        """
        space, size = self.space(address), len(sums) << BLOCK_SHIFT
        bad = 0
        for _ in range(2):
            data = await self.backend.read(space, size, address << BLOCK_SHIFT)
            at = first_mismatch(data, sums)
            if at is None:
                return data
            bad = at
            self.backend.doubt(space, size, address << BLOCK_SHIFT)
        raise self.damage(block + bad, address + bad, len(data) >> BLOCK_SHIFT <= bad)

    def blocks_nowait(self, address: int, sums: Sequence[int]) -> Buffer | None:
        """Like `blocks`, but None where it would wait, or does not match: `blocks` then has the last word."""
        where = self.space(address), len(sums) << BLOCK_SHIFT, address << BLOCK_SHIFT
        for _ in range(2):
            data = self._now(*where)
            if data is None or first_mismatch(data, sums) is None:
                return data
            self.backend.doubt(*where)
        return None

    def damage(self, block: int, address: int, missing: bool) -> CorruptData:
        """The error for a data block that is not what was written."""
        how = "is missing" if missing else "does not match its checksum"
        return CorruptData(
            f'block {block} of volume "{self.volume_id}" {how} (address {address:#x} in space "{self.space(address)}")',
            hint="a snapshot taken before the damage, or a backup, may have it intact",
        )

    async def node(self, address: int, blocks: int, checksum: int) -> Buffer:
        """Read the stored bytes of a map node. Raises CorruptData."""
        return await self._checked(address, blocks << BLOCK_SHIFT, checksum, "a node of the map")

    def node_nowait(self, address: int, blocks: int, checksum: int) -> Buffer | None:
        """Like `node`, but None where it would wait or does not match."""
        where = self.space(address), blocks << BLOCK_SHIFT, address << BLOCK_SHIFT
        for _ in range(2):
            data = self._now(*where)
            if data is None or xxh3_64_intdigest(data) == checksum:
                return data
            self.backend.doubt(*where)
        return None

    async def blob(self, blob: Blob, what: str) -> Buffer:
        """Read a blob; `what` names it in the CorruptData that a damaged one raises."""
        return await self._checked(blob.address, blob.size, blob.checksum, what)

    async def _checked(self, address: int, size: int, checksum: int, what: str) -> Buffer:
        # What is less than whole blocks is stored in whole blocks.
        space, whole = self.space(address), -(-size >> BLOCK_SHIFT) << BLOCK_SHIFT
        for _ in range(2):
            stored = await self.backend.read(space, whole, address << BLOCK_SHIFT)
            data = stored if size == whole else memoryview(stored)[:size]
            if len(data) == size and xxh3_64_intdigest(data) == checksum:
                return data
            self.backend.doubt(space, whole, address << BLOCK_SHIFT)
        raise CorruptData(f'{what} of volume "{self.volume_id}" at {address:#x} in space "{space}" is damaged')
