"""The live extent map: a stored tree, and over it the leaves changed since the last checkpoint.

Leaves are copied when they are first written to. A checkpoint takes the changed leaves as they are at a
barrier (`freeze`) and stores them while new writes copy again; until it is committed, its leaves lie
between the new ones and the stored tree.
"""

from fusevol.log.format import FANOUT, FANOUT_BITS
from fusevol.log.tree import Node, Tree, Words

__all__ = ["CHANGED", "ExtentMap"]

#: Stands for the word of a node that was changed since it was stored; no stored pointer has this value.
CHANGED = (1 << 64) - 1


class ExtentMap:
    """Logical block -> (address, checksum), by leaves of 1,024 blocks.

    mapped: logical blocks that are mapped; inherited: those of them whose data is in an ancestor's space.
    """

    def __init__(self, tree: Tree, mapped: int, inherited: int) -> None:
        self.tree = tree
        self.mapped = mapped
        self.inherited = inherited
        self.dirty: dict[int, Node] = {}
        self.frozen: dict[int, Node] = {}

    async def leaf(self, index: int) -> Node:
        """Leaf `index`, to be read only."""
        node = self.dirty.get(index) or self.frozen.get(index)
        return node if node is not None else await self.tree.leaf(index)

    def leaf_nowait(self, index: int) -> Node | None:
        """Like `leaf`, but None where it would wait."""
        node = self.dirty.get(index) or self.frozen.get(index)
        return node if node is not None else self.tree.leaf_nowait(index)

    def own(self, index: int) -> Node | None:
        """Leaf `index`, to be changed; None where it must be loaded first (`leaf` does that)."""
        node = self.dirty.get(index)
        if node is None:
            old = self.frozen.get(index) or self.tree.leaf_nowait(index)
            if old is None:
                return None
            node = self.dirty[index] = old.copy()
        return node

    async def load_own(self, index: int) -> Node:
        """Leaf `index`, to be changed. For recovery, when nobody else changes the map."""
        node = self.dirty.get(index)
        if node is None:
            node = self.dirty[index] = (await self.leaf(index)).copy()
        return node

    def leaves_in(self, first: int, last: int) -> list[int]:
        """The leaves from `first` to `last` that may have entries, sorted, without loading any.

        For wide ranges (a discard of terabytes) this looks at the root alone where nothing is.
        """
        if last - first < 4 * FANOUT:
            return list(range(first, last + 1))
        found = {i for changed in (self.dirty, self.frozen) for i in changed if first <= i <= last}
        for inner in self.tree.root:
            low = max(first, inner << FANOUT_BITS)
            found.update(range(low, min(last, (inner << FANOUT_BITS) + FANOUT - 1) + 1))
        return sorted(found)

    async def inner_words(self, index: int) -> Words:
        """Words of inner node `index`, with CHANGED where the leaf is not the stored one any more."""
        words = await self.tree.inner_words(index)
        changed = [i & (FANOUT - 1) for i in (*self.dirty, *self.frozen) if i >> FANOUT_BITS == index]
        if changed:
            words = words.copy()
            words[changed] = CHANGED
        return words

    def root_word(self, index: int) -> int:
        """Word of the pointer to inner node `index`; CHANGED if any leaf below was changed since."""
        if any(i >> FANOUT_BITS == index for i in (*self.dirty, *self.frozen)):
            return CHANGED
        return self.tree.root_word(index)

    def inner_indexes(self) -> set[int]:
        """Indexes of all inner nodes that have, or will have, entries."""
        return {*self.tree.root, *(i >> FANOUT_BITS for i in (*self.dirty, *self.frozen))}

    @property
    def unsaved(self) -> int:
        """How many nodes a checkpoint takes now, at most: the changed leaves, and the nodes above them."""
        leaves = len(self.dirty) + len(self.frozen)
        return leaves + min(leaves, len(self.tree.root) + 1)

    def freeze(self) -> dict[int, Node]:
        """Hand the changed leaves to a checkpoint. They must not be changed any more."""
        if self.frozen:
            raise RuntimeError("a checkpoint is under way already")
        self.frozen, self.dirty = self.dirty, {}
        return self.frozen

    def commit(self, tree: Tree) -> None:
        """The checkpoint is durable: `tree` has all that was frozen."""
        self.tree = tree
        self.frozen = {}

    def abort(self) -> None:
        """The checkpoint failed: its leaves count as changed again, where no newer ones do."""
        self.dirty = self.frozen | self.dirty
        self.frozen = {}
