"""The tables of a device: SQLite's, in transactions that several threads share, behind the lock of all processes.

A change is a transaction, and durable, with all data that was written before it, when it returns. Changes that several
threads ask for at once are one transaction. Calls block; those that look at the tables wait for other processes.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import apsw

from fusevol.backends.device.disk import BLOCK, Disk
from fusevol.backends.device.layout import Layout
from fusevol.backends.device.tablefile import TableVFS
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    FusevolError,
    ManifestConflict,
    NoSpace,
    VolumeNotFound,
)

__all__ = ["Change", "Tables"]

T = TypeVar("T")


class Change(Generic[T]):
    """Work for a transaction. What it returns is called after that, and returns what the change is asked for."""

    def __init__(self, work: Callable[[], Callable[[], T]]) -> None:
        self.work = work
        self.then: Callable[[], T] | None = None
        self.result: T | None = None
        self.error: BaseException | None = None
        self.done = False


class Tables(ABC):
    """The tables of one device.

    free: how many blocks belong to no volume; a part of what a transaction changes.
    """

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self.disk = disk
        self._layout = layout
        self._vfs = TableVFS(disk, layout)
        self._connection: apsw.Connection | None = None
        self._guard = threading.Lock()
        self._waiting: list[Change[Any]] = []
        self._waiting_guard = threading.Lock()
        #: The number of changes as of which all that is known is so.
        self._seen = -1
        self.free = 0
        self._closed = False

    @abstractmethod
    def _look(self) -> None:
        """Under the lock: see whether what is known is so still."""

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

    def _execute_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._open().cursor().executemany(sql, rows)

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Inside is one transaction."""
        self._execute("BEGIN")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            # SQLite may have done that already.
            if self._connection is not None and self._connection.in_transaction:
                self._execute("ROLLBACK")
            raise

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
        self.disk.check_writable()
        mine = Change(work)
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

    def _carry_out(self, group: list[Change[Any]]) -> None:
        try:
            with self.disk.locked():
                try:
                    self._transaction(group)
                except (NoSpace, CorruptData):
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

    def _alone(self, change: Change[Any]) -> None:
        change.error = change.then = None
        try:
            self._transaction([change])
        except FusevolError as error:
            change.error = error
        change.done = True

    def _transaction(self, group: list[Change[Any]]) -> None:
        """Under the lock. After an error of the device nobody knows what became of it."""
        self._look()
        free = self.free
        try:
            with self._translated(), self._begun():
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
        except BaseException:
            self.free, self._seen = free, -1
            raise
        with suppress(OSError):  # then they will be looked at once more
            self._seen = -1
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
