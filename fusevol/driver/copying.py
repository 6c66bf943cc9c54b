"""Copies of volumes in other pools: backups that are brought up to date, and volumes that move.

A snapshot is known again wherever it was copied to: its copies carry the id that it had where it was taken. So whatever
two volumes have in common is seen from their snapshots alone, in either direction, over any number of copies.
"""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import trio

from fusevol.api import Volume, VolumeLocator, VolumeRef, VolumeSpec, VolumeState
from fusevol.driver import snapmounts
from fusevol.driver.consumers import refuse_if_used
from fusevol.driver.context import POOL_LABEL, Context, pool_of
from fusevol.driver.records import available, unfinished
from fusevol.driver.snapshots import CLONE_LABEL, COPY_LABEL, ORIGIN_LABEL, Snapshots, snapshot_id
from fusevol.driver.specs import own_labels
from fusevol.errors import (
    AlreadyExists,
    CorruptData,
    FusevolError,
    InvalidArgument,
    NotSupported,
    SnapshotNotFound,
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

        theirs = {_origin(volume, snapshot): snapshot for snapshot in source.snapshots()}
        ours = {_origin(target, snapshot): snapshot for snapshot in log.snapshots()}
        wanted = next((origin for origin, found in theirs.items() if snapshot_id(volume, found) == goal.id), None)
        if wanted is None:
            raise SnapshotNotFound(f'snapshot "{goal.locator.name}" was deleted before it was copied')
        common = _common(log, theirs, ours)
        steps = _steps(theirs, ours, common, wanted, _begun(log, theirs, ours, common), only=only)
        await self._start_from(volume, log, target, theirs, ours, common, steps)
        copied, written = [], 0
        async with self._reading(volume, [theirs[origin] for origin in (*steps, common) if origin]):
            for origin in steps:
                snapshot = theirs[origin]
                await log.become(_becoming(common, origin))
                await self._context.change(target.id, unfinished)
                async with AsyncExitStack() as views:
                    base = await views.enter_async_context(source.view(theirs[common].name)) if common else None
                    there = await views.enter_async_context(log.view(ours[common].name)) if common else None
                    copier = Copier(base, await views.enter_async_context(source.view(snapshot.name)), there, log)
                    await copier.run(tell)
                ours[origin] = await log.snapshot(snapshot.name, _labels(snapshot, origin, target), like=snapshot)
                common = origin
                copied.append(snapshot.name)
                written += copier.copied
        await log.become("")
        now = VolumeRef(volume.locator.name, theirs[common or wanted].name)
        return Copied(volume=target, source=now, copied=tuple(copied), written=written)

    async def _start_from(
        self, volume: Volume, log: "LogVolume", target: Volume, theirs: Mapping[str, "Snapshot"],
        ours: Mapping[str, "Snapshot"], common: str | None, steps: list[str],
    ) -> None:  # fmt: skip
        """See that the target is what both have in common, or on its way from there to the first step.

        Raises AlreadyExists where it is something else.
        """
        name, source = target.locator.name, volume.locator.name
        names = {snapshot.name for origin, snapshot in ours.items()}
        if taken := [theirs[origin].name for origin in steps if theirs[origin].name in names]:
            raise AlreadyExists(
                f'volume "{name}" has a snapshot "{taken[0]}" that is not the one of volume "{source}"',
                hint=f"delete it, or copy to a new volume: fusevol rm {name}@{taken[0]}",
            )
        if common is None and ours:
            raise AlreadyExists(
                f'volume "{name}" exists, and has no snapshot in common with volume "{source}"',
                hint="copy to a new volume",
            )
        if _is(log, ours[common] if common else None):
            return
        if steps and log.becoming == _becoming(common, steps[0]):
            return
        if not log.becoming:
            raise AlreadyExists(
                f'volume "{name}" has been written to'
                + (f' since it was a copy of "{source}@{ours[common].name}"' if common else ""),
                hint=f"to give that up: fusevol restore {name}@{ours[common].name}; or copy to a new volume"
                if common
                else "copy to a new volume",
            )
        # It was becoming what is no more wanted, or not there any more.
        if common is None:
            await log.discard(1 << 63, 0)
            await log.flush()
        else:
            safety = await log.restore(ours[common].name, labels={COPY_LABEL: target.id})
            await log.delete_snapshot(safety.name)

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


def _origin(volume: Volume, snapshot: "Snapshot") -> str:
    """What a snapshot is known by wherever it was copied to."""
    # The time tells apart those of volumes that were copied with their ids, by other means than ours.
    return snapshot.labels.get(ORIGIN_LABEL) or f"{snapshot_id(volume, snapshot)}:{snapshot.created}"


def _labels(snapshot: "Snapshot", origin: str, target: Volume) -> dict[str, str]:
    """The labels of a copy. That a snapshot was taken for another volume than this one says nothing here."""
    others = {CLONE_LABEL} | ({COPY_LABEL} if snapshot.labels.get(COPY_LABEL) != target.id else set())
    return {**{key: value for key, value in snapshot.labels.items() if key not in others}, ORIGIN_LABEL: origin}


def _common(log: "LogVolume", theirs: Mapping[str, "Snapshot"], ours: Mapping[str, "Snapshot"]) -> str | None:
    """The snapshot that the target has as well, and can be brought on from: the one its live tree is, or began as."""
    both = sorted((origin for origin in ours if origin in theirs), key=lambda origin: ours[origin].id, reverse=True)
    begun = log.becoming.partition(">")[0]
    same = next((origin for origin in both if _is(log, ours[origin])), None)
    return same or (begun if begun in both else next(iter(both), None))


def _steps(
    theirs: Mapping[str, "Snapshot"], ours: Mapping[str, "Snapshot"], common: str | None, wanted: str,
    begun: str | None, *, only: bool,
) -> list[str]:  # fmt: skip
    """The snapshots to be copied, in this order. begun: the one that comes first, since some of it is there."""
    if begun == wanted:
        return [wanted]
    if begun:
        return [begun, *_steps(theirs, {**ours, begun: theirs[begun]}, begun, wanted, None, only=only)]
    if wanted in ours:
        return []
    after = theirs[common].id if common else 0
    before = [
        origin
        for origin, snapshot in theirs.items()
        if after < snapshot.id < theirs[wanted].id
        and origin not in ours
        and not {CLONE_LABEL, COPY_LABEL} & snapshot.labels.keys()
    ]
    return [*([] if only else before), wanted]


def _begun(
    log: "LogVolume", theirs: Mapping[str, "Snapshot"], ours: Mapping[str, "Snapshot"], common: str | None
) -> str | None:
    """The snapshot that the target is on its way to from `common`, if it is still there."""
    if _is(log, ours[common] if common else None):
        return None
    return next((origin for origin in theirs if origin not in ours and log.becoming == _becoming(common, origin)), None)


def _becoming(common: str | None, origin: str) -> str:
    return f"{common or ''}>{origin}"


def _is(log: "LogVolume", snapshot: "Snapshot | None") -> bool:
    """Whether the live tree is as a snapshot of it, or empty."""
    return log.unchanged_since(snapshot) if snapshot else not log.path.live.mapped


def _finished(volume: Volume) -> Volume:
    return available(volume) if volume.state is VolumeState.RESTORE else volume
