"""LocalDriver: the volumes of one state directory, on this host."""

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import trio

from fusevol.api import (
    BlockNotSupported,
    DriverType,
    LocatorUpdate,
    Source,
    SpecUpdate,
    Volume,
    VolumeDriver,
    VolumeLocator,
    VolumeRef,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
    check_name,
    parse_volume_ref,
)
from fusevol.driver import snapmounts
from fusevol.driver.about import about
from fusevol.driver.attachment import believed
from fusevol.driver.consumers import refuse_if_used
from fusevol.driver.contents import Contents
from fusevol.driver.context import Context
from fusevol.driver.control import Control
from fusevol.driver.copying import Copying
from fusevol.driver.deleting import Deleting
from fusevol.driver.importing import Importing
from fusevol.driver.labels import check_labels, pool_of, with_labels
from fusevol.driver.mounting import Mounting, resolved
from fusevol.driver.rawbytes import RawBytes
from fusevol.driver.reconciliation import Reconciled, reconcile, sweep
from fusevol.driver.records import as_before, available, in_pool, inherited
from fusevol.driver.snapshots import Snapshots
from fusevol.driver.specs import check_change, check_spec, followed
from fusevol.driver.statistics import Statistics
from fusevol.driver.together import Together
from fusevol.driver.upkeep import Upkeep
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    FusevolError,
    InvalidArgument,
    NotSupported,
    VolumeBusy,
    VolumeNotFound,
)
from fusevol.home import Home

__all__ = ["LocalDriver"]

_ATTEMPTS = 5


class LocalDriver(RawBytes, Statistics, Together, BlockNotSupported, VolumeDriver):
    """VolumeDriver: making, finding, mounting, changing and deleting volumes; `upkeep` has the care of data.

    A volume is a filesystem, and mounted without being attached as a device first: attach and detach are
    NotSupported.

    The record of a volume is written before its data, and removed after it; in between it is `pending` or
    `deleted`. What a process left there when it died is removed by whoever meets it next: the lock tells that
    nobody is at work on it any more.

    Used as an asynchronous context manager, or closed with `shutdown`.
    """

    name = "local"
    type = DriverType.FILE

    def __init__(self, home: Home, *, command: str = "") -> None:
        """command: what this process is doing, for those who find a volume in use by it."""
        super().__init__()
        self.context = Context(home, command=command)
        self.store = self.context.store
        self.snapshots = Snapshots(self.context)
        self.upkeep = Upkeep(self.context, self.snapshots)
        self.contents = Contents(self.context, self.upkeep)
        self.mounting = Mounting(self.context)
        self.importing = Importing(self.context, self.snapshots)
        self.copying = Copying(
            self.context, self.snapshots, lambda locator, spec: self.create(locator, None, spec, exist_ok=False)
        )
        self.deleting = Deleting(self.context, self.snapshots)

    async def __aenter__(self) -> "LocalDriver":
        # First of all, since its errors say best what is wrong with a state directory.
        await self.store.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

    async def shutdown(self) -> None:
        """Let go of everything that is held. Mounts stay. Again is harmless, anything else AlreadyShutdown."""
        await self.context.aclose()

    # -- finding ----------------------------------------------------------------------------------

    async def resolve(self, ref: VolumeRef | str) -> Volume:
        """The volume, or with `volume@snapshot` the snapshot, of that name or id.

        Raises VolumeNotFound, SnapshotNotFound, InvalidArgument.
        """
        ref = parse_volume_ref(ref) if isinstance(ref, str) else ref
        found = await self.inspect([ref.volume])
        if not found:
            raise VolumeNotFound(f'volume "{ref.volume}" does not exist', hint="to see those that do: fusevol ls")
        return found[0] if ref.snapshot is None else await self.snapshots.find(found[0], ref.snapshot)

    async def inspect(self, volume_ids: Sequence[str]) -> list[Volume]:
        """The volumes of those ids or names, as far as there are any."""
        return [snapmounts.believed_snapshot(volume) for volume in await self.store.inspect(volume_ids)]

    async def enumerate(
        self, locator: VolumeLocator | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Volume]:
        """The volumes, snapshots and clones that match all that is given, as far as they were recorded."""
        return [snapmounts.believed_snapshot(volume) for volume in await self.store.enumerate(locator, labels)]

    async def snap_enumerate(
        self, volume_ids: Sequence[str] | None = None, snap_labels: Mapping[str, str] | None = None
    ) -> list[Volume]:
        """The snapshots and clones made directly of those volumes, or of any where None is given."""
        return [
            snapmounts.believed_snapshot(volume) for volume in await self.store.snap_enumerate(volume_ids, snap_labels)
        ]

    # -- creating ---------------------------------------------------------------------------------

    async def create(
        self,
        locator: VolumeLocator,
        source: Source | None,
        spec: VolumeSpec,
        *,
        exist_ok: bool = True,
        storage: Mapping[str, str] | None = None,
    ) -> str:
        """Make a volume and return its id, as `ProtoDriver.create` says. Its filesystem is made by the first mount.

        The label `fusevol.pool` chooses the pool; a clone is in its parent's. Without a size, a clone has its
        parent's. exist_ok: a volume of that name, size and parent that is there already is the one asked for. storage:
        labels that say whose storage it is, which are not for users to set.
        Raises AlreadyExists and CorruptData as `Importing.check_pool` does, besides what ProtoDriver says.
        """
        check_name(locator.name, "volume")
        check_labels(locator.volume_labels, made=True)
        record = Volume(
            id=str(uuid.uuid4()),
            locator=msgspec.structs.replace(locator, volume_ids=()),
            source=source or Source(),
            ctime=datetime.now(UTC),
            spec=spec,
            format=spec.format,
            status=VolumeStatus.DOWN,
            state=VolumeState.PENDING,
        )
        parent = await self._parent_of(record)
        record = inherited(record, parent) if parent else record
        pool = self.context.home.pool(pool_of(record))
        check_spec(spec, encrypted=bool(pool.key_file))
        record = with_labels(in_pool(record, pool), storage or {})
        if not self.context.backend_of(record).traits.durable:
            raise NotSupported(
                f'pool "{pool_of(record)}" keeps nothing once this process ends', hint="choose another with --pool"
            )
        for _ in range(_ATTEMPTS):
            existing = await self.store.named(locator.name)
            if existing is None:
                await self.importing.check_pool(locator.name, pool_of(record))
                with suppress(AlreadyExists):
                    return await self._create(record, parent)
            elif existing.state in (VolumeState.PENDING, VolumeState.DELETED):
                # Wait for whoever is at it, or remove what was left of it.
                with suppress(VolumeNotFound):
                    async with self.context.hold(existing.id):
                        pass
            elif exist_ok and existing.spec.size == record.spec.size and existing.source == record.source:
                return existing.id
            else:
                raise AlreadyExists(f'volume "{locator.name}" exists already')
        raise VolumeBusy(f'volume "{locator.name}" is made and deleted all the time by others', hint="try again")

    async def _parent_of(self, record: Volume) -> Volume | None:
        """The volume or snapshot that a record says it is a clone of."""
        if record.source.seed:
            raise NotSupported("seed: this driver does not import volumes")
        if not record.source.parent:
            return None
        parent = believed(await self.store.get_vol(record.source.parent))
        whole = await self.store.get_vol(parent.source.parent) if parent.is_snapshot else parent
        if record.spec.ephemeral or whole.spec.ephemeral:
            raise NotSupported(
                "ephemeral: a clone would need what goes with a mount"
                if whole.spec.ephemeral
                else "ephemeral: such a volume is empty when it is mounted, and cannot be a clone"
            )
        return parent

    async def _create(self, record: Volume, parent: Volume | None) -> str:
        from fusevol.log import clone_volume, create_volume

        backend, origin = self.context.backend_of(record), ""
        async with self.context.lock(record):
            if backend.traits.remote:
                # Where nobody answers, or not to us, there is to be nothing left that could not be removed either.
                with suppress(VolumeNotFound):
                    await backend.get_manifest(record.id)
            await self.store.create_vol(record)
            try:
                if parent is None:
                    await create_volume(backend, record.id, about(record))
                else:
                    origin = parent.source.parent if parent.is_snapshot else parent.id
                    snapshot = parent.locator.name
                    if not parent.is_snapshot:
                        snapshot = await self.snapshots.take_for_clone(parent.id, record.id)
                    await clone_volume(backend, origin, snapshot, record.id, about(record))
                await self.context.change(record.id, available)
            except BaseException as error:
                with trio.CancelScope(shield=True):
                    # What cannot be removed now is left as `pending`.
                    with suppress(FusevolError):
                        await self.context.remove(record)
                    if origin:
                        await self.snapshots.drop_for_clone(origin, record.id)
                if isinstance(error, AlreadyExists):
                    # Not of the record: that would have been raised before.
                    raise BackendError(str(error)) from error
                raise
        return record.id

    # -- deleting ---------------------------------------------------------------------------------

    async def delete(self, volume_id: str, *, with_snapshots: bool = False) -> None:
        """Delete a volume or snapshot and all it holds. with_snapshots: the volume's snapshots as well.

        Raises VolumeNotFound, VolumeHasSnapshots while snapshots or clones depend on it, VolumeBusy while it is
        mounted or sticky.
        """
        await self.deleting.delete(volume_id, with_snapshots=with_snapshots)

    # -- changing ---------------------------------------------------------------------------------

    async def set(self, volume_id: str, locator: LocatorUpdate | None, spec: SpecUpdate | None) -> None:
        """Change a volume's name, labels or spec, as `ProtoDriver.set` says."""
        locator, spec = locator or LocatorUpdate(), spec or SpecUpdate()
        check_labels(locator.volume_labels)
        if (await self.store.get_vol(volume_id)).is_snapshot:
            raise NotSupported("a snapshot cannot be changed", hint="make a clone of it and change that")
        async with self.context.hold(volume_id) as volume:
            await self._set(volume, locator, spec)

    async def grow(self, volume_id: str, size: int) -> None:
        """Have a volume be of that size at least, in bytes. Raises VolumeNotFound, VolumeBusy, BackendError."""
        async with self.context.hold(volume_id) as volume:
            if 0 < volume.spec.size < size:
                await self._set(volume, LocatorUpdate(), SpecUpdate(size=size))

    async def _set(self, volume: Volume, locator: LocatorUpdate, spec: SpecUpdate) -> None:
        """Change a volume that is held."""

        def change(volume: Volume) -> Volume:
            changed = msgspec.structs.replace(
                volume, locator=locator.apply_to(volume.locator), spec=spec.apply_to(volume.spec)
            )
            check_change(volume.spec, changed.spec)
            return changed

        if change(volume).locator.name != volume.locator.name:
            # Docker knows it by its name.
            refuse_if_used(volume, "renamed")
        old, new = volume.spec.size, change(volume).spec.size
        if new != old:
            await self._check_size(volume, new)
        # The record first, since a name may be taken. A mount that does not follow at once does when mounted anew.
        control = self.context.control(volume)
        after = await self.context.change(volume.id, change)
        try:
            await self.context.describe(after, volume)
            if control:
                await self._follow(control, volume, after)
        except FusevolError:
            await self.context.change(volume.id, lambda now: as_before(now, after, volume))
            with suppress(FusevolError):
                await self.context.describe(volume, after)
                if control:
                    await self._follow(control, after, volume)
            raise

    async def _follow(self, control: Control, before: Volume, after: Volume) -> None:
        """Have a mount go by a changed record."""
        if followed(before.spec) != followed(after.spec):
            await control.reload()
        if before.spec.size != after.spec.size:
            await control.resize(after.spec.size)

    async def _check_size(self, volume: Volume, size: int) -> None:
        if size == 0 or (volume.spec.size and size > volume.spec.size):
            return
        live = (await self.upkeep.usage(volume)).live
        if size < live:
            raise InvalidArgument(f'volume "{volume.locator.name}" holds {live} bytes, and cannot be made smaller')

    # -- mounting ---------------------------------------------------------------------------------

    async def mount(self, volume_id: str, mount_path: str) -> None:
        """Mount a volume with the options of its spec, on a second path as well, as `ProtoDriver.mount` says.

        On a second path, which only root can do, the mount has the options of the first.
        """
        await self.mounting.mount(volume_id, mount_path, again=True)

    async def mounted_at(self, mount_path: str) -> str:
        """Id of the volume that is mounted on a path, "" where none is."""
        await self.store.open()
        return await self.mounting.mounted_at(mount_path)

    async def unmount(self, volume_id: str, mount_path: str) -> None:
        """Unmount a volume from a path, as `ProtoDriver.unmount` says."""
        await self.mounting.unmount(volume_id, await resolved(mount_path))

    # -- snapshots --------------------------------------------------------------------------------

    async def snapshot(self, volume_id: str, *, readonly: bool, locator: VolumeLocator) -> str:
        """Make a snapshot of a volume, or a clone, as `SnapshotDriver.snapshot` says."""
        check_name(locator.name, "snapshot" if readonly else "volume")
        check_labels(locator.volume_labels)
        record = await self.store.get_vol(volume_id)
        if not readonly:
            spec = msgspec.structs.replace(record.spec, sticky=False)
            return await self.create(locator, Source(parent=volume_id), spec, exist_ok=False)
        if record.is_snapshot:
            raise NotSupported("a snapshot of a snapshot would be the same", hint="make a clone of it")
        async with self.context.hold(volume_id) as volume:
            return (await self.snapshots.take(volume, locator.name, dict(locator.volume_labels))).id

    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Give a volume the contents of one of its snapshots, as `SnapshotDriver.restore` says."""
        await self.restore_keeping(volume_id, snapshot_id)

    async def restore_keeping(self, volume_id: str, snapshot_id: str) -> Volume | None:
        """Restore, and return the snapshot of what was there before, which is taken at the same moment.

        None where there was an unfinished copy, which is given up.
        """
        async with self.context.hold(volume_id) as volume:
            if volume.is_snapshot:
                raise NotSupported("a snapshot cannot be changed", hint="make a clone of it and change that")
            snapshot = await self.store.get_vol(snapshot_id)
            if not snapshot.is_snapshot or snapshot.source.parent != volume_id:
                raise InvalidArgument(
                    f'"{snapshot.locator.name}" is not a snapshot of volume "{volume.locator.name}"',
                )
            snapshot = await self.snapshots.find(volume, snapshot_id)
            return await self.snapshots.restore(volume, snapshot.locator.name)

    # -- the whole --------------------------------------------------------------------------------

    async def break_lease(self, volume_id: str) -> None:
        """Detach a volume from processes on other hosts or in other pid namespaces, which cannot be seen to have ended.

        Their mounts of its snapshots are forgotten as well. Should they still run, they can write nothing more from
        now on. Raises VolumeNotFound, VolumeBusy while it is in use by one that runs here.
        """
        async with (
            self.context.hold(volume_id, force=True) as volume,
            self.context.writing(volume, force=True, unfinished=True),
        ):
            # Whoever else has the log open is shut out by its being opened here.
            pass

    async def reconcile(self) -> Reconciled:
        """Put in order what processes that died, or a reboot, left behind, on all volumes; say what was done.

        Raises BackendError, CorruptData for the records alone.
        """
        done = await reconcile(self.context, self.snapshots)
        await sweep(self.context)
        return done

    async def status(self) -> list[tuple[str, str]]:
        """How the driver is, as pairs of key and value for people."""
        found = await self.upkeep.overview()
        return [
            ("home", found.home),
            ("volumes", str(found.volumes)),
            ("mounted", str(found.mounted)),
            ("pools", ", ".join(pool.name for pool in found.pools)),
            ("problems", "; ".join(found.problems) or "none"),
        ]
