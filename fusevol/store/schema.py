"""The database of the SQLite store: its tables, its versions, and its errors in our words.

    volumes   one row per record. scope: "" for volumes and clones, the parent's id for snapshots; names are
              unique within it. checksum: CRC-32 of the record, which SQLite itself does not check.
    locks     one row per lock that is held. token: drawn at random. owner: a `Process`.

`user_version` is the schema's version, `application_id` says that it is this program's. A new version is one more
entry of `_MIGRATIONS`; records keep their form, since theirs is that of `fusevol.api`. The version also goes up where
a program that does not know what is in them would draw false conclusions:

    2    a `Process` names its host. Before, those of other hosts were taken for dead ones of this host.
"""

import sqlite3
import time
from pathlib import Path

from fusevol.errors import BackendError, CorruptData, FusevolError, NoSpace, NotSupported, OutOfMemory

__all__ = ["APPLICATION_ID", "SCHEMA_VERSION", "connect", "translate"]

APPLICATION_ID = 0x66757376  # "fusv"

#: What leads from each version of the schema to the next; from 0, an empty database, to the first.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """create table volumes (
             id text primary key, scope text not null, name text not null, parent text not null,
             record blob not null, checksum integer not null, unique (scope, name)
           ) strict, without rowid""",
        "create index volumes_by_parent on volumes (parent)",
        """create table locks (
             id text primary key, token text not null unique, owner blob not null, since real not null
           ) strict, without rowid""",
    ),
    # Few of many are attached, or being made or deleted.
    ("create index volumes_by_state on volumes (json_extract(cast(record as text), '$.state'))",),
)

SCHEMA_VERSION = len(_MIGRATIONS)

_RETRY_SECONDS = 0.02


def connect(path: str, wait: float) -> sqlite3.Connection:
    """Open the database, and make or migrate it as needed. Blocks, at most about `wait` seconds.

    Raises what `translate` makes of SQLite's errors, NotSupported for a later version, CorruptData.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            return _connect(path, wait)
        except sqlite3.OperationalError as error:
            # The change to WAL mode does not wait for others who are making it.
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_RETRY_SECONDS)


def _connect(path: str, wait: float) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=wait, isolation_level=None, check_same_thread=False)
    try:
        if db.execute("pragma journal_mode").fetchone()[0] != "wal":
            db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = full")
        if _version(db, path) < SCHEMA_VERSION:
            _migrate(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _version(db: sqlite3.Connection, path: str) -> int:
    version = int(db.execute("pragma user_version").fetchone()[0])
    application = int(db.execute("pragma application_id").fetchone()[0])
    if version and application != APPLICATION_ID:
        raise CorruptData(f"{path} is a database of some other program", hint="move it away, or use another --home")
    if version > SCHEMA_VERSION:
        raise NotSupported(
            f"{path} was written by a later version of fusevol (schema {version}; this one knows {SCHEMA_VERSION})",
            hint="use that version",
        )
    return version


def _migrate(db: sqlite3.Connection, path: str) -> None:
    db.execute("begin immediate")
    try:
        # Read again: somebody else may have been faster.
        for step in _MIGRATIONS[_version(db, path) :]:
            for statement in step:
                db.execute(statement)
        db.execute(f"pragma application_id = {APPLICATION_ID}")
        db.execute(f"pragma user_version = {SCHEMA_VERSION}")
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise


#: A process that serves a mount has the database open, and goes on with files of it that are not there any more.
_ANEW = (
    "unmount what is mounted (umount PATH), move fusevol.db, fusevol.db-wal and fusevol.db-shm away, "
    "and have the records made anew: fusevol import --all"
)


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary result code."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def translate(error: sqlite3.Error, path: str) -> FusevolError:
    """The error that stands for one of SQLite's."""
    code = _code(error)
    if code == sqlite3.SQLITE_BUSY:
        return BackendError(
            f"the records in {path} stay locked by another process",
            hint=f"try again; if {Path(path).name} was replaced or emptied meanwhile, {_ANEW}",
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "malformed" in str(error):
        return corrupt(path, str(error))
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"the disk of {path} is full")
    if code == sqlite3.SQLITE_NOMEM:
        return OutOfMemory()
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        reason = "it cannot be written" if Path(path).exists() else str(error)
        return BackendError(
            f"the state directory {Path(path).parent} cannot be used: {reason}",
            hint="see to its permissions, or choose another with --home",
        )
    replaced = f"if {Path(path).name} was deleted or replaced, {_ANEW}" if code == sqlite3.SQLITE_IOERR else None
    return BackendError(f"the records in {path} cannot be used: {error}", hint=replaced)


def corrupt(path: str, reason: str) -> CorruptData:
    """The error for a database whose bytes make no sense."""
    return CorruptData(
        f"the records in {path} are damaged: {reason}",
        hint=f"the data of the volumes is elsewhere, and not affected; put {Path(path).name} back from a backup, "
        f"or {_ANEW}",
    )
