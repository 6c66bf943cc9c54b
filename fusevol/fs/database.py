"""The metadata database: one connection, one transaction that is open until the next commit."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar, TypeVarTuple

import apsw
from xxhash import xxh3_64_intdigest

from fusevol.errors import BackendError, CorruptData, FusevolError, NotSupported, VolumeBusy
from fusevol.fs.layout import BLOCK, DATA_BLOCK, DATABASE, FS_VERSION, SCHEMA, SUPERBLOCK, SUPERBLOCK_MAGIC
from fusevol.fs.vfs import VolumeVFS
from fusevol.log import LogVolume, SnapshotView

__all__ = ["Database", "read_superblock"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Value = int | bytes | str | None
#: Most of SQLite's page cache: pages of half a million files, and of an open snapshot, of which there may be several.
_CACHE_KIB = 96 * 1024
_SNAPSHOT_CACHE_KIB = 32 * 1024
_FIRST_BYTES = 16 * BLOCK


async def read_superblock(volume: LogVolume | SnapshotView) -> bool:
    """Whether there is a filesystem in the volume; where its tables begin is at hand then, for it to be opened.

    Raises CorruptData, NotSupported (a later version), BackendError.
    """
    data = bytes(await volume.read(BLOCK, 0))
    if not any(data):
        return False
    magic, version, checksum = SUPERBLOCK.unpack_from(data)
    if magic != SUPERBLOCK_MAGIC or checksum != xxh3_64_intdigest(data[:16]):
        raise CorruptData("the volume holds something else than a fusevol filesystem")
    if version != FS_VERSION:
        raise NotSupported(f"the filesystem has version {version}; this program knows version {FS_VERSION}")
    with suppress(CorruptData):  # who needs it is told
        await volume.read(_FIRST_BYTES, DATABASE)
    return True


def _superblock() -> bytes:
    head = SUPERBLOCK.pack(SUPERBLOCK_MAGIC, FS_VERSION, 0)[:16]
    return SUPERBLOCK.pack(SUPERBLOCK_MAGIC, FS_VERSION, xxh3_64_intdigest(head)).ljust(BLOCK, b"\0")


class Database:
    """SQLite over a volume. Every method may raise CorruptData or BackendError."""

    def __init__(self, volume: LogVolume | SnapshotView, *, read_only: bool = False) -> None:
        self._vfs = VolumeVFS(volume)
        flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self._volume = volume
        self._begun = False
        self._lost: FusevolError | None = None
        self._closed: FusevolError | None = None
        self._counters: dict[str, int] = {}
        #: Whether any of them was set in the open transaction.
        self._counted = False
        self._due = False
        self._changing = _Changing(self)
        try:
            self.connection = apsw.Connection("fusevol", flags=flags, vfs=self._vfs.name, statementcachesize=200)
            #: What `guard` is needed around.
            self.execute = self.connection.cursor().execute
            for pragma in (
                f"page_size={BLOCK}",
                "locking_mode=EXCLUSIVE",
                "journal_mode=MEMORY",
                "synchronous=OFF",
                "cache_spill=OFF",
                "temp_store=MEMORY",
                f"cache_size=-{_SNAPSHOT_CACHE_KIB if read_only else _CACHE_KIB}",
            ):
                self.execute(f"PRAGMA {pragma}").fetchall()
        except apsw.Error as error:
            raise self._translated(error) from error

    def create(self) -> None:
        """Make the tables in an empty database."""
        with self.guard():
            self.execute(SCHEMA)
        for key, value in (
            ("next_ino", 2), ("next_cookie", 1), ("next_block", DATA_BLOCK), ("size", 0), ("files", 1), ("blocks", 0),
        ):  # fmt: skip
            self.set_counter(key, value)

    def _translated(self, error: apsw.Error) -> FusevolError:
        cause, self._vfs.error = self._vfs.error, None
        if self._closed is not None:
            return self._closed
        if self._begun and not self.connection.in_transaction:
            # Inodes in memory and the database do not belong together any more.
            self._lost = cause or BackendError(f"the metadata database failed: {error}")
        if cause is not None:
            return cause
        if isinstance(error, apsw.CorruptError | apsw.NotADBError):
            return CorruptData(f"the metadata is damaged: {error}", hint="check the volume")
        return BackendError(f"the metadata database failed: {error}")

    def changing(self) -> "_Changing":
        """Inside, the open transaction is changed; where that fails, nothing of it remains. Raises as `begin` does.

        Only a single statement without balancing a tree is sure to be undone by SQLite itself. What is in memory is for
        the caller to leave alone until all that may fail is through.
        """
        return self._changing

    def guard(self) -> "_Guard":
        """Inside, SQLite's errors become this project's."""
        return _Guard(self)

    def hurried(self, ask: Callable[[*Ts], T], *args: *Ts) -> T:
        """What `ask` returns, which does not wait for the store. Raises Absent where it would have to.

        A change that is made in this way is to be one that `changing` takes back as a whole.
        """
        self._vfs.hurried = True
        try:
            return ask(*args)
        finally:
            self._vfs.hurried = False

    def run(self, sql: str, bindings: tuple[Value, ...] = ()) -> None:
        """Execute one statement that returns nothing, within the open transaction."""
        try:
            self.execute(sql, bindings)
        except apsw.Error as error:
            raise self._translated(error) from error

    def many(self, sql: str, rows: Iterable[tuple[Value, ...]]) -> None:
        """Execute one statement for many rows."""
        try:
            self.connection.cursor().executemany(sql, rows)
        except apsw.Error as error:
            raise self._translated(error) from error

    def one(self, sql: str, bindings: tuple[Value, ...] = ()) -> tuple[Value, ...] | None:
        """The first row, or None."""
        try:
            for row in self.execute(sql, bindings):
                return tuple(row)
        except apsw.Error as error:
            raise self._translated(error) from error
        return None

    def all(self, sql: str, bindings: tuple[Value, ...] = ()) -> list[tuple[Value, ...]]:
        """All rows."""
        try:
            return list(self.connection.cursor().execute(sql, bindings))
        except apsw.Error as error:
            raise self._translated(error) from error

    def each(self, sql: str, bindings: tuple[Value, ...] = ()) -> Iterator[tuple[Value, ...]]:
        """The rows, one at a time."""
        try:
            yield from self.connection.cursor().execute(sql, bindings)
        except apsw.Error as error:
            raise self._translated(error) from error

    def counter(self, key: str, default: int) -> int:
        """A number that lasts."""
        row = self.one("SELECT value FROM counter WHERE key = ?", (key,))
        if row is None:
            return default
        self._counters[key] = int(row[0])  # type: ignore[arg-type]
        return self._counters[key]

    def total(self, key: str, query: str) -> int:
        """A counter of rows; counted, which takes a while, where an earlier version of this program kept none."""
        found = self.counter(key, -1)
        if found >= 0:
            return found
        row = self.one(query)
        self.have_committed()
        return int(row[0]) if row and row[0] else 0

    def set_counter(self, key: str, value: int) -> None:
        """Set it, within the open transaction. The same again makes no page dirty: an idle volume writes nothing."""
        if self._counters.get(key) != value:
            self.run("INSERT OR REPLACE INTO counter VALUES (?, ?)", (key, value))
            self._counters[key] = value
            self._counted = True

    def begin(self) -> None:
        """Open a transaction, if none is open. Raises what an earlier one was lost by; as all do once it is closed."""
        if self._closed is not None:
            raise self._closed
        if self._lost is not None:
            hint = "detach and attach the volume again; it returns to its last barrier"
            raise BackendError(f"changes of the metadata were lost: {self._lost}", hint=hint)
        if not self.connection.in_transaction:
            self.run("BEGIN IMMEDIATE")
            self._begun = True

    def undo(self) -> None:
        """Take back what was changed since the innermost `changing` began."""
        if self._counted:
            self._counters.clear()
        if self.connection.in_transaction:
            self.run("ROLLBACK TO change")
            self.run("RELEASE change")

    def have_committed(self) -> None:
        """Something is to be written by the next commit: it is worth one, though nothing else has changed."""
        self._due = True

    def commit(self) -> None:
        """End the transaction. Its pages are still to be handed to the log."""
        if self.connection.in_transaction:
            self.run("COMMIT")
        self._begun = self._counted = self._due = False

    def write_out(self, *, first: bool = False) -> None:
        """Hand what was committed to the log; without an await, and before the barrier that is to hold it.

        first: and say that there is a filesystem. Where that raises there must be no barrier before it is through.
        """
        self._vfs.write_out(*[(_superblock(), 0)] if first else [])

    def give_back(self, *, all_of_it: bool) -> bool:
        """Give back the space of what was deleted, if it is much; whether to come again soon, for more.

        all_of_it: if it is little as well. To be called after `write_out`, before the barrier, without an await.
        """
        self._due = self._vfs.give_back(all_of_it=all_of_it)
        return self._due

    @property
    def pages(self) -> int:
        """How many blocks it has in use, as of the last commit."""
        return self._vfs.pages

    @property
    def changed(self) -> bool:
        """Whether there is anything to `commit`; or what `begin` raises instead."""
        return self._begun or self._due or self._lost is not None or self._closed is not None

    @property
    def committed(self) -> bool:
        """Whether there is anything to `write_out`."""
        return bool(self._vfs.committed)

    def close(self, why: FusevolError | None = None) -> None:
        """Close; what was not committed is dropped. Who asks all the same is told why, or VolumeBusy."""
        if self._closed is None and self.connection.in_transaction:
            self.run("ROLLBACK")
        self._begun = False
        if why or self._closed is None:
            self._closed = why or VolumeBusy("the volume was restored, or unmounted, before a request was through")
        self.connection.close()


class _Changing:
    """A savepoint; one object serves all, and they nest."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    # For every change: without a call more than it takes.

    def __enter__(self) -> None:
        self._database.begin()
        self._database.execute("SAVEPOINT change")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._database.execute("RELEASE change")
        else:
            self._database.undo()


class _Guard:
    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, apsw.Error):
            raise self._database._translated(error) from error
