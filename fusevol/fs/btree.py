"""The inner pages of SQLite's b-trees, read straight from a volume: which keys are on which pages.

A page that is a leaf of a table in two states of a volume, and has the same bytes in both, has the same rows in both.
So the rows that can differ are those between the keys that the inner pages have around the other leaves
(sqlite.org/fileformat2.html, section 1.6). Leaves are not read.
"""

from collections.abc import Callable, Iterable, Iterator

from fusevol.errors import CorruptData
from fusevol.fs.layout import BLOCK

__all__ = ["FIRST", "LAST", "Key", "Range", "differing_ranges", "pages_of"]

#: The first columns of a row's primary key, one or two of them.
Key = tuple[int | bytes, ...]
#: From one key to another, both included.
Range = tuple[Key, Key]
#: Before and behind all keys. No number in a primary key is negative, or as large.
FIRST: Key = (-1,)
LAST: Key = ((1 << 63) - 1,)

#: Reads a page, numbered from 1. May raise CorruptData, BackendError.
ReadPage = Callable[[int], bytes]

_INNER_INDEX, _INNER_TABLE = 2, 5
_INNER = (_INNER_INDEX, _INNER_TABLE)
_LEAVES = (10, 13)
_DEEPEST = 20


class Pages:
    """The pages of one b-tree. leaves: each one's keys are within its range. inner: the keys that are on it."""

    def __init__(self) -> None:
        self.leaves: dict[int, Range] = {}
        self.inner: dict[int, list[Key]] = {}


def pages_of(read: ReadPage, root: int) -> Pages:
    """Walk a b-tree, without reading its leaves. Raises CorruptData, and what `read` raises."""
    found = Pages()
    _walk(read, root, _depth(read, root), (FIRST, LAST), found)
    return found


def _depth(read: ReadPage, page: int) -> int:
    """Inner levels of a b-tree; all its leaves are equally far down."""
    for depth in range(_DEEPEST):
        data = read(page)
        if data[_header(page)] in _LEAVES:
            return depth
        page = next(iter(_children(data, page)))[0]
    raise CorruptData(f"the b-tree at page {page} of the metadata has no end", hint="check the volume")


def _header(page: int) -> int:
    return 100 if page == 1 else 0


def _walk(read: ReadPage, page: int, depth: int, within: Range, found: Pages) -> None:
    if not depth:
        found.leaves[page] = within
        return
    low, keys = within[0], found.inner.setdefault(page, [])
    for child, key in _children(read(page), page):
        high = within[1] if key is None else key
        _walk(read, child, depth - 1, (low, high), found)
        if key is not None:
            keys.append(key)
        low = high


def _children(data: bytes, page: int) -> Iterator[tuple[int, Key | None]]:
    """The pages below an inner page, each with the key that its own are not greater than; None for the last one."""
    at = _header(page)
    kind = data[at]
    if kind not in _INNER or len(data) != BLOCK:
        raise CorruptData(f"page {page} of the metadata is not one of a b-tree", hint="check the volume")
    try:
        for slot in range(int.from_bytes(data[at + 3 : at + 5], "big")):
            cell = int.from_bytes(data[at + 12 + 2 * slot : at + 14 + 2 * slot], "big")
            number, behind = _varint(data, cell + 4)
            key: Key = (number,) if kind == _INNER_TABLE else _first_columns(data, behind)
            yield int.from_bytes(data[cell : cell + 4], "big"), key
    except (IndexError, ValueError) as error:
        raise CorruptData(f"page {page} of the metadata makes no sense: {error}", hint="check the volume") from error
    yield int.from_bytes(data[at + 8 : at + 12], "big"), None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length number, and where it ends."""
    value = 0
    for length in range(8):
        byte = data[at + length]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + length + 1
    return value << 8 | data[at + 8], at + 9


def _first_columns(data: bytes, at: int) -> Key:
    """The first two columns of a record. They are whole within the page: names are short."""
    size, kinds = _varint(data, at)
    value, columns = at + size, []
    for _ in range(2):
        kind, kinds = _varint(data, kinds)
        column, length = _column(data, value, kind)
        columns.append(column)
        value += length
    return tuple(columns)


def _column(data: bytes, at: int, kind: int) -> tuple[int | bytes, int]:
    """A column, and its bytes: a number, or a blob."""
    if kind in (8, 9):
        return kind - 8, 0
    if 1 <= kind <= 6:
        length = (1, 2, 3, 4, 6, 8)[kind - 1]
        return int.from_bytes(data[at : at + length], "big", signed=True), length
    if kind < 12 or kind % 2:
        raise ValueError(f"there is no key of kind {kind}")
    length = (kind - 12) // 2
    return data[at : at + length], length


def differing_ranges(old: Pages, new: Pages, changed: Callable[[int], bool]) -> list[Range]:
    """Ranges of keys, sorted and apart, outside of which both b-trees have the same rows.

    changed: whether a page does not have the same bytes in both.
    """
    common = {page for page in old.leaves.keys() & new.leaves.keys() if not changed(page)}
    inner = {page for page in old.inner.keys() & new.inner.keys() if not changed(page)}
    ranges: list[Range] = []
    for pages in (old, new):
        ranges += [within for page, within in pages.leaves.items() if page not in common]
        # In the tree of an index, rows are on inner pages as well.
        ranges += [(key, key) for page, keys in pages.inner.items() if page not in inner for key in keys]
    return _joined(ranges)


def _joined(ranges: Iterable[Range]) -> list[Range]:
    joined: list[Range] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return joined
