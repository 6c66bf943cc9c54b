"""Deleting volumes and snapshots, unless something depends on them."""

from fusevol.api import Volume, VolumeRef, VolumeState
from fusevol.driver import snapmounts
from fusevol.driver.consumers import refuse_if_used
from fusevol.driver.context import Context
from fusevol.driver.records import deleted, names_of
from fusevol.driver.snapshots import CLONE_LABEL, ORIGIN_LABEL, Snapshots
from fusevol.errors import CorruptData, VolumeBusy, VolumeHasSnapshots

__all__ = ["Deleting"]


class Deleting:
    """Deletes what is in one state directory."""

    def __init__(self, context: Context, snapshots: Snapshots) -> None:
        self._context = context
        self._store = context.store
        self._snapshots = snapshots

    async def delete(self, volume_id: str, *, with_snapshots: bool) -> None:
        """See `LocalDriver.delete`."""
        record = await self._store.get_vol(volume_id)
        if record.is_snapshot:
            await self._delete_snapshot(record)
            return
        async with self._context.hold(volume_id) as volume:
            name = volume.locator.name
            refuse_if_used(volume, "deleted")
            self._context.refuse_if_mounted(volume, "deleted")
            snapshots = [child for child in await self._store.children(volume_id) if child.is_snapshot]
            for child in snapshots:
                snapmounts.refuse_if_mounted(name, child, "deleted")
            await self._context.refuse_if_claimed(volume)
            await self.refuse_if_needed(volume, with_snapshots=with_snapshots)
            await self._context.change(volume_id, deleted)
            try:
                await self._context.remove(volume)
            except VolumeHasSnapshots as error:
                await self._context.change(volume_id, lambda _: volume)
                error.hint = "they have no record here; to have one, and delete them first: fusevol import"
                raise
        if volume.source.parent:
            await self._snapshots.drop_for_clone(volume.source.parent, volume_id)
        if volume.state is VolumeState.RESTORE or any(ORIGIN_LABEL in s.locator.volume_labels for s in snapshots):
            await self._snapshots.drop_for_copy(volume_id)

    async def refuse_if_needed(self, volume: Volume, *, with_snapshots: bool = False) -> None:
        """Raise what keeps a volume from being deleted, mounted or not: VolumeBusy, VolumeHasSnapshots."""
        name = volume.locator.name
        if volume.spec.sticky:
            raise VolumeBusy(f'volume "{name}" is sticky', hint=f"to let it go: fusevol set {name} --no-sticky")
        try:
            snapshots = await self._snapshots.of(volume)
        except CorruptData:
            # Damaged volumes can be deleted as well.
            snapshots = [child for child in await self._store.children(volume.id) if child.is_snapshot]
        clones = [child for child in await self._store.children(volume.id) if not child.is_snapshot]
        for snapshot in snapshots:
            clones += await self._store.children(snapshot.id)
        if clones:
            raise VolumeHasSnapshots(f'volume "{name}" has clones: {names_of(clones)}', hint="delete its clones first")
        left = [snapshot for snapshot in snapshots if not await self._snapshots.is_stale(snapshot)]
        if left and not with_snapshots:
            raise VolumeHasSnapshots(
                f'volume "{name}" has snapshots: {names_of(left)}',
                hint=f"to delete them as well: fusevol rm --snapshots {name}",
            )

    async def _delete_snapshot(self, snapshot: Volume) -> None:
        async with self._context.hold(snapshot.source.parent) as volume:
            # Its name may have been given to another one since.
            snapshot = await self._snapshots.find(volume, snapshot.id)
            clones = await self._store.children(snapshot.id)
            clone_id = snapshot.locator.volume_labels.get(CLONE_LABEL)
            if clone_id and not await self._snapshots.is_stale(snapshot):
                clones.append(await self._store.get_vol(clone_id))
            if clones:
                ref = VolumeRef(volume.locator.name, snapshot.locator.name)
                raise VolumeHasSnapshots(f'snapshot "{ref}" has clones: {names_of(clones)}', hint="delete them first")
            await self._snapshots.delete(volume, snapshot.locator.name)
