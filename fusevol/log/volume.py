"""LogVolume: a volume attached to this process (or opened for reading), with all it can do."""

import msgspec

from fusevol.api.names import check_name
from fusevol.errors import AlreadyExists, FusevolError, VolumeBusy
from fusevol.log.commit import Change, Taking
from fusevol.log.committed import CommittedVolume, Prepare
from fusevol.log.records import Snapshot

__all__ = ["LogVolume"]


class LogVolume(CommittedVolume):
    """An open volume. Made by `open_volume`; not to be used after it.

    See `VolumeContents` for what it can be asked, `CommittedVolume` for making it durable, and `DataPath` for `write`,
    `discard`, `write_nowait`, `write_all_nowait`, `discard_nowait` and `throttle`.
    """

    # -- snapshots --------------------------------------------------------------------------------

    async def snapshot(
        self, name: str, labels: dict[str, str] | None = None, prepare: Prepare = None, like: Snapshot | None = None
    ) -> Snapshot:
        """Take a snapshot of everything written before the call. Independent of the volume's size.

        prepare: as for `flush`. like: the one that this is a copy of: it was taken when that was, and is as automatic.

        Raises AlreadyExists, InvalidArgument (name), and as `flush` does.
        """
        check_name(name)
        taking = Taking(name, labels or {}, like is not None and like.auto, like.created if like else None)

        def decide() -> Change:
            if self.state.history.has(name):
                raise AlreadyExists(f'volume "{self.volume_id}" has a snapshot "{name}" already')
            return Change(take=taking)

        await self._change(decide, prepare=prepare)
        return self.state.history.find(name, self.volume_id)

    async def restore(self, name: str, prepare: Prepare = None, labels: dict[str, str] | None = None) -> Snapshot:
        """Turn the live volume to a snapshot; return the safety snapshot of what was there before.

        prepare: as for `flush`; what it writes is in the safety snapshot. labels: of that.

        Writers wait meanwhile; readers see the old state until it returns. Raises SnapshotNotFound, and as
        `flush` does; then the volume is as it was.
        """

        def decide() -> Change:
            target = self.state.history.find(name, self.volume_id)
            return Change(take=Taking(self._safety_name(name), labels or {}, auto=True), restore=target)

        await self._change(decide, gate=True, prepare=prepare)
        return max(self.state.history.snapshots.values(), key=lambda snapshot: snapshot.id)

    def _safety_name(self, target: str) -> str:
        history, number = self.state.history, self.state.history.next_id
        while history.has(name := f"before-restore-{number}"):
            number += 1
        return name

    async def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot and give back what only it held.

        Raises SnapshotNotFound, VolumeHasSnapshots (it has clones), VolumeBusy (it is being read), and as
        `flush` does.
        """

        def decide() -> Change:
            snapshot = self.state.history.find(name, self.volume_id)
            if self._views.get(snapshot.id):
                raise VolumeBusy(f'snapshot "{name}" of volume "{self.volume_id}" is in use')
            self._deleting.add(snapshot.id)
            return Change(delete=snapshot)

        snapshot = self.state.history.find(name, self.volume_id)
        if self._attachment:
            await self._attachment.drop_stale_pins(snapshot.id)
        try:
            await self._change(decide)
        finally:
            self._deleting.discard(snapshot.id)
        try:
            await self._reclaim(0)
        except FusevolError as error:
            # The snapshot is gone; its space stays on the free list.
            self.background_error = error

    async def become(self, what: str) -> None:
        """Say durably that the live tree is turned into something, "" for no more. Raises Fenced, BackendError."""
        self._writable()
        if what != self.becoming and self._attachment:
            text = what or msgspec.UNSET
            await self._attachment.publish(lambda manifest: msgspec.structs.replace(manifest, becoming=text))
            self.becoming = what

    # -- open and close ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Finish attaching: a checkpoint in this writer's own epoch, then the tasks in the background."""
        if self.room.shortage():
            await self._reclaim(0)
        await self.checkpoint()
        if self._nursery:
            self._nursery.start_soon(self._tidy_when_idle)

    async def close(self) -> None:
        """Flush and write a last checkpoint. An error means that the last writes are not durable."""
        if self._log is None or self.abandoned:
            return
        try:
            await self.flush()
            if self._log.last_data > self.state.sequence:
                await self.checkpoint()
            async with self._commits, self._reclaiming:
                pass
        finally:
            if self._attachment:
                await self._attachment.release()

    def stop(self) -> None:
        """Give up what is on its way to the backend; after `close` that is a mark at most."""
        if self._log:
            self._log.stop()

    def abandon(self) -> None:
        """Do not flush when the volume is left: as if the process had died here."""
        self.abandoned = True
