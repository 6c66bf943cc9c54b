"""Making a filesystem durable: its metadata goes into the log with the data, as one barrier of the volume."""

from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

from fusevol.errors import FusevolError
from fusevol.fs.attributes import Attributes
from fusevol.fs.database import Database
from fusevol.fs.vfs import Absent, Fetches
from fusevol.log import LogVolume, Snapshot
from fusevol.log.mutex import Mutex

__all__ = ["Committing"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: How often a commit begins anew, since something is not at hand, before it waits where it stands.
_FETCHES = 64


class Committing(Attributes):
    """A filesystem that may be written to: what is changed is in memory and in an open transaction until a commit."""

    def __init__(self, volume: LogVolume, database: Database) -> None:
        super().__init__(volume, database)
        self._committing = Mutex()
        self._freed: list[tuple[int, int]] = []
        self._begun = self._done = self._done_data = 0
        self._unborn = self._thorough = self._more = False
        self.distant = volume.traits.remote
        #: Makes a change for who can wait on a loop, which changes nothing and raises Absent where a distant store has
        #: what it needs. Not for coroutines: before those, `survey`.
        self.attempt = database.hurried if self.distant else _at_once
        # Whoever makes a barrier of the volume, it must have the metadata of all data before it.
        volume.prepare = self._commit

    def _commit(self, times: bool = True) -> None:
        """Put all changes of the metadata into the log, at once; for right before a barrier.

        times: False where it is not worth a commit if no more than times of files has changed.

        There must be none where this raises: the metadata would not be that of the data.
        """
        self.volume.check()
        if (self._inodes.dirty if times else self._inodes.due) or self._database.changed:
            with self._database.changing():
                self._inodes.write_back()
                self._names.write_back()
                self._data.write_back()
            self._database.commit()
            self._inodes.written()
            self._freed += self._data.written()
            self._data.quota.committed()
        self._database.write_out(first=self._unborn)
        self._unborn = False
        self._more = self._database.give_back(all_of_it=self._thorough or self.volume.room.shortage() is not None)

    async def sync(self, *, times: bool = True) -> None:
        """Make everything durable, as one barrier. Concurrent callers share the work.

        times: False for fdatasync(2), which need not wait for a commit where no more than times of files has changed.

        Raises NoSpace, BackendError, Fenced: then nothing may be taken as durable, and a later call tries again.
        """
        turn = self._begun
        async with self._committing:
            if (self._done if times else self._done_data) > turn:
                return  # a sync that began after this call did
            self._begun = begun = self._begun + 1
            await self._flush(times)
            self._done_data = begun
            if times:
                self._done = begun
            await self._discard()
            await self.volume.relieve()

    async def _flush(self, times: bool) -> None:
        """Make a barrier. What its commit needs of a distant store is fetched first, unless that is very much."""
        with Fetches() as fetches:
            for _ in range(_FETCHES if self.distant else 0):
                try:
                    await self.volume.flush(lambda: self.attempt(self._commit, times))
                except Absent as absent:
                    await fetches.fetch(absent)
                else:
                    return
        await self.volume.flush(lambda: self._commit(times))

    async def _discard(self) -> None:
        freed, self._freed = self._freed, []
        try:
            await self._data.discard(freed)
        finally:
            self._freed += freed

    async def reclaim(self) -> None:
        """Give back all dead space there is. Raises as `sync`."""
        self._thorough = True
        try:
            # What files let go of is dead once the commit that says so is durable.
            await self.sync()
            while self._more:
                await self.sync()
            await self.volume.reclaim()
        finally:
            self._thorough = False

    async def snapshot(self, name: str, labels: dict[str, str] | None = None) -> Snapshot:
        """Take a snapshot of the filesystem as it is now. Raises as `LogVolume.snapshot`."""
        # What was deleted before is given back after a commit only: without one, the snapshot would hold it.
        await self.sync()
        async with self._committing:
            return await self.volume.snapshot(name, labels, self._commit)

    async def restore(self, name: str) -> Snapshot:
        """Turn the volume to a snapshot; return the safety snapshot. Raises as `LogVolume.restore`.

        Afterwards this object must not be used any more, but a new one opened.
        """
        async with self._committing:
            safety = await self.volume.restore(name, self._commit)
            self.close()
            return safety

    def close(self, why: FusevolError | None = None) -> None:
        """As any; what was not synced is dropped, and the volume makes no barrier without it."""
        if not self._inodes.dirty and not self._database.committed:
            self.volume.prepare = None
        super().close(why)


def _at_once(change: Callable[[*Ts], T], *args: *Ts) -> T:
    return change(*args)
