"""Volumes held still, and several volumes at once: Quiesce, Unquiesce and SnapshotGroup of newer openstorage."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import trio

from fusevol.api import Enumerator, Volume, VolumeLocator, check_name
from fusevol.driver.context import Context
from fusevol.driver.control import Control
from fusevol.driver.labels import check_labels
from fusevol.driver.mounting import Mounting
from fusevol.driver.snapshots import Snapshots
from fusevol.errors import (
    AlreadyExists,
    FusevolError,
    InvalidArgument,
    SnapshotNotFound,
    VolumeBusy,
    VolumeNotFound,
)

__all__ = ["Together"]

#: For how long a group's volumes are held still at most.
_STILL_SECONDS = 30.0


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
        await (await self.mounting.control(volume)).quiesce(seconds)

    async def unquiesce(self, volume_id: str) -> None:
        """Let changes go on. Raises VolumeNotFound, VolumeDetached, VolumeBusy, NotSupported as `quiesce` does."""
        volume = (await self._existing([volume_id]))[0]
        await (await self.mounting.control(volume)).unquiesce()

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
        all that are in `group` (by spec or locator) and have `labels`, of which at least one must be given.

        They are one cut: mounted volumes are all held still before the first snapshot is taken, and until the last one
        is, for half a minute at most. Each has what was written to its volume before the call; and what returned,
        synced or a name that was made, before something else was begun on another volume is there if that is. When
        one cannot be taken, those that were are deleted again.

        Raises VolumeNotFound for an id, or where nothing is chosen; AlreadyExists, InvalidArgument, VolumeBusy, also
        where a volume could not be held still for as long as it took.
        """
        check_name(locator.name, "snapshot")
        check_labels(locator.volume_labels)
        chosen = await self._existing(volume_ids) if volume_ids else await self._members(group, labels or {})
        async with AsyncExitStack() as stack:
            # In one order for everybody, so that two calls do not wait for each other.
            held = [await stack.enter_async_context(self.context.hold(volume.id)) for volume in chosen]
            for volume in held:
                # Before anybody is kept waiting; and what has the name later on was made here.
                if await self.snapshots.has(volume, locator.name):
                    raise AlreadyExists(f'volume "{volume.locator.name}" has a snapshot "{locator.name}" already')
            begun: list[Volume] = []
            try:
                taken = {}
                async with self._still(held):
                    for volume in held:
                        begun.append(volume)
                        snapshot = await self.snapshots.take(volume, locator.name, dict(locator.volume_labels))
                        taken[volume.id] = snapshot.id
            except BaseException as error:
                with trio.CancelScope(shield=True):
                    left = [volume for volume in begun if not await self._drop(volume, locator.name)]
                if left and isinstance(error, FusevolError):
                    names = " ".join(f"{volume.locator.name}@{locator.name}" for volume in left)
                    error.hint = f"not all could be deleted again: fusevol rm {names}"
                raise
        return taken

    async def _drop(self, volume: Volume, name: str) -> bool:
        """Delete a snapshot of a held volume, if it was taken; whether there is none any more."""
        try:
            await self.snapshots.delete(volume, name)
        except SnapshotNotFound:
            return True
        except FusevolError:
            return False
        return True

    @asynccontextmanager
    async def _still(self, volumes: Sequence[Volume]) -> AsyncIterator[None]:
        """Hold back all changes of those held volumes that are mounted.

        Raises VolumeBusy where one was let go on before this ended.
        """
        controls = [control for volume in volumes if (control := self.context.control(volume))]
        # Those that somebody else holds still stay so afterwards.
        quiesced = [(await control.read_json("quiesce")).get("quiesced") for control in controls]
        ours = [control for control, others in zip(controls, quiesced, strict=True) if not others]
        # What the kernel has is written before anybody has to wait for it.
        await _each(ours, Control.flush)
        try:
            await _each(controls, lambda control: control.quiesce(_STILL_SECONDS))
            yield
            for control in controls:
                state = await control.read_json("quiesce")
                if not state.get("quiesced"):
                    raise VolumeBusy(
                        f'volume "{control.name}" could not be held still: {state.get("ended")}', hint="try again"
                    )
        finally:
            with trio.CancelScope(shield=True), suppress(FusevolError):
                # Where that fails, changes go on when the time is over.
                await _each(ours, Control.unquiesce)

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


async def _each(controls: Sequence[Control], call: Callable[[Control], Awaitable[None]]) -> None:
    """Call all at once, and wait for all of them. Raises the first error there was."""
    errors: list[FusevolError] = []

    async def one(control: Control) -> None:
        try:
            await call(control)
        except FusevolError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for control in controls:
            nursery.start_soon(one, control)
    if errors:
        raise errors[0]
