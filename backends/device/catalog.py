"""What is on a device: its volumes, where their blocks are, and what is free. In SQLite, in the tables of the device.

A change is a transaction, and durable, with all data that was written before it, when it returns. Changes that several
threads ask for at once are one transaction. Calls block; those that look at the tables wait for other processes.
"""

import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import apsw

from fusevol.backends.device.disk import BLOCK, Disk
from fusevol.backends.device.extents import WINDOW, Extent, Known
from fusevol.backends.device.layout import MARKS, MARKS_AT, Layout
from fusevol.backends.device.tablefile import RESERVED, TableVFS
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    FusevolError,
    ManifestConflict,
    NoSpace,
    VolumeNotFound,
)

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


class _Change(Generic[T]):
    """Work for a transaction. What it returns is called after that, and returns what the change is asked for."""

    def __init__(self, work: Callable[[], Callable[[], T]]) -> None:
        self.work = work
        self.then: Callable[[], T] | None = None
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False


class Catalog:
    """The tables of one device, and what is known of them.

    free: how many blocks belong to no volume.
    """

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self.disk = disk
        self._layout = layout
        self._vfs = TableVFS(disk, layout)
        self._connection: apsw.Connection | None = None
        self._guard = threading.Lock()
        self._waiting: list[_Change[Any]] = []
        self._waiting_guard = threading.Lock()
        self._known: dict[str, Known] = {}
        #: The number of changes as of which all that is known is so.
        self._seen = -1
        self.free = self._total = 0
        self._closed = False

    # -- transactions -----------------------------------------------------------------------------

    def create(self) -> None:
        """Make empty tables, on a device that is `locked` and is to have some. Durable. Raises as all do."""
        self._vfs.erase()
        self._vfs.empty = True
        with self._translated():
            self._execute("PRAGMA page_size=4096").fetchall()
            self._open().reserve_bytes(reserve=RESERVED)
            self._execute("BEGIN")
            self._execute(_SCHEMA)
            first = self._layout.data // BLOCK
            self._execute("INSERT INTO device VALUES (?, 0)", (first,))
            self._grow()
            self._execute("COMMIT")
        self._vfs.empty = False

    def _open(self) -> apsw.Connection:
        if self._closed:
            raise BackendError(f"{self.disk.path} was closed")
        if self._connection is None:
            connection = apsw.Connection("fusevol", vfs=self._vfs.name)
            try:
                for pragma, answer in (
                    ("journal_mode=PERSIST", "persist"),
                    ("synchronous=FULL", None),
                    ("temp_store=MEMORY", None),
                    ("cache_size=-16384", None),
                    (f"max_page_count={self._layout.tables.size // BLOCK}", self._layout.tables.size // BLOCK),
                ):
                    said = connection.cursor().execute(f"PRAGMA {pragma}").fetchall()
                    if answer is not None and said != [(answer,)]:
                        raise BackendError(f"the tables of {self.disk.path} could not be opened: {pragma} is {said}")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _execute(self, sql: str, bindings: tuple[Any, ...] = ()) -> apsw.Cursor:
        return self._open().cursor().execute(sql, bindings)

    def _rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        return list(self._execute(sql, bindings))

    def _one(self, sql: str, bindings: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        return next(iter(self._rows(sql, bindings)), None)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Inside, SQLite's errors become this project's."""
        try:
            yield
        except apsw.Error as error:
            cause, self._vfs.error = self._vfs.error, None
            where = f"the tables of {self.disk.path}"
            if cause is not None:
                raise cause from error
            if isinstance(error, apsw.FullError):
                raise NoSpace(f"{where} are full", hint="remove a volume or a snapshot") from error
            if isinstance(error, apsw.CorruptError | apsw.NotADBError):
                raise CorruptData(f"{where} are damaged: {error}", hint="restore the device from a copy") from error
            raise BackendError(f"{where} could not be used: {error}") from error

    def _change(self, work: Callable[[], Callable[[], T]]) -> T:
        """Do it in a transaction, with what others wait for; work raises where it can do nothing, and has done nothing.

        Raises what work raises, CorruptData, NoSpace, BackendError, OSError.
        """
        if not self.disk.writable:
            raise BackendError(
                f"{self.disk.path} can only be read", hint="what is there can be: fusevol mount VOL@SNAP"
            )
        mine = _Change(work)
        with self._waiting_guard:
            self._waiting.append(mine)
        with self._guard:
            if not mine.done:
                with self._waiting_guard:
                    group, self._waiting = self._waiting, []
                self._carry_out(group)
        if mine.error is not None:
            raise mine.error
        return mine.result  # type: ignore[return-value]  # of this very work

    def _carry_out(self, group: list[_Change[Any]]) -> None:
        try:
            with self.disk.locked():
                self._look()
                try:
                    self._transaction(group)
                except FusevolError:
                    # Together they may not fit the journal; and what one of them comes upon is no matter of the others.
                    if len(group) == 1:
                        raise
                    for change in group:
                        self._alone(change)
        except BaseException as error:  # noqa: BLE001 - each of those who wait raises it
            for change in group:
                change.error = change.error or (None if change.done else error)
        finally:
            for change in group:
                change.done = True

    def _alone(self, change: _Change[Any]) -> None:
        change.error = change.then = None
        try:
            self._transaction([change])
        except FusevolError as error:
            change.error = error
        change.done = True

    def _transaction(self, group: list[_Change[Any]]) -> None:
        """Under the lock."""
        free = self.free
        try:
            with self._translated():
                self._execute("BEGIN")
                for change in group:
                    self._execute("SAVEPOINT change")
                    before = self.free
                    try:
                        change.then = change.work()
                    except (AlreadyExists, ManifestConflict, VolumeNotFound) as error:
                        self._execute("ROLLBACK TO change")
                        change.error, self.free = error, before
                    self._execute("RELEASE change")
                if self.free != free:
                    self._execute("UPDATE device SET free = ?", (self.free,))
                self._execute("COMMIT")
        except BaseException:
            self.free = free
            if self._connection is not None and self._connection.in_transaction:
                with self._translated():
                    self._execute("ROLLBACK")
            raise
        self._seen = self._vfs.changes
        for change in group:
            if change.error is None and change.then is not None:
                change.result = change.then()

    def _read(self, look: Callable[[], T]) -> T:
        """What it finds in the tables. Raises as `_change` does."""
        with self._guard, self.disk.locked():
            self._look()
            with self._translated():
                return look()

    def close(self) -> None:
        """Let go of the tables."""
        with self._guard:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

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

    def _extend(self) -> None:
        if self.disk.writable:
            self._execute("BEGIN")
            self._grow()
            self._execute("COMMIT")

    def _grow(self) -> None:
        """Have what the device is larger by."""
        blocks, free = self._one("SELECT blocks, free FROM device") or (0, 0)
        self._total, more = self.disk.blocks, self.disk.blocks - blocks
        self._give(blocks, more)
        self.free = free + more
        self._execute("UPDATE device SET blocks = ?, free = ?", (self._total, self.free))

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
        known.changed = self.disk.read(8, _mark_at(known.number))
        sql = "SELECT version, manifest, blocks FROM volume WHERE number = ?"
        known.version, known.manifest, known.blocks = self._one(sql, (known.number,)) or ("", b"", 0)
        known.end = self._end(known)

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
        return known if mark is not None and bytes(mark) == known.changed else None

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

    def capacity(self) -> tuple[int, int]:
        """How many blocks there are for data, and how many of them are free. Waits for nobody: they may be old."""
        return self._total - self._layout.data // BLOCK, self.free

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
        """Remove a volume, and all it has. Raises VolumeNotFound."""

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
        self.sweep()

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
                    known.manifest, known.version, known.changed = data, version, changed
                return version

            return then

        return self._change(work)

    def _mark(self, number: int) -> bytes:
        """Have others know that something about a volume will be another; return its mark.

        Before the transaction ends: whoever sees the new mark waits for the tables, and so for that end. It need not be
        durable, since nobody remembers a mark for longer than the kernel's cache does.
        """
        mark = secrets.token_bytes(8)
        self.disk.write_table(mark, _mark_at(number))
        return mark

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
            known.changed, known.end, known.blocks = mark, end, row[0] if row else 0
            for start, count, extents in changes:
                known.replace(start, count, extents)

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

    def _execute_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._open().cursor().executemany(sql, rows)

    # -- free space -------------------------------------------------------------------------------

    def choose_free(self, choose: Callable[[Iterator[tuple[int, int]]], T]) -> T:
        """What `choose` makes of the free runs, (address, blocks), longest first; nothing changes meanwhile."""

        def look() -> T:
            rows = self._execute("SELECT address, count FROM free ORDER BY count DESC, address")
            try:
                return choose((address, count) for address, count in rows)
            finally:
                rows.close()

        return self._read(look)

    def if_free(self, address: int, count: int, then: Callable[[], None]) -> None:
        """Call `then` if blocks are free; nothing changes meanwhile."""

        def look() -> None:
            found = self._around(address)
            if found and sum(found) >= address + count:
                then()

        self._read(look)

    def _around(self, address: int) -> tuple[int, int] | None:
        """The free run that begins at or before an address."""
        sql = "SELECT address, count FROM free WHERE address <= ? ORDER BY address DESC LIMIT 1"
        row = self._one(sql, (address,))
        return (row[0], row[1]) if row else None

    def _give(self, address: int, count: int) -> None:
        """Blocks are free from now on. Raises CorruptData where some of them are so already."""
        start, end = address, address + count
        before, after = self._around(address), self._one("SELECT address, count FROM free WHERE address = ?", (end,))
        inside = "SELECT 1 FROM free WHERE address > ? AND address < ? LIMIT 1"
        if (before and sum(before) > address) or self._one(inside, (address, end)):
            raise self._twice(address)
        if before and sum(before) == address:
            start = before[0]
            self._execute("DELETE FROM free WHERE address = ?", (start,))
        if after:
            end += after[1]
            self._execute("DELETE FROM free WHERE address = ?", (after[0],))
        self._execute("INSERT INTO free VALUES (?, ?)", (start, end - start))

    def _take(self, address: int, count: int) -> None:
        """Blocks are not free any more. Raises CorruptData where they are not."""
        found = self._around(address)
        if found is None or sum(found) < address + count:
            raise self._twice(address)
        start, length = found
        self._execute("DELETE FROM free WHERE address = ?", (start,))
        if start < address:
            self._execute("INSERT INTO free VALUES (?, ?)", (start, address - start))
        if address + count < start + length:
            self._execute("INSERT INTO free VALUES (?, ?)", (address + count, start + length - address - count))
        self.free -= count

    def _twice(self, address: int) -> CorruptData:
        return CorruptData(
            f"the tables of {self.disk.path} contradict themselves about block {address}; nothing was changed",
            hint="restore the device from a copy",
        )


def _mark_at(number: int) -> int:
    return MARKS_AT + number % MARKS * 8


_NAMES = "SELECT id FROM volume WHERE id IS NOT NULL"
_EXTENTS = """
    SELECT start, count, address FROM extent WHERE volume = ?1
    AND start >= coalesce((SELECT max(start) FROM extent WHERE volume = ?1 AND start <= ?2), ?2)
    AND start < ?3 AND start + count > ?2 ORDER BY start LIMIT ?4
"""
