"""Who holds a block: the walks that tell what one tree has and its neighbours have not.

They rest on the rule of docs/format.md section 6: trees share a block exactly where they have the same
address at the same place, and everything below a node where they have the same node.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import trio

from fusevol.log.format import ADDRESS_MASK, FANOUT, FANOUT_BITS
from fusevol.log.tree import Node, Tree, Words, node_extent

__all__ = ["Retired", "View", "exclusive", "unheld_blocks", "unheld_nodes"]

#: A node that a tree let go: level (0 leaf, 1 inner), index at that level, word of its pointer.
Retired = tuple[int, int, int]


class View(Protocol):
    """A tree as the walks see it: a stored one, or the live map."""

    async def inner_words(self, index: int) -> Words:
        """Words of an inner node; where a leaf was changed since, a word no stored tree has."""

    def root_word(self, index: int) -> int:
        """Word of the pointer to an inner node, likewise; 0 where there is none."""

    async def leaf(self, index: int) -> Node:
        """A leaf."""


async def exclusive(tree: Tree, others: Sequence[View], own_from: int) -> tuple[Words, list[tuple[int, int]]]:
    """What `tree` alone holds: addresses of data blocks, and (address, blocks) of nodes.

    Addresses below `own_from` are an ancestor's and never counted.
    """
    data: list[Words] = []
    nodes: list[tuple[int, int]] = []
    for index, pointer in tree.root.items():
        address, blocks = node_extent(pointer[0])
        if address < own_from or any(other.root_word(index) == pointer[0] for other in others):
            continue
        nodes.append((address, blocks))
        inner = await tree.node(pointer)
        alone = inner.words & ADDRESS_MASK >= own_from
        alone &= inner.words != 0
        for other in others:
            alone &= inner.words != await other.inner_words(index)
        for slot in np.flatnonzero(alone).tolist():
            word = inner.w[slot]
            nodes.append(node_extent(word))
            leaf = await tree.node((word, inner.s[slot]))
            mine = leaf.words & ADDRESS_MASK >= own_from
            mine &= leaf.words != 0
            for other in others:
                mine &= leaf.words != (await other.leaf((index << FANOUT_BITS) + slot)).words
            if mine.any():
                data.append(leaf.words[mine] & np.uint64(ADDRESS_MASK))
        await trio.lowlevel.checkpoint()
    return (np.concatenate(data) if data else np.zeros(0, np.uint64)), nodes


async def unheld_blocks(dead: Words, others: Sequence[View]) -> Words:
    """Of (logical block, address) rows, the addresses that no other tree has at that place."""
    free = np.ones(len(dead), bool)
    leaves = dead[:, 0] >> np.uint64(FANOUT_BITS)
    for index in np.unique(leaves).tolist():
        rows = np.flatnonzero(leaves == index)
        slots = (dead[rows, 0] & np.uint64(FANOUT - 1)).astype(np.intp)
        for other in others:
            words = (await other.leaf(index)).words
            free[rows] &= words[slots] & np.uint64(ADDRESS_MASK) != dead[rows, 1]
    addresses: Words = dead[free, 1]
    return addresses


async def unheld_nodes(retired: Sequence[Retired], others: Sequence[View]) -> list[tuple[int, int]]:
    """Of retired nodes, the (address, blocks) that no other tree has at that place."""
    free = []
    for level, index, word in retired:
        for other in others:
            if level:
                held = other.root_word(index) == word
            else:
                held = (await other.inner_words(index >> FANOUT_BITS))[index & (FANOUT - 1)] == word
            if held:
                break
        else:
            free.append(node_extent(word))
    return free
