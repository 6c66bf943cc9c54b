"""What is on a device: its volumes, their manifests, and where their blocks are."""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fusevol.backends.base import NO_VERSION, Manifest
from fusevol.backends.device.disk import BLOCK, Disk
from fusevol.backends.device.extents import WINDOW, Extent, Known
from fusevol.backends.device.freeblocks import FreeBlocks
from fusevol.backends.device.layout import MARKS, MARKS_AT, Layout
from fusevol.backends.device.tablefile import RESERVED
from fusevol.backends.device.tables import Change
from fusevol.errors import AlreadyExists, BackendError, ManifestConflict, VolumeNotFound

__all__ = ["Catalog"]

T = TypeVar("T")
Runs = list[tuple[int, int]]

#: So many extents are given back in one transaction; more would not fit the journal where each is on pages of its own.
_AT_ONCE = 256

_SCHEMA = """
    -- Numbers are of blocks, and so are addresses. `id` is null for a volume that is being deleted.
    CREATE TABLE volume (
        number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE,
        version TEXT NOT NULL, manifest BLOB NOT NULL, blocks INTEGER NOT NULL
    );
    CREATE TABLE extent (
        volume INTEGER, start INTEGER, count INTEGER NOT NULL, address INTEGER NOT NULL, PRIMARY KEY (volume, start)
    ) WITHOUT ROWID;
    CREATE TABLE free (address INTEGER PRIMARY KEY, count INTEGER NOT NULL);
    CREATE INDEX free_by_count ON free (count, address);
    CREATE TABLE device (blocks INTEGER NOT NULL, free INTEGER NOT NULL);
"""


class Catalog(FreeBlocks):
    """All that is on one device, and what is known of it in memory."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        super().__init__(disk, layout)
        self._known: dict[str, Known] = {}
        #: Of the transaction that is under way, by the numbers of volumes.
        self._marks: dict[int, bytes] = {}

    def create(self) -> None:
        """Make empty tables, on a device that is `locked` and is to have some. Durable. Raises as all do."""
        self._vfs.erase()
        self._vfs.empty = True
        with self._translated():
            self._execute("PRAGMA page_size=4096").fetchall()
            self._open().reserve_bytes(reserve=RESERVED)
            with self._begun():
                self._execute(_SCHEMA)
                first = self._layout.data // BLOCK
                self._execute("INSERT INTO device VALUES (?, 0)", (first,))
                self._grow()
        self._vfs.empty = False

    # -- what is known ----------------------------------------------------------------------------

    def _look(self) -> None:
        """Under the lock: see whether what is known is so still."""
        if (changes := self._vfs.changes) == self._seen:
            return
        with self._translated():
            self._total, self.free = self._one("SELECT blocks, free FROM device") or (0, 0)
            for known in [*self._known.values()]:
                self._renew(known)
            if self._total < self.disk.blocks:
                self._extend()
            if self._total > self.disk.blocks:
                raise BackendError(
                    f"{self.disk.path} has {self.disk.blocks * BLOCK} bytes; it had {self._total * BLOCK}",
                    hint="make it as large again as it was",
                )
            # Where a change was interrupted, SQLite has undone it by now.
            changes = self._vfs.changes
        self._seen = changes
        self._tell()

    def _renew(self, known: Known) -> None:
        """Know what others have changed about a volume."""
        if self.disk.read(8, _mark_at(known.number)) == known.changed:
            return
        row = self._one("SELECT number FROM volume WHERE id = ?", (known.id,))
        if row is None or row[0] != known.number:
            del self._known[known.id]
        else:
            known.forget()
            self._fill(known)

    def _fill(self, known: Known) -> None:
        changed = self.disk.read(8, _mark_at(known.number))
        sql = "SELECT manifest, version, blocks FROM volume WHERE number = ?"
        manifest, version, blocks = self._one(sql, (known.number,)) or (b"", NO_VERSION, 0)
        known.end, known.blocks, known.manifest = self._end(known), blocks, Manifest(manifest, version)
        known.changed = changed

    def _end(self, known: Known) -> int:
        sql = "SELECT start + count FROM extent WHERE volume = ? ORDER BY start DESC LIMIT 1"
        row = self._one(sql, (known.number,))
        return int(row[0]) if row else 0

    def current(self, volume_id: str) -> Known | None:
        """A volume that is known, if nobody has changed it since. Does not wait. Raises OSError."""
        known = self._known.get(volume_id)
        if known is None:
            return None
        mark = self.disk.read_cached(8, _mark_at(known.number))
        # Until a transaction of this instance is through, all is as it was before, and nobody else changes it.
        return known if mark is not None and bytes(mark) in (known.changed, self._marks.get(known.number)) else None

    def recalled(self, volume_id: str) -> Known | None:
        """The same, whoever may have changed it."""
        return self._known.get(volume_id)

    def find(self, volume_id: str) -> Known:
        """A volume. Raises VolumeNotFound, and as all do."""
        return self.current(volume_id) or self._read(lambda: self._find(volume_id))

    def _find(self, volume_id: str) -> Known:
        if (known := self._known.get(volume_id)) is not None:
            self._renew(known)
        if (known := self._known.get(volume_id)) is None:
            row = self._one("SELECT number FROM volume WHERE id = ?", (volume_id,))
            if row is None:
                raise self._missing(volume_id)
            known = Known(volume_id, row[0])
            self._fill(known)
            self._known[volume_id] = known
        return known

    def _missing(self, volume_id: str) -> VolumeNotFound:
        return VolumeNotFound(f'volume "{volume_id}" does not exist on {self.disk.path}')

    # -- volumes ----------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The ids of all volumes, sorted."""
        return sorted(row[0] for row in self._read(lambda: self._rows(_NAMES)))

    def add(self, volume_id: str) -> None:
        """Make a volume. Raises AlreadyExists."""

        def work() -> Callable[[], None]:
            if self._one("SELECT 1 FROM volume WHERE id = ?", (volume_id,)):
                raise AlreadyExists(f'volume "{volume_id}" exists on {self.disk.path} already')
            self._execute("INSERT INTO volume VALUES (NULL, ?, '', x'', 0)", (volume_id,))
            return lambda: None

        self._change(work)

    def remove(self, volume_id: str) -> None:
        """Remove a volume; `sweep` gives back what it had. Raises VolumeNotFound."""

        def work() -> Callable[[], None]:
            row = self._one("SELECT number FROM volume WHERE id = ?", (volume_id,))
            if row is None:
                raise self._missing(volume_id)
            self._execute("UPDATE volume SET id = NULL WHERE number = ?", row)
            self._mark(row[0])

            def then() -> None:
                self._known.pop(volume_id, None)

            return then

        self._change(work)

    def sweep(self) -> None:
        """Give back what volumes that were deleted have still."""
        for (number,) in self._read(lambda: self._rows("SELECT number FROM volume WHERE id IS NULL")):
            while not self._change(partial(self._wipe, number)):
                pass

    def _wipe(self, number: int) -> Callable[[], bool]:
        """Give back some of what a deleted volume has; in the end, the volume itself, and then return true."""
        sql = "SELECT start, count, address FROM extent WHERE volume = ? ORDER BY start LIMIT ?"
        extents = self._rows(sql, (number, _AT_ONCE))
        for start, count, address in extents:
            self._drop(number, start, count, address)
        if not extents:
            self._execute("DELETE FROM volume WHERE number = ?", (number,))
        return lambda: not extents

    def put_manifest(self, volume_id: str, data: bytes, if_version: str) -> str:
        """Replace a manifest; return its version. Raises ManifestConflict, VolumeNotFound."""

        # Drawn, not counted: a volume deleted and made again must not come upon the versions of the old one.
        version = str(secrets.randbits(64))

        def work() -> Callable[[], str]:
            # From the tables: the change before this one, in the same transaction, may be one of it.
            row = self._one("SELECT number, version FROM volume WHERE id = ?", (volume_id,))
            if row is None:
                raise self._missing(volume_id)
            if row[1] != if_version:
                raise ManifestConflict(
                    f'the manifest of volume "{volume_id}" is at version {row[1] or "none"}, not {if_version or "none"}'
                )
            self._execute("UPDATE volume SET manifest = ?, version = ? WHERE number = ?", (data, version, row[0]))
            changed = self._mark(row[0])

            def then() -> str:
                known = self._known.get(volume_id)
                if known is not None and known.number == row[0]:
                    known.manifest = Manifest(data, version)
                    known.changed = changed
                return version

            return then

        return self._change(work)

    def _mark(self, number: int) -> bytes:
        """Have others know that something about a volume will be another; return its mark.

        Before the transaction ends: whoever sees the new mark waits for the tables, and so for that end. It need not be
        durable, since nobody remembers a mark for longer than the kernel's cache does.
        """
        mark = secrets.token_bytes(8)
        self._marks[number] = mark
        self.disk.write_table(mark, _mark_at(number))
        return mark

    def _transaction(self, group: list[Change[Any]]) -> None:
        try:
            super()._transaction(group)
        finally:
            self._marks = {}

    # -- extents ----------------------------------------------------------------------------------

    def load(self, known: Known, start: int, count: int) -> None:
        """Know the extents of a range."""

        def look() -> None:
            missing = known.missing(start, count)
            known.make_room(len(missing))
            for window in missing:
                known.keep(window, self._extents(known.number, window * WINDOW, (window + 1) * WINDOW))

        self._read(look)

    def _extents(self, number: int, low: int, high: int, most: int = -1) -> list[Extent]:
        """Those in a range, the first `most` of them, cut to it."""
        rows = self._rows(_EXTENTS, (number, low, high, most))
        return [
            (max(start, low), min(start + count, high) - max(start, low), address + max(0, low - start))
            for start, count, address in rows
        ]

    def reach(self, known: Known, start: int, count: int) -> int:
        """How many blocks from `start` on, `count` at most, are in few enough places to be overwritten at once."""
        found = self._read(lambda: self._extents(known.number, start, start + count, _AT_ONCE // 2 + 1))
        return found[-1][0] - start if len(found) > _AT_ONCE // 2 else count

    def mapped(self, known: Known, start: int, count: int) -> int:
        """How many blocks of a range there are."""
        return self._read(lambda: sum(extent[1] for extent in self._extents(known.number, start, start + count)))

    def record(self, known: Known, start: int, pieces: Runs) -> None:
        """From `start` on, the volume's blocks are in these runs, which are free; what was there is given back.

        Raises VolumeNotFound where the volume was deleted.
        """
        count = sum(length for _, length in pieces)

        def work() -> Callable[[], None]:
            if self._one("SELECT 1 FROM volume WHERE number = ? AND id IS NOT NULL", (known.number,)) is None:
                raise self._missing(known.id)
            for extent in self._extents(known.number, start, start + count):
                self._cut(known.number, *extent)
            at, extents = start, []
            for address, length in pieces:
                self._take(address, length)
                extents.append((at, length, address))
                at += length
            self._execute_many("INSERT INTO extent VALUES (?, ?, ?, ?)", [(known.number, *row) for row in extents])
            self._execute("UPDATE volume SET blocks = blocks + ? WHERE number = ?", (count, known.number))
            return self._settled(known, [(start, count, extents)])

        self._change(work)

    def unmap(self, known: Known, ranges: Runs) -> None:
        """Give back what the volume has in these ranges. Where it fails, what is left to do is left in `ranges`."""
        while ranges:
            del ranges[: self._change(lambda: self._unmap(known, ranges))]

    def _unmap(self, known: Known, ranges: Runs) -> Callable[[], int]:
        """Give back some of it; return how many of the ranges are through."""
        left, through = _AT_ONCE, 0
        changes: list[tuple[int, int, list[Extent]]] = []
        for start, count in ranges:
            extents = self._extents(known.number, start, start + count, left + 1)
            for extent in extents[:left]:
                self._cut(known.number, *extent)
                changes.append((extent[0], extent[1], []))
            if len(extents) > left:
                break
            left -= len(extents)
            through += 1
        settled = self._settled(known, changes) if changes else None

        def then() -> int:
            if settled:
                settled()
            return through

        return then

    def _settled(self, known: Known, changes: "list[tuple[int, int, list[Extent]]]") -> Callable[[], None]:
        """What is to be known once the transaction is through."""
        mark = self._mark(known.number)
        end = self._end(known)
        row = self._one("SELECT blocks FROM volume WHERE number = ?", (known.number,))

        def then() -> None:
            known.end, known.blocks = end, row[0] if row else 0
            for start, count, extents in changes:
                known.replace(start, count, extents)
            known.changed = mark

        return then

    def _cut(self, number: int, start: int, count: int, address: int) -> None:
        """Give back a part of an extent."""
        sql = "SELECT start, count, address FROM extent WHERE volume = ? AND start <= ? ORDER BY start DESC LIMIT 1"
        first, length, where = self._one(sql, (number, start)) or (start, count, address)
        self._drop(number, first, count, address)
        if first < start:
            self._execute("INSERT INTO extent VALUES (?, ?, ?, ?)", (number, first, start - first, where))
        if start + count < first + length:
            rest = start + count
            row = (number, rest, first + length - rest, where + rest - first)
            self._execute("INSERT INTO extent VALUES (?, ?, ?, ?)", row)

    def _drop(self, number: int, start: int, count: int, address: int) -> None:
        """Remove the extent that begins at `start`; give back `count` blocks of it, at `address`."""
        self._execute("DELETE FROM extent WHERE volume = ? AND start = ?", (number, start))
        self._execute("UPDATE volume SET blocks = blocks - ? WHERE number = ?", (count, number))
        self._give(address, count)
        self.free += count


def _mark_at(number: int) -> int:
    return MARKS_AT + number % MARKS * 8


_NAMES = "SELECT id FROM volume WHERE id IS NOT NULL"
_EXTENTS = """
    SELECT start, count, address FROM extent WHERE volume = ?1
    AND start >= coalesce((SELECT max(start) FROM extent WHERE volume = ?1 AND start <= ?2), ?2)
    AND start < ?3 AND start + count > ?2 ORDER BY start LIMIT ?4
"""
