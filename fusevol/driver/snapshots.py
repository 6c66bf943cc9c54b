"""Snapshots: in the log of their volume, and as records beside it.

The log has the truth. A snapshot's id is derived from that of its volume and its number in the log, which is never
given twice; so records can be made from the log at any time, by anybody, and nothing is lost where a process dies
between the two. They serve to answer queries without opening logs.
"""

import uuid
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from fusevol.api import Source, Volume, VolumeLocator, VolumeState, VolumeStatus
from fusevol.driver import snapmounts
from fusevol.driver.context import Context
from fusevol.driver.labels import POOL_LABEL, pool_of
from fusevol.driver.records import available
from fusevol.errors import AlreadyExists, FusevolError, SnapshotNotFound, VolumeNotFound
from fusevol.mount.schedule import SCHEDULE_LABEL

if TYPE_CHECKING:
    from fusevol.log import LogVolume, Snapshot

__all__ = [
    "AUTO_LABEL",
    "CLONE_LABEL",
    "COPY_LABEL",
    "HALF_LABEL",
    "ORIGIN_LABEL",
    "Snapshots",
    "copy_label",
    "drop_halves",
    "go_back",
    "snapshot_id",
    "snapshot_record",
]

#: Label of a snapshot that was taken for a clone of the live volume; its value is the clone's id.
CLONE_LABEL = "fusevol.clone"
#: Label of a snapshot that was taken to be copied; its value is `copy_label` of the volumes.
COPY_LABEL = "fusevol.copy"
#: Label of a snapshot that is a copy; its value says of which one.
ORIGIN_LABEL = "fusevol.origin"
#: Label of a snapshot of a live tree that was only partly a copy. No record is made of it: it is of no use to anybody.
HALF_LABEL = "fusevol.half"
#: Label of a snapshot that nobody asked for; its value says why it was taken.
AUTO_LABEL = "fusevol.auto"

#: What a volume is becoming that goes back to what it was: no copy is on the way there.
_NOTHING = ">"


def snapshot_id(volume: Volume, snapshot: "Snapshot") -> str:
    """The id of a snapshot of `volume`."""
    return str(uuid.uuid5(uuid.UUID(volume.id), str(snapshot.id)))


def snapshot_record(volume: Volume, snapshot: "Snapshot") -> Volume:
    """The record of a snapshot of `volume`."""
    labels = {**snapshot.labels, POOL_LABEL: pool_of(volume)}
    if snapshot.auto:
        labels[AUTO_LABEL] = "restore"
    elif CLONE_LABEL in labels:
        labels[AUTO_LABEL] = "clone"
    elif COPY_LABEL in labels:
        labels[AUTO_LABEL] = "copy"
    elif SCHEDULE_LABEL in labels:
        labels[AUTO_LABEL] = "schedule"
    return Volume(
        id=snapshot_id(volume, snapshot),
        locator=VolumeLocator(name=snapshot.name, volume_labels=labels),
        source=Source(parent=volume.id),
        readonly=True,
        ctime=datetime.fromtimestamp(snapshot.created // 1000 / 1e6, UTC),
        spec=msgspec.structs.replace(volume.spec, sticky=False),
        format=volume.format,
        status=VolumeStatus.UP,
        state=VolumeState.AVAILABLE,
    )


def copy_label(source_id: str, target_id: str) -> str:
    """What a snapshot is labelled with that is taken of one volume to be copied to another."""
    return f"{source_id}>{target_id}"


async def go_back(log: "LogVolume", name: str | None) -> None:
    """Turn an attached volume to a snapshot, or empty it, and keep nothing of what it was.

    For what was only partly a copy: until it becomes something else, or "", it is refused as that is. Raises
    SnapshotNotFound, and as `LogVolume.flush` does.
    """
    # First of all: nobody may take it any more for what it was becoming.
    await log.become(_NOTHING)
    if name is None:
        await log.discard(1 << 63, 0)
        await log.checkpoint()
    else:
        await log.restore(name, labels={HALF_LABEL: name})
    await drop_halves(log)


async def drop_halves(log: "LogVolume") -> None:
    """Delete what going back has left: before the live tree is whole again, so that nobody ever sees it."""
    for snapshot in log.snapshots():
        if HALF_LABEL in snapshot.labels:
            await log.delete_snapshot(snapshot.name)


def _whole(snapshots: Iterable["Snapshot"]) -> list["Snapshot"]:
    return [snapshot for snapshot in snapshots if HALF_LABEL not in snapshot.labels]


class Snapshots:
    """The snapshots of volumes: taking, listing, restoring, deleting them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def of(self, volume: Volume) -> list[Volume]:
        """All snapshots of a volume, oldest first, as its log has them. The records are brought up to date."""

        async def list_them(log: "LogVolume") -> list["Snapshot"]:
            return _whole(log.snapshots())

        # Before the log is read: one that is taken after that is not in it, and its record has to stay.
        known = await self._known(volume)
        found = await self._context.look(volume, list_them)
        records = [snapshot_record(volume, snapshot) for snapshot in found]
        await self._record(known, records)
        # What a record knows that the log does not: where it is mounted.
        return [
            snapmounts.believed_snapshot(msgspec.structs.replace(record, attach_info=known[record.id].attach_info))
            if record.id in known
            else record
            for record in records
        ]

    async def record(self, volume: Volume, found: Iterable["Snapshot"]) -> None:
        """Bring the records up to date with the snapshots that the log has, while none can be taken."""
        await self._record(await self._known(volume), [snapshot_record(volume, snapshot) for snapshot in _whole(found)])

    async def _known(self, volume: Volume) -> dict[str, Volume]:
        """The records of a volume's snapshots, by id."""
        return {child.id: child for child in await self._context.store.children(volume.id) if child.is_snapshot}

    async def _record(self, known: dict[str, Volume], snapshots: Iterable[Volume]) -> None:
        """Bring the records, which are the known ones, up to date."""
        store = self._context.store
        wanted = {snapshot.id: snapshot for snapshot in snapshots}
        # Somebody else may be doing the same. First what is gone: its name may have been given again.
        for snapshot_id in known.keys() - wanted.keys():
            with suppress(VolumeNotFound):
                await store.delete_vol(snapshot_id)
        for snapshot_id in wanted.keys() - known.keys():
            with suppress(AlreadyExists):
                await store.create_vol(wanted[snapshot_id])

    async def find(self, volume: Volume, name: str) -> Volume:
        """A snapshot by name or id. Raises SnapshotNotFound."""
        for snapshot in await self.of(volume):
            if name in (snapshot.locator.name, snapshot.id):
                return snapshot
        raise SnapshotNotFound(
            f'volume "{volume.locator.name}" has no snapshot "{name}"',
            hint=f"to see those it has: fusevol snapshots {volume.locator.name}",
        )

    async def has(self, volume: Volume, name: str) -> bool:
        """Whether a volume has a snapshot of that name."""
        return any(snapshot.locator.name == name for snapshot in await self.of(volume))

    async def take(self, volume: Volume, name: str, labels: dict[str, str]) -> Volume:
        """Take a snapshot of a held volume, with all that was written to it before the call."""
        if await self.has(volume, name):
            raise AlreadyExists(f'volume "{volume.locator.name}" has a snapshot "{name}" already')
        if control := self._context.control(volume):
            await control.snapshot(name, labels)
        else:
            async with self._context.writing(volume) as log:
                await log.snapshot(name, labels)
        return await self.find(volume, name)

    async def restore(self, volume: Volume, name: str) -> Volume | None:
        """Turn a held volume to one of its snapshots; return the snapshot of what was there before.

        None where that was only partly a copy of another volume, and is of no use to anybody.
        """
        before = {snapshot.id for snapshot in await self.of(volume)}
        if control := self._context.control(volume):
            await control.restore(name)
        else:
            async with self._context.writing(volume, unfinished=True) as log:
                given_up = bool(log.becoming)
                if given_up:
                    await go_back(log, name)
                    await log.become("")
                else:
                    await log.restore(name)
            if volume.state is VolumeState.RESTORE:
                await self._context.change(volume.id, available)
            if given_up:
                return None
        made = [snapshot for snapshot in await self.of(volume) if snapshot.id not in before]
        if not made:
            raise SnapshotNotFound(
                f'volume "{volume.locator.name}" is restored, but the snapshot of what it held is gone already'
            )
        return next((snapshot for snapshot in made if snapshot.locator.volume_labels.get(AUTO_LABEL)), made[-1])

    async def delete(self, volume: Volume, name: str) -> None:
        """Delete a snapshot of a held volume. Raises VolumeBusy while it is mounted by itself."""
        record = await self.refuse_if_mounted(volume, name)
        if control := self._context.control(volume):
            await control.delete_snapshot(name)
        else:
            async with self._context.writing(volume, unfinished=True) as log:
                await log.delete_snapshot(name)
        if record is not None:
            self._context.drop_log(record.id)
        await self.of(volume)

    async def refuse_if_mounted(self, volume: Volume, name: str) -> Volume | None:
        """Raise VolumeBusy for a snapshot that is mounted by itself, or read; return its record, if there is one."""
        record = await self._context.store.named(name, parent=volume.id)
        if record is not None:
            snapmounts.refuse_if_mounted(volume.locator.name, record, "deleted")
        return record

    # -- those taken for clones and copies --------------------------------------------------------

    async def take_for_clone(self, volume_id: str, clone_id: str) -> str:
        """Take the snapshot that a clone of the live volume starts from; return its name."""
        name = f"clone-{clone_id[:8]}"
        async with self._context.hold(volume_id) as volume:
            await self.take(volume, name, {CLONE_LABEL: clone_id})
        return name

    async def drop_for_clone(self, volume_id: str, clone_id: str) -> None:
        """Delete the snapshot that was taken for a clone, which is gone, if there is one; `gc` does it otherwise."""
        with suppress(FusevolError):
            children = await self._context.store.children(volume_id)
            if not any(child.locator.volume_labels.get(CLONE_LABEL) == clone_id for child in children):
                return
            async with self._context.hold(volume_id) as volume:
                for snapshot in await self.of(volume):
                    if snapshot.locator.volume_labels.get(CLONE_LABEL) == clone_id:
                        await self.delete(volume, snapshot.locator.name)

    async def drop_for_copy(self, copy_id: str) -> None:
        """Delete the snapshots that were taken for a copy, which is gone, as far as that can be done."""
        for found in await self._context.store.snap_enumerate():
            labels = found.locator.volume_labels
            # Those that were copied themselves are what their volumes have in common with others.
            if not labels.get(COPY_LABEL, "").endswith(copy_label("", copy_id)) or ORIGIN_LABEL in labels:
                continue
            with suppress(FusevolError):
                async with self._context.hold(found.source.parent) as volume:
                    await self.delete(volume, found.locator.name)

    async def is_stale(self, snapshot: Volume) -> bool:
        """Whether a snapshot was taken for a clone that does not exist."""
        clone_id = snapshot.locator.volume_labels.get(CLONE_LABEL)
        if clone_id is None:
            return False
        with suppress(VolumeNotFound):
            await self._context.store.get_vol(clone_id)
            return False
        return True
