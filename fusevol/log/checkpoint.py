"""Writing a checkpoint: the changed part of the map, the tables and the record, as map batches.

What is written here becomes real when the manifest names it; until then the old checkpoint and the log
behind it are the volume (docs/format.md section 5). A checkpoint that fails leaves the volume as it was,
plus some garbage that the next one frees.
"""

from dataclasses import dataclass, field

import numpy as np
from xxhash import xxh3_64_intdigest

from fusevol.log.appender import Appender
from fusevol.log.format import BLOCK, BLOCK_SHIFT, FANOUT, FANOUT_BITS
from fusevol.log.records import Blob
from fusevol.log.sharing import Retired
from fusevol.log.tree import Node, NodeCache, Pointer, Tree, Words, pack_node

__all__ = ["Built", "Frozen", "TreeBuilder", "pack_blobs"]

#: Nodes are appended in batches of about this many blocks.
_CHUNK_BLOCKS = 1024


@dataclass(slots=True)
class Frozen:
    """The volume at a barrier, taken without an await: what a checkpoint is to make durable.

    number: of this attempt. sequence: of the barrier. position: where the log goes on after it.
    leaves: changed leaves, immutable from now on. dead: (logical block, address) rows let go since the
    last freeze. overhead: (address, blocks) of batch headers and tables before the position.
    since: blocks of log it covers.
    """

    number: int
    sequence: int
    position: int
    leaves: dict[int, Node]
    dead: Words
    overhead: list[tuple[int, int]]
    mapped: int
    inherited: int
    data_blocks: int
    meta_blocks: int
    since: int


@dataclass(slots=True)
class Built:
    """The nodes of a new tree: its root, the nodes it replaced, and what was appended for it."""

    root: dict[int, Pointer]
    retired: list[Retired] = field(default_factory=list)
    appended: list[tuple[int, int]] = field(default_factory=list)
    sequence: int = 0


class TreeBuilder:
    """Appends the changed nodes of a tree to the log, leaves first."""

    def __init__(self, log: Appender, tree: Tree, cache: NodeCache, number: int) -> None:
        self._log = log
        self._tree = tree
        self._cache = cache
        self._number = number
        self._queue: list[tuple[bytes, int, Node, memoryview, memoryview, int]] = []
        self._queued = 0
        self.built = Built(dict(tree.root))

    async def add_leaves(self, leaves: dict[int, Node]) -> Built:
        """Append changed leaves, then the inner nodes above them; nodes that are empty now are dropped."""
        built = self.built
        inners: dict[int, Node] = {}
        for index in sorted(leaves):
            above, slot = index >> FANOUT_BITS, index & (FANOUT - 1)
            if above not in inners:
                inners[above] = (await self._tree.inner(above)).copy()
            inner = inners[above]
            if inner.w[slot]:
                built.retired.append((0, index, inner.w[slot]))
            await self._add(leaves[index], inner.w, inner.s, slot)
        await self._emit()
        pointers = Node.new() if len(inners) <= FANOUT else Node(*np.zeros((2, len(inners)), np.uint64))
        for at, (index, inner) in enumerate(inners.items()):
            if old := self._tree.root_word(index):
                built.retired.append((1, index, old))
            await self._add(inner, pointers.w, pointers.s, at)
        await self._emit()
        for at, index in enumerate(inners):
            if pointers.w[at]:
                built.root[index] = (pointers.w[at], pointers.s[at])
            else:
                built.root.pop(index, None)
        return built

    async def _add(self, node: Node, words: memoryview, sums: memoryview, at: int) -> None:
        if not node.words.any():
            words[at] = sums[at] = 0
            return
        data, bits = pack_node(node)
        self._queue.append((data, bits, node, words, sums, at))
        self._queued += len(data) >> BLOCK_SHIFT
        if self._queued >= _CHUNK_BLOCKS:
            await self._emit()

    async def _emit(self) -> None:
        if not self._queue:
            return
        await self._log.throttle()
        address, self.built.sequence = self._log.append_map([item[0] for item in self._queue], self._number)
        self.built.appended.append((address, self._queued))
        for data, bits, node, words, sums, at in self._queue:
            words[at], sums[at] = address | bits, xxh3_64_intdigest(data)
            self._cache.put(words[at], node)
            address += len(data) >> BLOCK_SHIFT
        self._queue.clear()
        self._queued = 0


def pack_blobs(address: int, contents: list[bytes]) -> tuple[list[Blob | None], list[bytes]]:
    """Lay out blobs from a block address: their names (None for an empty one), and the padded bytes."""
    blobs: list[Blob | None] = []
    padded = []
    for content in contents:
        if not content:
            blobs.append(None)
            continue
        blobs.append(Blob(address=address, size=len(content), checksum=xxh3_64_intdigest(content)))
        blocks = -(-len(content) // BLOCK)
        padded.append(content.ljust(blocks * BLOCK, b"\0"))
        address += blocks
    return blobs, padded
