"""The stored extent map: nodes, and the tree of them that a root names (docs/format.md section 3).

A stored tree never changes. `Tree` loads its nodes on demand; nodes are immutable and shared, through
one `NodeCache`, by all the trees of a volume.
"""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import numpy.typing as npt

from fusevol.api.io import Buffer
from fusevol.errors import CorruptData
from fusevol.log.format import (
    ADDRESS_MASK,
    BITMAP_BYTES,
    BLOCK,
    FANOUT,
    FANOUT_BITS,
    FULL_NODE_BLOCKS,
    NODE_FULL,
    NODE_LENGTH_MASK,
    NODE_LENGTH_SHIFT,
    ROOT_ENTRY,
)
from fusevol.log.reader import BlockReader
from fusevol.log.records import Blob

__all__ = ["EMPTY", "Node", "NodeCache", "Pointer", "Tree", "Words", "node_extent", "pack_node", "pack_root"]

Words = npt.NDArray[np.uint64]
#: Word and checksum of an entry that points to a node; (0, 0) where there is none.
Pointer = tuple[int, int]


class Node:
    """1,024 entries: `words` and `sums` as numpy arrays, and the same memory as `w` and `s` for scalars.

    A memoryview reads a single entry three times as fast as numpy does.
    """

    __slots__ = ("s", "sums", "w", "words")

    def __init__(self, words: Words, sums: Words) -> None:
        self.words = words
        self.sums = sums
        self.w: memoryview = memoryview(words)  # type: ignore[arg-type]  # numpy arrays are buffers
        self.s: memoryview = memoryview(sums)  # type: ignore[arg-type]

    @classmethod
    def new(cls) -> "Node":
        """An empty node that may be filled."""
        return cls(np.zeros(FANOUT, np.uint64), np.zeros(FANOUT, np.uint64))

    def copy(self) -> "Node":
        """A copy that may be changed."""
        return Node(self.words.copy(), self.sums.copy())

    def count(self) -> int:
        """Number of entries that are mapped."""
        return int(np.count_nonzero(self.words))


#: What stands for a node that is not there; never to be changed.
EMPTY = Node.new()
EMPTY.words.flags.writeable = EMPTY.sums.flags.writeable = False


def node_extent(word: int) -> tuple[int, int]:
    """Address and number of blocks of the node that an entry's word points to."""
    return word & ADDRESS_MASK, (word >> NODE_LENGTH_SHIFT & NODE_LENGTH_MASK) + 1


def pack_node(node: Node) -> tuple[bytes, int]:
    """The stored form of a node, padded to whole blocks, and the bits its pointer needs above the address."""
    used = np.flatnonzero(node.words)
    if len(used) == FANOUT:
        return node.words.tobytes() + node.sums.tobytes(), NODE_FULL | (FULL_NODE_BLOCKS - 1) << NODE_LENGTH_SHIFT
    bitmap = np.packbits(node.words != 0, bitorder="little").tobytes()
    data = bitmap + node.words[used].tobytes() + node.sums[used].tobytes()
    blocks = -(-len(data) // BLOCK)
    return data.ljust(blocks * BLOCK, b"\0"), (blocks - 1) << NODE_LENGTH_SHIFT


def unpack_node(data: Buffer, word: int, where: str) -> Node:
    """Read the stored form of a node. The data match their checksum; CorruptData if they make no sense."""
    if word & NODE_FULL:
        # A store may give bytes from anywhere in its memory; the views of a node are of aligned arrays only.
        both = np.require(np.frombuffer(data, np.uint64, 2 * FANOUT), requirements="A")
        return Node(both[:FANOUT], both[FANOUT:])
    bitmap = np.frombuffer(data, np.uint8, BITMAP_BYTES)
    used = np.flatnonzero(np.unpackbits(bitmap, bitorder="little"))
    if BITMAP_BYTES + 16 * len(used) > len(data):
        raise CorruptData(f"{where} claims {len(used)} entries in {len(data)} bytes")
    words, sums = np.zeros(FANOUT, np.uint64), np.zeros(FANOUT, np.uint64)
    words[used] = np.frombuffer(data, np.uint64, len(used), BITMAP_BYTES)
    sums[used] = np.frombuffer(data, np.uint64, len(used), BITMAP_BYTES + 8 * len(used))
    return Node(words, sums)


def pack_root(root: dict[int, Pointer]) -> bytes:
    """The stored form of a root."""
    return b"".join(ROOT_ENTRY.pack(index, *root[index]) for index in sorted(root))


class NodeCache:
    """Nodes by their pointer's word; the oldest go first when there are more than `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = max(limit, 2)  # who changes a leaf must find both it and the node above
        self._nodes: dict[int, Node] = {}
        self.get = self._nodes.get

    def __len__(self) -> int:
        return len(self._nodes)

    def put(self, word: int, node: Node) -> None:
        """Remember a node, forget old ones."""
        nodes = self._nodes
        nodes[word] = node
        if len(nodes) > self.limit:
            for old in list(islice(nodes, max(1, self.limit // 8))):
                del nodes[old]

    def forget(self, words: Iterable[int]) -> None:
        """Drop nodes that no tree has any more."""
        for word in words:
            self._nodes.pop(word, None)


class Tree:
    """A stored tree: the root's pointers, and its nodes on demand."""

    def __init__(self, reader: BlockReader, cache: NodeCache, root: dict[int, Pointer], blob: Blob | None) -> None:
        self.reader = reader
        self.cache = cache
        self.root = root
        self.blob = blob

    @classmethod
    async def load(cls, reader: BlockReader, cache: NodeCache, blob: Blob | None) -> "Tree":
        """The tree with this root; an empty one for None. Raises CorruptData."""
        if blob is None:
            return cls(reader, cache, {}, None)
        data = await reader.blob(blob, "the root of the map")
        if len(data) % ROOT_ENTRY.size:
            raise CorruptData(f'the root of the map of volume "{reader.volume_id}" has {len(data)} bytes')
        return cls(reader, cache, {i: (word, checksum) for i, word, checksum in ROOT_ENTRY.iter_unpack(data)}, blob)

    async def node(self, pointer: Pointer) -> Node:
        """The node that a pointer names. Raises CorruptData."""
        word, checksum = pointer
        if not word:
            return EMPTY
        node = self.cache.get(word)
        if node is None:
            address, blocks = node_extent(word)
            data = await self.reader.node(address, blocks, checksum)
            node = unpack_node(data, word, f"the map node at {address:#x}")
            self.cache.put(word, node)
        return node

    def node_nowait(self, pointer: Pointer) -> Node | None:
        """Like `node`, but None where it would wait or is damaged."""
        word, checksum = pointer
        if not word:
            return EMPTY
        node = self.cache.get(word)
        if node is None:
            address, blocks = node_extent(word)
            data = self.reader.node_nowait(address, blocks, checksum)
            if data is None:
                return None
            node = unpack_node(data, word, f"the map node at {address:#x}")
            self.cache.put(word, node)
        return node

    async def inner(self, index: int) -> Node:
        """Inner node `index`."""
        return await self.node(self.root.get(index, (0, 0)))

    async def leaf(self, index: int) -> Node:
        """Leaf `index`."""
        inner = await self.inner(index >> FANOUT_BITS)
        at = index & (FANOUT - 1)
        return await self.node((inner.w[at], inner.s[at]))

    def leaf_nowait(self, index: int) -> Node | None:
        """Leaf `index`, or None where it would wait."""
        inner = self.node_nowait(self.root.get(index >> FANOUT_BITS, (0, 0)))
        if inner is None:
            return None
        at = index & (FANOUT - 1)
        return self.node_nowait((inner.w[at], inner.s[at]))

    async def inner_words(self, index: int) -> Words:
        """Words of inner node `index`."""
        return (await self.inner(index)).words

    def root_word(self, index: int) -> int:
        """Word of the pointer to inner node `index`; 0 where there is none."""
        return self.root.get(index, (0, 0))[0]
