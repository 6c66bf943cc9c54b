"""The pages of the database that SQLite has no use for, so that the store can have their space.

SQLite's file does not shrink. It keeps a list of the pages that are free (https://www.sqlite.org/fileformat2.html,
section 1.5): trunk pages, each with the number of the next one, a count, and so many numbers of leaf pages. Whatever a
leaf page holds is of no meaning, to be read by nobody: it may as well have no block.
"""

from collections.abc import Callable

import numpy as np

from fusevol.log.tree import Words

__all__ = ["FIRST_TRUNK_AT", "FREE_COUNT_AT", "PAGE_COUNT_AT", "free_leaves", "number"]

#: In the header of SQLite's first page: how many there are, the first trunk of the free list, and how many it has.
PAGE_COUNT_AT = 28
FIRST_TRUNK_AT = 32
FREE_COUNT_AT = 36
_WORD = 4


def number(page: bytes, at: int) -> int:
    """A number as SQLite stores it."""
    return int.from_bytes(page[at : at + _WORD], "big")


def free_leaves(read: Callable[[int], bytes | None]) -> Words | None:
    """The numbers of the leaf pages on the free list, sorted; the first page of the file is 1.

    read: returns a page by its number, or None where it is not at hand. None is returned then, and where the list does
    not make sense in all its parts: no page is free unless every one of them is.
    """
    first = read(1)
    if first is None:
        return None
    pages, trunk, left = number(first, PAGE_COUNT_AT), number(first, FIRST_TRUNK_AT), number(first, FREE_COUNT_AT)
    trunks: list[int] = []
    leaves: list[Words] = []
    while trunk:
        if not 1 < trunk <= pages or left <= 0 or (page := read(trunk)) is None:
            return None
        count = number(page, _WORD)
        if count > len(page) // _WORD - 2 or count >= left:
            return None
        trunks.append(trunk)
        leaves.append(np.frombuffer(page, ">u4", count, 2 * _WORD).astype(np.uint64))
        left -= 1 + count
        trunk = number(page, 0)
    found = np.sort(np.concatenate(leaves)) if leaves else np.zeros(0, np.uint64)
    every = np.concatenate([found, np.array(trunks, np.uint64)])
    if left or len(np.unique(every)) != len(every) or (len(found) and not 1 < found[0] <= found[-1] <= pages):
        return None
    return found
