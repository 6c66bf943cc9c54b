# ruff: noqa: D102 - the interface says what its methods do
"""SqliteStore: records and locks in one SQLite database, for all processes of a host."""

import secrets
import sqlite3
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import trio

from fusevol.api.codec import from_json, to_json
from fusevol.api.enums import VolumeState
from fusevol.api.names import check_name
from fusevol.api.store import LockToken, StoreEnumerator
from fusevol.api.types import Volume, VolumeLocator
from fusevol.errors import (
    AlreadyExists,
    AlreadyShutdown,
    BackendError,
    InvalidArgument,
    ManifestConflict,
    VolumeBusy,
    VolumeNotFound,
)
from fusevol.store.processes import Life, Process
from fusevol.store.query import has_labels, matcher, scope_of
from fusevol.store.schema import SCHEMA_VERSION, connect, corrupt, translate

__all__ = ["HeldLock", "SqliteStore"]

T = TypeVar("T")

#: Seconds that `lock` waits for others.
_WAIT = 10.0
#: Seconds that SQLite waits for the transactions of others, each of which takes a few milliseconds.
_BUSY_WAIT = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1


class _Token(NamedTuple):
    volume_id: str
    secret: str


class HeldLock(NamedTuple):
    """A lock that somebody holds: of which id, who, and since when (seconds since 1970)."""

    volume_id: str
    owner: Process
    since: float


class SqliteStore(StoreEnumerator):
    """Records at `path`; `:memory:` for some that go with this object.

    wait: seconds that `lock` waits. command: what this process is doing, for those who wait for it.
    owner: this process.

    A lock goes with its process: one whose owner is dead is taken over at once. SQLite is called in a thread, by
    one task at a time; a call that has begun is not cancelled.
    """

    def __init__(self, path: str | Path, *, wait: float = _WAIT, command: str = "") -> None:
        self.path = str(path)
        self.wait = wait
        self.owner = Process.current(command)
        self._db: sqlite3.Connection | None = None
        self._turn = trio.CapacityLimiter(1)
        self._closed = False

    async def _run(self, work: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
        """Run `work` in a thread; where it writes, as one transaction."""

        def call() -> T:
            if self._closed:
                raise AlreadyShutdown(f"the records in {self.path} were closed")
            try:
                if self._db is None:
                    self._db = self._open()
                return _in_transaction(self._db, work) if write else work(self._db)
            except sqlite3.Error as error:
                raise translate(error, self.path) from error

        return await trio.to_thread.run_sync(call, limiter=self._turn)

    def _open(self) -> sqlite3.Connection:
        if self.path != ":memory:":
            directory = Path(self.path).parent
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise BackendError(
                    f"the state directory {directory} cannot be made: {error.strerror}",
                    hint="see to its permissions, or choose another with --home",
                ) from error
        return connect(self.path, _BUSY_WAIT)

    async def open(self) -> None:
        """Open the database, and make it where there is none; otherwise the first call does."""
        await self._run(lambda db: None)

    # -- locks ------------------------------------------------------------------------------------

    async def lock(self, volume_id: str, *, force: bool = False) -> LockToken:
        """As StoreEnumerator says. force: having waited in vain, take it from an owner that cannot be seen to run."""
        check_name(volume_id, "volume id")
        deadline, pause = trio.current_time() + self.wait, _FIRST_PAUSE
        while True:
            late = trio.current_time() >= deadline
            result = await self._run(lambda db, late=late: self._try_lock(db, volume_id, force and late), write=True)  # type: ignore[misc]
            if isinstance(result, _Token):
                return LockToken(result)
            if late:
                raise _in_use(result)
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try_lock(self, db: sqlite3.Connection, volume_id: str, force: bool) -> _Token | HeldLock:
        """Take the lock, from a dead owner too, or return who has it. force: from one that cannot be seen as well."""
        row = db.execute("select id, owner, since from locks where id = ?", [volume_id]).fetchone()
        if row:
            held = self._held(row)
            if held.owner.alive and not (force and held.owner.life is Life.UNKNOWN):
                return held
            db.execute("delete from locks where id = ?", [volume_id])
        token = _Token(volume_id, secrets.token_hex(16))
        db.execute("insert into locks values (?, ?, ?, ?)", [*token, msgspec.json.encode(self.owner), time.time()])
        return token

    def _held(self, row: tuple[str, bytes, float]) -> HeldLock:
        try:
            return HeldLock(row[0], msgspec.json.decode(row[1], type=Process), row[2])
        except msgspec.MsgspecError as error:
            raise corrupt(self.path, f"the lock of {row[0]} makes no sense") from error

    async def unlock(self, token: LockToken) -> None:
        opaque: object = token
        if not isinstance(opaque, _Token):
            raise InvalidArgument("that is not the token of a lock")
        volume_id, secret = opaque
        with trio.CancelScope(shield=True):
            count = await self._run(
                lambda db: db.execute("delete from locks where id = ? and token = ?", [volume_id, secret]).rowcount,
                write=True,
            )
        if not count:
            raise InvalidArgument(f'the lock of volume "{volume_id}" is not held with that token')

    async def locks(self) -> list[HeldLock]:
        """The locks that living processes hold."""
        rows = await self._run(lambda db: db.execute("select id, owner, since from locks order by id").fetchall())
        return [held for held in map(self._held, rows) if held.owner.alive]

    # -- records ----------------------------------------------------------------------------------

    async def create_vol(self, vol: Volume) -> None:
        row = _row(vol)

        def work(db: sqlite3.Connection) -> None:
            if db.execute("select 1 from volumes where id = ?", [vol.id]).fetchone():
                raise AlreadyExists(f'volume "{vol.id}" exists already')
            self._check_name_free(db, vol)
            db.execute("insert into volumes values (?, ?, ?, ?, ?, ?)", row)

        await self._run(work, write=True)

    def _check_name_free(self, db: sqlite3.Connection, vol: Volume) -> None:
        taken = db.execute(
            "select id from volumes where scope = ? and name = ?", [scope_of(vol), vol.locator.name]
        ).fetchone()
        if taken and taken[0] != vol.id:
            what = "snapshot" if vol.is_snapshot else "volume"
            raise AlreadyExists(f'{what} "{vol.locator.name}" exists already')

    async def get_vol(self, volume_id: str) -> Volume:
        found = await self._run(lambda db: self._get(db, volume_id))
        if found is None:
            raise VolumeNotFound(f'volume "{volume_id}" does not exist')
        return found

    def _get(self, db: sqlite3.Connection, volume_id: str) -> Volume | None:
        row = db.execute("select id, record, checksum from volumes where id = ?", [volume_id]).fetchone()
        return self._decode(row) if row else None

    async def update_vol(self, vol: Volume, expected: Volume) -> None:
        if vol.id != expected.id:
            raise InvalidArgument(f'volume "{expected.id}" cannot become "{vol.id}"')
        row, before = _row(vol), to_json(expected)

        def work(db: sqlite3.Connection) -> None:
            current = self._get(db, vol.id)
            if current is None:
                raise VolumeNotFound(f'volume "{vol.id}" does not exist')
            if to_json(current) != before:
                raise ManifestConflict(f'the record of volume "{vol.id}" was changed by someone else', hint="try again")
            self._check_name_free(db, vol)
            db.execute(
                "update volumes set scope = ?, name = ?, parent = ?, record = ?, checksum = ? where id = ?",
                [*row[1:], vol.id],
            )

        await self._run(work, write=True)

    async def delete_vol(self, volume_id: str) -> None:
        count = await self._run(
            lambda db: db.execute("delete from volumes where id = ?", [volume_id]).rowcount, write=True
        )
        if not count:
            raise VolumeNotFound(f'volume "{volume_id}" does not exist')

    # -- searching --------------------------------------------------------------------------------

    async def inspect(self, volume_ids: Sequence[str]) -> list[Volume]:
        def work(db: sqlite3.Connection) -> list[Volume]:
            found: dict[str, Volume] = {}
            for text in volume_ids:
                volume = self._get(db, text) or self._named(db, "", text)
                if volume is not None:
                    found.setdefault(volume.id, volume)
            return list(found.values())

        return await self._run(work)

    async def unknown(self, volume_ids: Sequence[str]) -> list[str]:
        """Those of some ids that nothing has, in their order."""
        query = "select value from json_each(?) where not exists (select 1 from volumes where id = value) order by key"
        ids = msgspec.json.encode(volume_ids).decode()
        return await self._run(lambda db: [row[0] for row in db.execute(query, [ids])])

    async def named(self, name: str, *, parent: str = "") -> Volume | None:
        """The volume of that name; with `parent`, that volume's snapshot. None where there is none."""
        return await self._run(lambda db: self._named(db, parent, name))

    def _named(self, db: sqlite3.Connection, scope: str, name: str) -> Volume | None:
        row = db.execute(
            "select id, record, checksum from volumes where scope = ? and name = ?", [scope, name]
        ).fetchone()
        return self._decode(row) if row else None

    async def enumerate(
        self, locator: VolumeLocator | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Volume]:
        matches = matcher(locator, labels)
        return [volume for volume in await self._all("", []) if matches(volume)]

    async def snap_enumerate(
        self, volume_ids: Sequence[str] | None = None, snap_labels: Mapping[str, str] | None = None
    ) -> list[Volume]:
        found = await self._all("where parent != ''", [])
        wanted = None if volume_ids is None else set(volume_ids)
        return [
            volume
            for volume in found
            if (wanted is None or volume.source.parent in wanted) and has_labels(volume, snap_labels or {})
        ]

    async def volumes(self) -> list[tuple[Volume, int]]:
        """All volumes and clones by name, each with the number of its snapshots."""
        found = await self._all("where scope = ''", [])
        counts: dict[str, int] = dict(
            await self._run(
                lambda db: db.execute("select scope, count(*) from volumes where scope != '' group by scope").fetchall()
            )
        )
        return [(volume, counts.get(volume.id, 0)) for volume in found]

    async def in_state(self, *states: VolumeState) -> list[Volume]:
        """The volumes, snapshots and clones whose records have one of these states."""
        marks = ", ".join("?" * len(states))
        # The expression is that of the index.
        where = f"where json_extract(cast(record as text), '$.state') in ({marks})"
        return await self._all(where, [state.value for state in states])

    async def children(self, volume_id: str) -> list[Volume]:
        """The snapshots and clones made directly of a volume or snapshot."""
        return await self._all("where parent = ?", [volume_id])

    async def _all(self, where: str, values: list[str]) -> list[Volume]:
        query = f"select id, record, checksum from volumes {where} order by name, id"
        return await self._run(lambda db: [self._decode(row) for row in db.execute(query, values)])

    def _decode(self, row: tuple[str, bytes, int]) -> Volume:
        volume_id, record, checksum = row
        if zlib.crc32(record) != checksum:
            raise corrupt(self.path, f"the record of volume {volume_id} does not match its checksum")
        try:
            return from_json(record, Volume)
        except InvalidArgument as error:
            raise corrupt(self.path, f"the record of volume {volume_id} makes no sense: {error}") from error

    # -- the whole --------------------------------------------------------------------------------

    async def verify(self) -> int:
        """Read everything there is, and return the number of records. Raises CorruptData."""

        def work(db: sqlite3.Connection) -> None:
            found = [row[0] for row in db.execute("pragma integrity_check(3)")]
            if found != ["ok"]:
                raise corrupt(self.path, found[0])

        await self._run(work)
        return len(await self._all("", []))

    @property
    def schema_version(self) -> int:
        """Version of the schema that the database has once it was opened."""
        return SCHEMA_VERSION

    async def aclose(self) -> None:
        """Close the database; what is asked of it later is AlreadyShutdown.

        Locks that are still held stay so until the process ends.
        """

        def close() -> None:
            self._closed = True
            if self._db is not None:
                self._db.close()
                self._db = None

        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(close, limiter=self._turn)


def _in_use(held: HeldLock) -> VolumeBusy:
    if held.owner.life is Life.UNKNOWN:
        return VolumeBusy(
            f'volume "{held.volume_id}" is in use by {held.owner}, which cannot be seen from here',
            hint=f"if that has ended for sure: fusevol mount --force {held.volume_id} PATH",
        )
    return VolumeBusy(f'volume "{held.volume_id}" is in use by {held.owner}', hint="try again when it has finished")


def _row(vol: Volume) -> list[object]:
    record = to_json(vol)
    return [vol.id, scope_of(vol), vol.locator.name, vol.source.parent, record, zlib.crc32(record)]


def _in_transaction(db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    db.execute("begin immediate")
    try:
        result = work(db)
        db.execute("commit")
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise
    return result
