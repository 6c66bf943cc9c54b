"""What differs between the filesystems in two states of a volume, from metadata and the map: no file is read.

Names, inodes and extents are compared only where their database's pages differ; and content by the checksums that the
map has of it. A file is the same one in both states if it has the same inode number, kind and time of birth: after
a restore, numbers are given again.
"""

import stat
from bisect import bisect_left
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import trio
from xxhash import xxh3_64_intdigest

from fusevol.errors import CorruptData
from fusevol.fs.btree import FIRST, LAST, Key, Range, differing_ranges, pages_of
from fusevol.fs.database import read_superblock
from fusevol.fs.findings import MetadataReader
from fusevol.fs.layout import BLOCK, DATA_BLOCK, DATABASE, ROOT, SCHEMA
from fusevol.log import LogVolume, SnapshotView
from fusevol.log.difference import ZERO_SUM, changed_runs, checksums
from fusevol.log.format import LOGICAL_BLOCKS
from fusevol.log.tree import Words

__all__ = ["Change", "compare_filesystems"]

_OLD, _NEW = "old", "new"
_SIDES = (_OLD, _NEW)
_BOTH_WAYS = (_SIDES, _SIDES[::-1])
#: Whether the rows `o` and `n` of one number are of one file.
_SAME_FILE = "(o.btime = n.btime AND o.mode >> 12 = n.mode >> 12)"
_KIND_SHIFT = 12
_PACE = 500
#: Blocks whose checksums are compared at once.
_AT_ONCE = 1 << 16
#: More directories than any path can have.
_DEEPEST = 1 << 20
#: Attributes that are compared, and how a change calls them. Times of access and of the last change of the inode
#: are left out: they change with everything, and reading.
_ATTRIBUTES = {"mode": "mode", "uid": "owner", "gid": "group", "rdev": "device", "mtime": "mtime"}


class Change(NamedTuple):
    """A name that is there in one state only, or a file that changed.

    what: "added", "removed", "renamed" or "changed". kind: S_IFMT bits. path: from the root, which is b"/"; where it
    was removed, in the old state, else in the new one. old_path: of a renamed one. content: whether that is another.
    attributes: which of mode, owner, group, device, mtime and xattrs are others; mtime not where content, or the names
    in a directory, are.
    """

    what: str
    kind: int
    path: bytes
    old_path: bytes | None = None
    content: bool = False
    attributes: tuple[str, ...] = ()


class _Name(NamedTuple):
    parent: int
    name: bytes
    kind: int


#: Runs of file blocks: block of the file, address, count.
_Extents = list[tuple[int, int, int]]


async def compare_filesystems(old: LogVolume | SnapshotView, new: LogVolume | SnapshotView) -> list[Change]:
    """All changes that lead from one state of a volume to the other, sorted by path.

    A state without a filesystem has no files, nor a root. Files that are deleted, but still open, are not there.

    Raises CorruptData, BackendError, NotSupported (a later version of the filesystem).
    """
    sides = {_OLD: old, _NEW: new}
    there = {side: source for side, source in sides.items() if await read_superblock(source)}
    metadata = MetadataReader(**there)
    try:
        for side in sides.keys() - there.keys():
            _without_files(metadata, side)
        metadata.begin()
        return await _Comparison(metadata, sides, whole=len(there) < len(sides)).run()
    finally:
        metadata.close()


def _without_files(metadata: MetadataReader, side: str) -> None:
    """A database without rows."""
    metadata.run(f"ATTACH ':memory:' AS {side}")
    schema = SCHEMA
    for word in ("CREATE TABLE ", "CREATE INDEX ", "CREATE UNIQUE INDEX "):
        schema = schema.replace(word, f"{word}{side}.")
    metadata.run(schema)


class _Comparison:
    """One comparison. whole: everything is compared, since one of the states has no pages to go by."""

    def __init__(
        self, metadata: MetadataReader, sources: dict[str, LogVolume | SnapshotView], *, whole: bool
    ) -> None:  # fmt: skip
        self._metadata = metadata
        self._sources = sources
        self._whole = whole
        #: Pages of the database that are not the same in both.
        self._pages: set[int] = set()
        #: Runs of data blocks that do not read the same: first block, and the block behind the last.
        self._runs: list[tuple[int, int]] = []
        #: Names that are in one state only, or are of another file there, by inode.
        self._names: dict[str, dict[int, list[_Name]]] = {_OLD: {}, _NEW: {}}
        #: Inode numbers that are of another file in each state.
        self._replaced: set[int] = set()
        #: What is another in inodes that are there in both.
        self._changed: dict[int, set[str]] = {}
        #: The directories of each state, by inode.
        self._directories: dict[str, dict[int, _Name]] = {_OLD: {}, _NEW: {}}

    async def run(self) -> list[Change]:
        await self._compare_blocks()
        await self._compare_names()
        suspects = await self._compare_inodes()
        suspects |= await self._compare_extents()
        await self._compare_attributes()
        for number, ino in enumerate(sorted(suspects)):
            if number % _PACE == 0:
                await trio.lowlevel.checkpoint()
            mode = self._kept(ino)
            if mode is not None and stat.S_ISREG(mode) and await self._content_differs(ino):
                self._changed.setdefault(ino, set()).add("content")
        found = await self._find_names()
        return sorted(self._changes(found), key=lambda change: (change.path, change.what != "removed"))

    # -- what differs -----------------------------------------------------------------------------

    async def _compare_blocks(self) -> None:
        first = DATABASE // BLOCK
        async for block, count in changed_runs(self._sources[_OLD], self._sources[_NEW], first, LOGICAL_BLOCKS):
            if block < DATA_BLOCK:
                self._pages.update(range(block - first + 1, block - first + 1 + count))
            elif self._runs and self._runs[-1][1] == block:
                self._runs[-1] = (self._runs[-1][0], block + count)
            else:
                self._runs.append((block, block + count))

    def _ranges(self, table: str) -> list[Range]:
        """Ranges of a table's keys outside of which the rows are the same."""
        if self._whole or not self._pages:
            return [(FIRST, LAST)] if self._whole else []
        query = "SELECT rootpage FROM {}.sqlite_schema WHERE type = 'table' AND name = ?"
        trees = {}
        for side in _SIDES:
            ((root,),) = self._metadata.rows(query.format(side), table)
            trees[side] = pages_of(partial(self._page, side), root)
        return differing_ranges(trees[_OLD], trees[_NEW], self._pages.__contains__)

    def _page(self, side: str, number: int) -> bytes:
        source = self._sources[side]
        with source.blocking():
            data = source.read_nowait(BLOCK, DATABASE + (number - 1) * BLOCK)
        if data is None:
            raise CorruptData(f"page {number} of the metadata is damaged", hint="check the volume")
        return bytes(data)

    async def _compare_names(self) -> None:
        for low, high in self._ranges("entry"):
            for side, other in _BOTH_WAYS:
                async for parent, name, kind, ino in self._metadata.paced(
                    f"SELECT a.parent, a.name, a.kind, a.ino FROM {side}.entry a"
                    f" LEFT JOIN {other}.entry b ON b.parent = a.parent AND b.name = a.name"
                    f" WHERE {_within(('a.parent', 'a.name'), low, high)} AND b.ino IS NOT a.ino",
                    *low, *high,
                ):  # fmt: skip
                    self._names[side].setdefault(ino, []).append(_Name(parent, name, kind << _KIND_SHIFT))

    async def _compare_inodes(self) -> set[int]:
        """Note which attributes differ, and which inodes are of other files; return those whose content may differ."""
        suspects = set()
        flags = [f"o.{column} IS NOT n.{column}" for column in _ATTRIBUTES]
        content = "(o.size != n.size OR o.blocks != n.blocks OR o.mtime != n.mtime OR o.data IS NOT n.data)"
        for low, high in self._ranges("inode"):
            async for ino, replaced, suspect, *differ in self._metadata.paced(
                f"SELECT n.ino, NOT {_SAME_FILE}, {content}, {', '.join(flags)}"
                " FROM new.inode n JOIN old.inode o ON o.ino = n.ino"
                f" WHERE {_within(('n.ino',), low, high)} AND o.nlink AND n.nlink"
                f" AND (NOT {_SAME_FILE} OR {content} OR {' OR '.join(flags)})",
                *low, *high,
            ):  # fmt: skip
                if replaced:
                    self._replaced.add(ino)
                    continue
                if suspect:
                    suspects.add(ino)
                if any(differ):
                    self._changed[ino] = {name for name, flag in zip(_ATTRIBUTES.values(), differ, strict=True) if flag}
        return suspects

    async def _compare_extents(self) -> set[int]:
        """The inodes whose extents differ, or have other blocks."""
        suspects = set()
        for low, high in self._ranges("extent"):
            for side, other in _BOTH_WAYS:
                async for (ino,) in self._metadata.paced(
                    f"SELECT DISTINCT a.ino FROM {side}.extent a"
                    f" LEFT JOIN {other}.extent b ON b.ino = a.ino AND b.block = a.block"
                    f" WHERE {_within(('a.ino', 'a.block'), low, high)}"
                    " AND (b.address IS NOT a.address OR b.count IS NOT a.count)",
                    *low, *high,
                ):  # fmt: skip
                    suspects.add(ino)
        if self._runs:
            # What is written in place changes the inode as well, but where a crash came in between.
            self._metadata.run("CREATE TEMP TABLE run (first INTEGER PRIMARY KEY, behind INTEGER NOT NULL)")
            for run in self._runs:
                self._metadata.run("INSERT INTO run VALUES (?, ?)", *run)
            for side in _SIDES:
                async for (ino,) in self._metadata.paced(
                    f"SELECT DISTINCT ino FROM {side}.extent WHERE address <"
                    " (SELECT behind FROM run WHERE first < address + count ORDER BY first DESC LIMIT 1)"
                ):
                    suspects.add(ino)
        return suspects

    async def _compare_attributes(self) -> None:
        # All of them: a long one continues on pages of its own, which are in no tree.
        for side, other in _BOTH_WAYS if self._pages or self._whole else ():
            async for (ino,) in self._metadata.paced(
                f"SELECT DISTINCT a.ino FROM {side}.xattr a"
                f" LEFT JOIN {other}.xattr b ON b.ino = a.ino AND b.name = a.name WHERE b.value IS NOT a.value"
            ):
                if self._kept(ino) is not None:
                    self._changed.setdefault(ino, set()).add("xattrs")

    # -- one file ---------------------------------------------------------------------------------

    def _kept(self, ino: int) -> int | None:
        """The mode of an inode that is the same file in both states; else None."""
        query = (
            "SELECT n.mode FROM new.inode n JOIN old.inode o ON o.ino = n.ino"
            f" WHERE n.ino = ? AND o.nlink AND n.nlink AND {_SAME_FILE}"
        )
        for (mode,) in self._metadata.rows(query, ino):
            return int(mode)
        return None

    async def _content_differs(self, ino: int) -> bool:
        rows = {}
        for side in _SIDES:
            ((size, data),) = self._metadata.rows(f"SELECT size, data FROM {side}.inode WHERE ino = ?", ino)
            rows[side] = size, None if data is None else data.ljust(size, b"\0")
        if rows[_OLD][0] != rows[_NEW][0]:
            return True
        inline = {side: data for side, (_, data) in rows.items() if data is not None}
        if len(inline) == len(_SIDES):
            return bool(inline[_OLD] != inline[_NEW])
        extents = {side: self._extents(side, ino) for side in _SIDES if side not in inline}
        if inline:
            # What is in an inode is less than a block.
            ((_, data),), ((side, found),) = inline.items(), extents.items()
            address = next((at for block, at, _ in found if not block), 0)
            return int((await self._sums(side, address, 1))[0]) != xxh3_64_intdigest(data.ljust(BLOCK, b"\0"))
        for count, old, new in _pieces(extents[_OLD], extents[_NEW]):
            if old == new:
                if old and self._has_changed(old, count):
                    return True
                continue
            for at in range(0, count, _AT_ONCE):
                size = min(_AT_ONCE, count - at)
                before = await self._sums(_OLD, old and old + at, size)
                if (before != await self._sums(_NEW, new and new + at, size)).any():
                    return True
                await trio.lowlevel.checkpoint()
        return False

    def _extents(self, side: str, ino: int) -> _Extents:
        query = f"SELECT block, address, count FROM {side}.extent WHERE ino = ? ORDER BY block"
        return [(int(block), int(address), int(count)) for block, address, count in self._metadata.rows(query, ino)]

    async def _sums(self, side: str, address: int, count: int) -> Words:
        """Checksums of blocks; address 0 for a hole."""
        if not address:
            return np.full(count, ZERO_SUM, np.uint64)
        return await checksums(self._sources[side], address, count)

    def _has_changed(self, address: int, count: int) -> bool:
        at = bisect_left(self._runs, (address + count, 0))
        return at > 0 and self._runs[at - 1][1] > address

    # -- telling ----------------------------------------------------------------------------------

    async def _find_names(self) -> dict[int, list[_Name]]:
        """Look up all directories, and the names of what is to be told of: one pass over the names of each state.

        Replaced files' go to those that are in one state only; those of the others, in the new state, are returned.
        """
        found: dict[int, list[_Name]] = {}
        if not (self._changed or self._replaced or self._names[_OLD] or self._names[_NEW]):
            return found
        self._metadata.run("CREATE TEMP TABLE wanted (ino INTEGER PRIMARY KEY)")
        for side in _SIDES:
            self._metadata.run("DELETE FROM wanted")
            for ino in self._replaced | (self._changed.keys() if side == _NEW else set()):
                self._metadata.run("INSERT INTO wanted VALUES (?)", ino)
            for ino in self._replaced:
                self._names[side][ino] = []
            async for parent, name, kind, ino, wanted in self._metadata.paced(
                "SELECT parent, name, kind, ino, ino IN (SELECT ino FROM wanted) AS wanted"
                f" FROM {side}.entry WHERE kind = {stat.S_IFDIR >> _KIND_SHIFT} OR wanted"
            ):
                entry = _Name(parent, name, kind << _KIND_SHIFT)
                if stat.S_ISDIR(entry.kind):
                    self._directories[side][ino] = entry
                if wanted:
                    (self._names[side] if ino in self._replaced else found).setdefault(ino, []).append(entry)
        return found

    def _path(self, side: str, name: _Name) -> bytes:
        parts, parent = [name.name], name.parent
        while parent != ROOT:
            above = self._directories[side].get(parent)
            if above is None or len(parts) > _DEEPEST:
                raise CorruptData(f"directory {parent} of the metadata has no path", hint="check the volume")
            parts.append(above.name)
            parent = above.parent
        return b"/" + b"/".join(reversed(parts))

    def _changes(self, found: dict[int, list[_Name]]) -> Iterator[Change]:
        """Everything there is to tell. found: names in the new state of files that changed."""
        touched = {name.parent for names in self._names.values() for each in names.values() for name in each}
        if self._whole:
            for side, what in ((_OLD, "removed"), (_NEW, "added")):
                if next(self._metadata.rows(f"SELECT 1 FROM {side}.inode WHERE ino = ?", ROOT), None):
                    yield Change(what, stat.S_IFDIR, b"/")
        for ino in self._names[_OLD].keys() | self._names[_NEW].keys():
            pairs = list(zip_longest(*(sorted(self._names[side].get(ino, [])) for side in _SIDES)))
            kept = bool(pairs) and None not in pairs[0] and self._kept(ino) is not None
            told = _told(self._changed.pop(ino), ino in touched) if kept and ino in self._changed else _NOTHING
            for old, new in pairs:
                if old and new and kept:
                    yield Change("renamed", new.kind, self._path(_NEW, new), self._path(_OLD, old), *told)
                    told = _NOTHING
                    continue
                if old:
                    yield Change("removed", old.kind, self._path(_OLD, old))
                if new:
                    yield Change("added", new.kind, self._path(_NEW, new))
        for ino, changes in self._changed.items():
            told = _told(changes, ino in touched)
            if any(told):
                if ino == ROOT:
                    yield Change("changed", stat.S_IFDIR, b"/", None, *told)
                elif names := found.get(ino):
                    path, kind = min((self._path(_NEW, name), name.kind) for name in names)
                    yield Change("changed", kind, path, None, *told)


_NOTHING: tuple[bool, tuple[str, ...]] = (False, ())


def _told(changes: set[str], names_changed: bool) -> tuple[bool, tuple[str, ...]]:
    """What is to be told of a file: whether its content differs, and its attributes.

    A time of change is left out where it is a consequence: of other content, or of other names in a directory.
    """
    content = "content" in changes
    attributes = changes - {"content"} - ({"mtime"} if content or names_changed else set())
    return content, tuple(name for name in (*_ATTRIBUTES.values(), "xattrs") if name in attributes)


def _within(columns: tuple[str, ...], low: Key, high: Key) -> str:
    """The condition that a key is in a range, for that range's numbers and names as bindings."""
    parts = []
    for sign, key in ((">=", low), ("<=", high)):
        parts.append(f"({', '.join(columns[: len(key)])}) {sign} ({', '.join('?' * len(key))})")
    return " AND ".join(parts)


def _pieces(old: _Extents, new: _Extents) -> Iterator[tuple[int, int, int]]:
    """A file in both states, in pieces: number of blocks, and where they are in each; address 0 for a hole."""
    block, at = 0, [0, 0]
    while True:
        addresses, ends = [0, 0], []
        for side, extents in enumerate((old, new)):
            while at[side] < len(extents) and extents[at[side]][0] + extents[at[side]][2] <= block:
                at[side] += 1
            if at[side] < len(extents):
                first, address, count = extents[at[side]]
                if first <= block:
                    addresses[side] = address + block - first
                ends.append(first + count if first <= block else first)
        if not ends:
            return
        yield min(ends) - block, addresses[0], addresses[1]
        block = min(ends)
