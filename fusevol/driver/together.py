"""Volumes held still, and several volumes at once: Quiesce, Unquiesce and SnapshotGroup of newer openstorage."""

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress

import trio

from fusevol.api import Enumerator, Volume, VolumeLocator, check_name
from fusevol.driver.context import Context
from fusevol.driver.mounting import Mounting
from fusevol.driver.snapshots import Snapshots
from fusevol.driver.specs import check_labels
from fusevol.errors import FusevolError, InvalidArgument, VolumeNotFound

__all__ = ["Together"]


class Together(Enumerator):
    """What the newer interface has for consistent copies."""

    context: Context
    snapshots: Snapshots
    mounting: Mounting

    async def quiesce(self, volume_id: str, seconds: float) -> None:
        """Make a mounted volume durable, and hold back changes until `unquiesce`, or for so many seconds.

        Raises VolumeNotFound, VolumeDetached where it is not mounted, InvalidArgument for the time, VolumeBusy,
        NotSupported where its mount cannot do that.
        """
        if not 0 < seconds < float("inf"):
            raise InvalidArgument(f"{seconds} is no number of seconds")
        volume = (await self._existing([volume_id]))[0]
        await (await self.mounting.control(volume)).write("quiesce", f"{seconds:g}", "it could not be quiesced")

    async def unquiesce(self, volume_id: str) -> None:
        """Let changes go on. Raises VolumeNotFound, VolumeDetached, VolumeBusy, NotSupported as `quiesce` does."""
        volume = (await self._existing([volume_id]))[0]
        await (await self.mounting.control(volume)).write("unquiesce", "1", "it could not be unquiesced")

    async def snapshot_group(
        self,
        locator: VolumeLocator,
        *,
        group: str = "",
        labels: Mapping[str, str] | None = None,
        volume_ids: Sequence[str] = (),
    ) -> dict[str, str]:
        """Take a snapshot of several volumes, all or none; return the snapshots' ids by those of the volumes.

        The snapshots get name and labels of `locator`. The volumes are those of `volume_ids`, or where there are none
        all that are in `group` (by spec or locator) and have `labels`, of which at least one must be given. They are
        held together and their snapshots taken one right after the other; each has what was written to its volume
        before the call. When one cannot be taken, those that were are deleted again.

        Raises VolumeNotFound for an id, or where nothing is chosen; AlreadyExists, InvalidArgument, VolumeBusy.
        """
        check_name(locator.name, "snapshot")
        check_labels(locator.volume_labels)
        chosen = await self._existing(volume_ids) if volume_ids else await self._members(group, labels or {})
        taken: dict[str, str] = {}
        async with AsyncExitStack() as stack:
            # In one order for everybody, so that two calls do not wait for each other.
            held = [await stack.enter_async_context(self.context.hold(volume.id)) for volume in chosen]
            try:
                for volume in held:
                    snapshot = await self.snapshots.take(volume, locator.name, dict(locator.volume_labels))
                    taken[volume.id] = snapshot.id
            except BaseException:
                with trio.CancelScope(shield=True):
                    for volume in held:
                        if volume.id in taken:
                            with suppress(FusevolError):
                                await self.snapshots.delete(volume, locator.name)
                raise
        return taken

    async def _existing(self, volume_ids: Sequence[str]) -> list[Volume]:
        found = {volume.id: volume for volume in await self.inspect(volume_ids)}
        for volume_id in volume_ids:
            if volume_id not in found:
                raise VolumeNotFound(f'volume "{volume_id}" does not exist')
            if found[volume_id].is_snapshot:
                raise InvalidArgument(f'"{found[volume_id].locator.name}" is a snapshot')
        return [found[volume_id] for volume_id in sorted(found)]

    async def _members(self, group: str, labels: Mapping[str, str]) -> list[Volume]:
        if not group and not labels:
            raise InvalidArgument("neither volumes, a group nor labels are given")
        members = [
            volume
            for volume in await self.enumerate(labels=labels)
            if not volume.is_snapshot and (not group or group in (volume.spec.group, volume.locator.group))
        ]
        if not members:
            raise VolumeNotFound("no volume is of that group and has those labels")
        return sorted(members, key=lambda volume: volume.id)
