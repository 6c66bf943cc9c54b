"""Copies of volumes in other pools: backups that are brought up to date, and volumes that move."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import trio

from fusevol.api import Volume, VolumeLocator, VolumeRef, VolumeSpec, VolumeState
from fusevol.driver import snapmounts
from fusevol.driver.consumers import refuse_if_used
from fusevol.driver.context import POOL_LABEL, Context, pool_of
from fusevol.driver.lineage import Lineage, labels_of_copy
from fusevol.driver.records import available, unfinished
from fusevol.driver.snapshots import COPY_LABEL, Snapshots, snapshot_id
from fusevol.driver.specs import own_labels
from fusevol.errors import (
    CorruptData,
    FusevolError,
    InvalidArgument,
    NotSupported,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
)
from fusevol.home import DEFAULT_POOL

if TYPE_CHECKING:
    from fusevol.log import LogVolume, Snapshot
    from fusevol.log.copying import Progress

__all__ = ["Copied", "Copying", "refuse_if_unfinished"]

Create = Callable[[VolumeLocator, VolumeSpec], Awaitable[str]]


class Copied(msgspec.Struct, frozen=True, kw_only=True):
    """What a copy did.

    volume: the copy. source: the snapshot that it holds now, as VOL@SNAP. copied: the snapshots that were, the oldest
    first. written: bytes.
    """

    volume: Volume
    source: VolumeRef
    copied: tuple[str, ...]
    written: int


class Copying:
    """Copies what is in one state directory."""

    def __init__(self, context: Context, snapshots: Snapshots, create: Create) -> None:
        """create: makes a volume, and returns its id."""
        self._context = context
        self._snapshots = snapshots
        self._create = create

    async def copy(
        self, source: Volume, name: str, *, pool: str = "", only: bool = False, tell: "Progress | None" = None
    ) -> Copied:
        """Have the volume of that name hold what a snapshot or a live volume does, and the snapshots before that.

        It is made where there is none, in `pool`, with the labels and settings of the source; otherwise it must be
        empty, or as an earlier copy left it, and what was written since then is copied. Of a live volume a snapshot is
        taken, which stays until the next copy. only: without the snapshots before it. tell: called with the bytes that
        are there, and how many there will be, of one snapshot after the other.

        Where this fails, the copy can be made again, and goes on where it was; until then it cannot be mounted, but for
        its snapshots. Raises AlreadyExists for a volume that is something else, VolumeBusy while that is mounted,
        NotSupported for an ephemeral one, InvalidArgument, CorruptData, NoSpace, BackendError.
        """
        volume = await self._context.store.get_vol(source.source.parent) if source.is_snapshot else source
        if volume.spec.ephemeral:
            raise NotSupported(f'volume "{volume.locator.name}" is ephemeral: a copy would outlive what it holds')
        target, made = await self._target(volume, name, pool)
        try:
            goal = source if source.is_snapshot else await self._take(volume, target)
        except BaseException:
            if made:
                await self._remove(target)
            raise
        try:
            done = await self._copy(volume, goal, target, only=only, tell=tell)
        except BaseException:
            if not source.is_snapshot:
                await self._drop_unless_begun(volume, goal, target)
            raise
        # Not while the other is held: two that copy in opposite directions would wait for each other.
        await self._drop_superseded(volume, done)
        return done

    async def _copy(
        self, volume: Volume, goal: Volume, target: Volume, *, only: bool, tell: "Progress | None"
    ) -> Copied:
        becoming = False
        async with self._context.hold(target.id) as held:
            self._refuse(held, volume)
            try:
                async with self._context.writing(held, unfinished=True) as log:

                    async def work(source: "LogVolume") -> Copied:
                        return await self._bring(volume, source, goal, held, log, only=only, tell=tell)

                    try:
                        done = await self._context.look(volume, work)
                    finally:
                        becoming = bool(log.becoming)
                    for snapshot in log.snapshots():
                        # What earlier copies of the live volume, or attempts, have left. One that has a clone stays.
                        if snapshot.labels.get(COPY_LABEL) == target.id and snapshot.name != done.source.snapshot:
                            with suppress(VolumeHasSnapshots):
                                await log.delete_snapshot(snapshot.name)
            except FusevolError as error:
                if becoming and not isinstance(error, CorruptData):
                    error.hint = "the copy is not finished: once that is mended, the same command goes on with it"
                raise
            await self._snapshots.of(held)
            await self._context.change(held.id, _finished)
        return done

    async def _target(self, volume: Volume, name: str, pool: str) -> tuple[Volume, bool]:
        """The volume of that name, and whether it was made."""
        target = await self._context.store.named(name)
        if target is None:
            labels = {**own_labels(volume), POOL_LABEL: pool or DEFAULT_POOL}
            spec = msgspec.structs.replace(volume.spec, sticky=False)
            made = await self._create(VolumeLocator(name=name, volume_labels=labels), spec)
            return await self._context.store.get_vol(made), True
        self._refuse(target, volume)
        if pool and pool_of(target) != pool:
            raise InvalidArgument(f'volume "{name}" is in pool "{pool_of(target)}", not in "{pool}"')
        return target, False

    async def _remove(self, target: Volume) -> None:
        with trio.CancelScope(shield=True), suppress(FusevolError):
            async with self._context.hold(target.id) as held:
                await self._context.remove(held)

    async def _take(self, volume: Volume, target: Volume) -> Volume:
        """Take the snapshot of a live volume that is to be copied to `target`."""
        name = f"copy-{target.id[:8]}-{_stamp()}"
        async with self._context.hold(volume.id) as held:
            return await self._snapshots.take(held, name, {COPY_LABEL: target.id})

    def _refuse(self, target: Volume, volume: Volume) -> None:
        """Raise what keeps a volume from being turned into a copy of another."""
        name = target.locator.name
        if target.id == volume.id:
            raise InvalidArgument(f'volume "{name}" cannot be a copy of itself')
        if target.spec.ephemeral:
            raise NotSupported(f'volume "{name}" is ephemeral: it holds nothing but what its mount does')
        refuse_if_used(target, "copied to")
        self._context.refuse_if_mounted(target, "copied to")

    # -- from snapshot to snapshot ----------------------------------------------------------------

    async def _bring(
        self, volume: Volume, source: "LogVolume", goal: Volume, target: Volume, log: "LogVolume", *, only: bool,
        tell: "Progress | None",
    ) -> Copied:  # fmt: skip
        from fusevol.log.copying import Copier

        way = Lineage(volume, source, target, log)
        steps = way.steps(way.find(goal), only=only)
        way.check(steps)
        if not way.clean and not (steps and log.becoming == way.becoming(steps[0])):
            await way.go_back()
        copied, written = [], 0
        async with self._reading(volume, [way.theirs[origin] for origin in (*steps, way.common) if origin]):
            for origin in steps:
                snapshot = way.theirs[origin]
                await log.become(way.becoming(origin))
                await self._context.change(target.id, unfinished)
                async with AsyncExitStack() as views:
                    base = there = None
                    if way.common:
                        base = await views.enter_async_context(source.view(way.theirs[way.common].name))
                        there = await views.enter_async_context(log.view(way.ours[way.common].name))
                    copier = Copier(base, await views.enter_async_context(source.view(snapshot.name)), there, log)
                    await copier.run(tell)
                labels = labels_of_copy(snapshot, origin, target)
                way.ours[origin] = await log.snapshot(snapshot.name, labels, like=snapshot)
                way.common = origin
                copied.append(snapshot.name)
                written += copier.copied
        await log.become("")
        now = VolumeRef(volume.locator.name, way.theirs[way.common].name if way.common else goal.locator.name)
        return Copied(volume=target, source=now, copied=tuple(copied), written=written)

    @asynccontextmanager
    async def _reading(self, volume: Volume, snapshots: Iterable["Snapshot"]) -> AsyncIterator[None]:
        """Keep snapshots from being deleted while they are read; those that are gone by then are missed later."""
        process, key = self._context.store.owner, secrets.token_hex(8)
        ids = [snapshot_id(volume, snapshot) for snapshot in snapshots]
        await self._snapshots.of(volume)
        try:
            for record_id in ids:
                with suppress(VolumeNotFound):
                    await self._context.change(record_id, lambda record: snapmounts.read(record, key, process))
            yield
        finally:
            with trio.CancelScope(shield=True):
                for record_id in ids:
                    with suppress(FusevolError):
                        await self._context.change(record_id, lambda record: snapmounts.let_go(record, key))

    # -- what is left -----------------------------------------------------------------------------

    async def _drop_superseded(self, volume: Volume, done: Copied) -> None:
        """Delete the snapshots that were taken for earlier copies; what is in the way is left to the next copy."""
        target, kept = done.volume.id, done.source.snapshot
        with suppress(FusevolError):
            async with self._context.hold(volume.id) as held:
                for snapshot in await self._snapshots.of(held):
                    if snapshot.locator.volume_labels.get(COPY_LABEL) == target and snapshot.locator.name != kept:
                        await self._snapshots.delete(held, snapshot.locator.name)

    async def _drop_unless_begun(self, volume: Volume, goal: Volume, target: Volume) -> None:
        """After a failure: delete the snapshot taken for it, unless the target is on its way there by now."""
        from fusevol.log import read_manifest

        with trio.CancelScope(shield=True), suppress(FusevolError):
            manifest, _ = await read_manifest(self._context.backend_of(target), target.id)
            if f">{goal.id}:" in (manifest.becoming or ""):
                return
            async with self._context.hold(volume.id) as held:
                await self._snapshots.delete(held, goal.locator.name)


def _stamp() -> str:
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}"


async def refuse_if_unfinished(context: Context, volume: Volume) -> None:
    """Raise VolumeBusy for a held volume that is only partly a copy of another."""
    from fusevol.log import read_manifest

    if volume.state is not VolumeState.RESTORE:
        return
    manifest, _ = await read_manifest(context.backend_of(volume), volume.id)
    if manifest.becoming:
        name = volume.locator.name
        raise VolumeBusy(
            f'volume "{name}" is an unfinished copy',
            hint=f"finish it: fusevol copy SOURCE {name}; what it was before is in its snapshots, if there are any",
        )


def _finished(volume: Volume) -> Volume:
    return available(volume) if volume.state is VolumeState.RESTORE else volume
