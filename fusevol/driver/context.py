"""What the parts of the driver share: the records, the backends, and a volume held for one operation."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio

from fusevol.api import Volume, VolumeState, by_name
from fusevol.driver.about import about, is_kept, kept
from fusevol.driver.attachment import believed, detached, is_mounted, lease_of, refuse_if_elsewhere, server_of
from fusevol.driver.control import Control
from fusevol.driver.labels import pool_of
from fusevol.driver.mounts import take_away
from fusevol.driver.pools import open_pool
from fusevol.driver.snapmounts import without_unseen
from fusevol.errors import (
    CorruptData,
    FusevolError,
    ManifestConflict,
    NoSpace,
    NotSupported,
    VolumeBusy,
    VolumeNotFound,
)
from fusevol.home import Home
from fusevol.store import Life, SqliteStore

if TYPE_CHECKING:
    from fusevol.backends.base import Backend
    from fusevol.log import Claim, LogVolume, Manifest

__all__ = ["LEFTOVER", "Context", "data_missing", "named"]

T = TypeVar("T")

_ATTEMPTS = 5
_PAUSE = 0.02
#: States in which an operation that was interrupted leaves a volume.
LEFTOVER = (VolumeState.PENDING, VolumeState.DELETED)


def data_missing(volume: Volume) -> CorruptData:
    """The error where a volume has a record, and no data."""
    return CorruptData(
        f'the data of volume "{volume.locator.name}" is missing from pool "{pool_of(volume)}"',
        hint="is its disk mounted, and is config.toml right? "
        f"Only if it is lost for good, remove the record: fusevol rm {volume.locator.name}",
    )


class Context:
    """One state directory, in use by this process."""

    def __init__(self, home: Home, *, command: str = "", cache: str = "") -> None:
        """cache: name of the directory in the state directory's cache/ that is this process's alone, "" for none."""
        self.home = home
        self.cache_directory = home.cache / cache if cache else None
        self.store = SqliteStore(home.database, wait=home.config.lock_timeout, command=command)
        self._backends: dict[str, Backend] = {}

    def backend(self, pool_name: str) -> "Backend":
        """The backend of a pool, opened when it is first asked for."""
        if pool_name not in self._backends:
            pool = self.home.pool(pool_name)
            try:
                self._backends[pool_name] = open_pool(pool, self.cache_directory)
            except FusevolError as error:
                error.args = (f'pool "{pool_name}": {error}',)
                raise
        return self._backends[pool_name]

    async def drop_pool(self, pool_name: str) -> None:
        """Forget how a pool was, which nobody uses, and is another one now."""
        if backend := self._backends.pop(pool_name, None):
            await backend.aclose()

    def backend_of(self, volume: Volume) -> "Backend":
        """The backend that holds a volume."""
        return self.backend(pool_of(volume))

    async def aclose(self) -> None:
        """Let go of backends and records."""
        with trio.CancelScope(shield=True):
            for backend in self._backends.values():
                await backend.aclose()
            self._backends.clear()
            await self.store.aclose()

    # -- records ----------------------------------------------------------------------------------

    async def change(self, volume_id: str, change: Callable[[Volume], Volume]) -> Volume:
        """Change a record by compare-and-swap, again if others were faster. `change` may raise to give up."""
        for _ in range(_ATTEMPTS):
            before = await self.store.get_vol(volume_id)
            after = change(before)
            if after == before:
                return before
            with suppress(ManifestConflict):
                await self.store.update_vol(after, before)
                return after
        raise VolumeBusy(f'the record of volume "{volume_id}" keeps changing', hint="try again")

    async def describe(self, now: Volume, before: Volume) -> None:
        """Have a volume say of itself what its record says now, if that is another than before.

        One that is damaged needs no description. A full store keeps nobody from changing what can be said later, when
        it is attached. Raises BackendError.
        """
        from fusevol.log import describe_volume

        text = about(now)
        if text == about(before):
            return
        lenient = () if now.spec.ephemeral != before.spec.ephemeral else (NoSpace,)
        with suppress(VolumeNotFound, CorruptData, NotSupported, *lenient):
            await describe_volume(self.backend_of(now), now.id, text)

    # -- holding a volume -------------------------------------------------------------------------

    @asynccontextmanager
    async def lock(self, volume: Volume, *, force: bool = False) -> AsyncIterator[None]:
        """Hold a volume's lock. Errors inside that name it by id name it by name when they leave."""
        with named(volume):
            token = await self.store.lock(volume.id, force=force)
            try:
                yield
            finally:
                await self.store.unlock(token)

    @asynccontextmanager
    async def hold(self, volume_id: str, *, force: bool = False) -> AsyncIterator[Volume]:
        """Hold a volume for one operation, and give its record, as far as that is true.

        What an interrupted creation or deletion left of it is removed first; then there is no such volume.

        force: break the lock and the lease of processes of which cannot be seen whether they still run, and forget
        their mounts of its snapshots. What is seen to run keeps them.

        Raises VolumeNotFound, VolumeBusy, VolumeAttachedOnRemoteNode.
        """
        seen = await self.store.get_vol(volume_id)
        async with self.lock(seen, force=force):
            record = await self.store.get_vol(volume_id)
            if record.state in LEFTOVER:
                raise await self._remove_leftover(record)
            if force:
                record = await self._break_lease(record)
            yield await self._reconcile(record)

    async def _remove_leftover(self, record: Volume) -> VolumeNotFound:
        """Remove what an interrupted command left of a held volume; return what says so.

        Not the data, where another state directory has imported the volume meanwhile, and has used it.
        """
        interrupted = "creation" if record.state is VolumeState.PENDING else "deletion"
        missing = f'volume "{record.locator.name}" does not exist: its {interrupted} was interrupted'
        manifest = await self.refuse_if_claimed(record)
        if record.state is VolumeState.PENDING and manifest and manifest.writer:
            await self._forget(record)
            return VolumeNotFound(
                f"{missing}, and another state directory has it now", hint="to have it here as well: fusevol import"
            )
        await self.remove(record)
        return VolumeNotFound(f"{missing}; what was left of it is removed now")

    async def _break_lease(self, record: Volume) -> Volume:
        """Let go of what processes that cannot be seen from here have of a held volume."""
        for child in await self.store.children(record.id):
            if child.is_snapshot and child.attach_info:
                await self.change(child.id, without_unseen)
        lease = lease_of(record)
        if record.spec.ephemeral and lease and lease.life is Life.UNKNOWN:
            await self.empty(record, force=True)

        def change(now: Volume) -> Volume:
            lease = lease_of(now)
            return detached(now) if lease and lease.life is Life.UNKNOWN else now

        return await self.change(record.id, change)

    async def _reconcile(self, record: Volume) -> Volume:
        """Write down that a volume is detached, if its server has died, and take away the dead mount."""
        refuse_if_elsewhere(record)
        truth, deadline = believed(record), trio.current_time() + self.store.wait
        while truth.state is VolumeState.DETACHING and trio.current_time() < deadline:
            # Being mounted or unmounted: that is over in a moment, mostly.
            await trio.sleep(_PAUSE)
            record = await self.store.get_vol(record.id)
            truth = believed(record)
        if truth.state is VolumeState.DETACHED and record.state is not VolumeState.DETACHED:
            for path in record.attach_path:
                await take_away(path)
            if record.spec.ephemeral:
                await self.empty(record)
            return await self.change(record.id, _killed)
        return truth

    def control(self, volume: Volume) -> Control | None:
        """The way to the process that serves a held volume; None where none does.

        Raises VolumeBusy where such a process is there, but its mount is not, or not yet; VolumeAttachedOnRemoteNode.
        """
        refuse_if_elsewhere(volume)
        server = server_of(volume)
        if server is None or volume.state not in (VolumeState.ATTACHED, VolumeState.DETACHING):
            return None
        if not is_mounted(volume):
            raise VolumeBusy(
                f'volume "{volume.locator.name}" is being mounted or unmounted by {server}',
                hint="try again in a moment",
            )
        return Control(volume.attach_path[0], volume.locator.name, volume_id=volume.id)

    def refuse_if_mounted(self, volume: Volume, what: str) -> None:
        """Raise VolumeBusy for a volume that is attached; `what` says what cannot be done."""
        if volume.attached_on:
            where = f"mounted on {volume.attach_path[0]}" if volume.attach_path else "attached"
            raise VolumeBusy(
                f'volume "{volume.locator.name}" is {where}, and cannot be {what}', hint="unmount it first"
            )

    # -- the log ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def writing(
        self, volume: Volume, *, force: bool = False, unfinished: bool = False
    ) -> AsyncIterator["LogVolume"]:
        """Attach the log of a held volume that is not mounted.

        force: take it from a process of another state directory that cannot be seen from here, too. unfinished: to go
        on with a copy, or to begin one.
        """
        self.refuse_if_mounted(volume, "opened")
        claim = self._claim(volume, force=force)._replace(unfinished=unfinished)
        async with self._open(volume, claim=claim) as log:
            yield log

    def _claim(self, volume: Volume, *, force: bool = False) -> "Claim":
        from fusevol.driver.claims import claim

        return claim(volume, self.store.owner, self.home.path, force=force)

    async def refuse_if_claimed(self, volume: Volume, *, force: bool = False) -> "Manifest | None":
        """Raise VolumeBusy or VolumeAttachedOnRemoteNode for a volume that another state directory has open.

        force: not where its process cannot be seen from here. Returns its manifest; None where its data is missing or
        damaged, which is claimed by nobody.
        """
        from fusevol.log import read_manifest

        with named(volume), suppress(VolumeNotFound, CorruptData):
            manifest, _ = await read_manifest(self.backend_of(volume), volume.id)
            if manifest.holder:
                self._claim(volume, force=force).admit(manifest.holder)
            return manifest
        return None

    async def look(self, volume: Volume, work: Callable[["LogVolume"], Awaitable[T]]) -> T:
        """Run `work` on the log of a volume, opened for reading: as it was at its last barrier, or later.

        The volume need not be held, and may be mounted. Whoever has it open may give back what is being read; what
        then looks like damage is gone the next time, since the volume does not refer to it any more.
        """
        if volume.state in LEFTOVER:
            raise VolumeBusy(f'volume "{volume.locator.name}" is being created or deleted')
        if volume.spec.ephemeral and _is_dead(await self.store.get_vol(volume.id)):
            # What its process left when it was killed is nobody's any more. Who holds the volume has seen to that.
            async with self.hold(volume.id):
                pass
        for _ in range(_ATTEMPTS):
            try:
                async with self._open(volume) as log:
                    return await work(log)
            except CorruptData as error:
                failure = error
        raise failure

    @asynccontextmanager
    async def _open(self, volume: Volume, *, claim: "Claim | None" = None) -> AsyncIterator["LogVolume"]:
        """For writing with a claim, for reading without."""
        from fusevol.log import open_volume

        opened = False
        with named(volume):
            backend = self.backend_of(volume)
            try:
                async with open_volume(backend, volume.id, read_only=claim is None, claim=claim) as log:
                    opened = True
                    yield log
            except (VolumeNotFound, CorruptData) as error:
                if opened:
                    raise
                # Somebody may have deleted it since its record was read.
                if (await self.store.get_vol(volume.id)).state in LEFTOVER:
                    raise VolumeNotFound(f'volume "{volume.locator.name}" is being deleted') from error
                if isinstance(error, CorruptData):
                    raise
                raise data_missing(volume) from error
            finally:
                backend.release(volume.id)

    def log_file(self, volume_id: str) -> Path:
        """Where the processes that serve a volume or snapshot write what they have to say."""
        return self.home.path / "log" / f"{volume_id}.log"

    def drop_log(self, volume_id: str) -> None:
        """Delete the log file of a volume or snapshot that is no more. One that cannot be deleted stays."""
        with suppress(OSError):
            self.log_file(volume_id).unlink()

    async def empty(self, volume: Volume, *, force: bool = False) -> None:
        """Throw away all that an ephemeral volume holds, its snapshots too; it is as new. Again is harmless.

        Until its record says that it is detached, this is done once more by whoever holds it next. Where another state
        directory has said meanwhile that it is ephemeral no more, it keeps what it holds, and the record says so.
        Raises as `refuse_if_claimed`.
        """
        from fusevol.log import empty_volume

        manifest = await self.refuse_if_claimed(volume, force=force)
        if manifest and manifest.about and is_kept(manifest.about):
            await self.change(volume.id, kept)
            return
        own = self.home.cache / volume.id
        if own != self.cache_directory:
            await trio.to_thread.run_sync(lambda: shutil.rmtree(own, ignore_errors=True))
        await empty_volume(self.backend_of(volume), volume.id)
        for child in await self.store.children(volume.id):
            with suppress(VolumeNotFound):
                await self.store.delete_vol(child.id)

    async def remove(self, volume: Volume) -> None:
        """Delete the data of a held volume, its logs, and its record. Does nothing that was done before."""
        from fusevol.log import delete_volume

        await trio.to_thread.run_sync(lambda: shutil.rmtree(self.home.cache / volume.id, ignore_errors=True))
        with suppress(VolumeNotFound):
            await delete_volume(self.backend_of(volume), volume.id)
        await self._forget(volume)

    async def _forget(self, volume: Volume) -> None:
        """Remove the records and logs of a held volume."""
        for child in await self.store.children(volume.id):
            if child.is_snapshot:
                self.drop_log(child.id)
                with suppress(VolumeNotFound):
                    await self.store.delete_vol(child.id)
        self.drop_log(volume.id)
        with suppress(VolumeNotFound):
            await self.store.delete_vol(volume.id)


def _is_dead(record: Volume) -> bool:
    """Whether the process that served a volume has died without saying so."""
    return bool(record.attached_on) and not believed(record).attached_on


def _killed(record: Volume) -> Volume:
    """The record of a volume whose server has died, if it has: it could not say how it ended itself."""
    server, truth = server_of(record), believed(record)
    if truth.attached_on or not record.attached_on:
        return truth
    return msgspec.structs.replace(
        truth, error=f"{server or 'the process that served it'} was killed: what was not synced then is lost"
    )


@contextmanager
def named(volume: Volume) -> Iterator[None]:
    """Let errors name the volume as its users do, not by id."""
    try:
        yield
    except FusevolError as error:
        if volume.locator.name and volume.id in str(error):
            error.args = (by_name(str(error), volume.id, volume.locator.name),)
            error.hint = error.hint and error.hint.replace(volume.id, volume.locator.name)
        raise
