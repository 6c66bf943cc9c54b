"""Copies of volumes in other pools: backups that are brought up to date, and volumes that move."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec
import trio

from fusevol.api import Volume, VolumeLocator, VolumeRef, VolumeSpec, VolumeState
from fusevol.driver import snapmounts
from fusevol.driver.consumers import refuse_if_used
from fusevol.driver.context import Context
from fusevol.driver.labels import COPIED_LABEL, POOL_LABEL, own_labels, pool_of, with_labels
from fusevol.driver.lineage import Lineage, labels_of_copy
from fusevol.driver.records import available, deleted, unfinished
from fusevol.driver.snapshots import COPY_LABEL, Snapshots, copy_label, drop_halves, snapshot_id
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    FusevolError,
    InvalidArgument,
    NotSupported,
    VolumeBusy,
    VolumeNotFound,
)
from fusevol.home import DEFAULT_POOL
from fusevol.mount.schedule import utc_text

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
        async with self._context.hold(target.id) as held:
            self._refuse(held, volume)
            attempt = _Attempt(volume, held, only, tell)
            try:
                # While nobody else copies to it, so that the last of several snapshots is what it will hold.
                if not source.is_snapshot:
                    attempt.taken = f"copy-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
                goal = await self._take(volume, held, attempt.taken) if attempt.taken else source
                done = await self._copy(attempt, goal)
            except BaseException as error:
                with trio.CancelScope(shield=True):
                    if attempt.started:
                        _add_hint(error)
                    if attempt.taken and not attempt.begun:
                        await self._drop(volume, [attempt.taken])
                    if made and not attempt.started:
                        await self._remove_if_empty(held)
                raise
        if attempt.superseded:
            # Not while the other is held: two that copy in opposite directions would wait for each other.
            await self._drop(volume, attempt.superseded)
        return done

    async def _copy(self, attempt: "_Attempt", goal: Volume) -> Copied:
        target = attempt.target
        async with self._context.writing(target, unfinished=True) as log:
            done = await self._context.look(attempt.volume, lambda source: self._bring(attempt, goal, source, log))
            for name in attempt.left:
                # One that is in use, or has a clone, stays until the next time.
                with suppress(FusevolError):
                    await self._snapshots.refuse_if_mounted(target, name)
                    await log.delete_snapshot(name)
        await self._snapshots.of(target)
        finished = await self._context.change(target.id, lambda record: attempt.finished(record, goal))
        await self._context.describe(finished, target)
        return done

    async def _target(self, volume: Volume, name: str, pool: str) -> tuple[Volume, bool]:
        """The volume of that name, and whether it was made."""
        target = await self._context.store.named(name)
        if target is None:
            labels = {**own_labels(volume), POOL_LABEL: pool or DEFAULT_POOL}
            if volume.spec.encrypted and not pool and not self._context.home.pool(DEFAULT_POOL).key_file:
                raise NotSupported(
                    f'a copy of "{volume.locator.name}" in pool "{DEFAULT_POOL}" would not be encrypted',
                    hint=f"choose its pool: --pool POOL, or --pool {DEFAULT_POOL} if whoever has that may read it",
                )
            # What the schedule there takes, and deletes, is the history here.
            spec = msgspec.structs.replace(
                volume.spec, encrypted=False, sticky=False, snapshot_interval=0, snapshot_schedule=""
            )
            with suppress(AlreadyExists):
                made = await self._create(VolumeLocator(name=name, volume_labels=labels), spec)
                return await self._context.store.get_vol(made), True
            # Somebody else was faster.
            target = await self._context.store.named(name)
            if target is None:
                raise AlreadyExists(f'volume "{name}" was being made or deleted by somebody else', hint="try again")
        self._refuse(target, volume)
        if pool and pool_of(target) != pool:
            raise InvalidArgument(f'volume "{name}" is in pool "{pool_of(target)}", not in "{pool}"')
        return target, False

    async def _remove_if_empty(self, held: Volume) -> None:
        """Remove a held volume that was made for a copy that did not begin, unless somebody has used it meanwhile."""

        async def is_empty(log: "LogVolume") -> bool:
            return not (log.path.live.mapped or log.snapshots() or log.becoming)

        with suppress(FusevolError):
            if await self._context.look(held, is_empty):
                await self._context.remove(await self._context.change(held.id, deleted))

    async def _take(self, volume: Volume, target: Volume, name: str) -> Volume:
        """Take the snapshot of a live volume that is to be copied to `target`."""
        async with self._context.hold(volume.id) as held:
            return await self._snapshots.take(held, name, {COPY_LABEL: copy_label(volume.id, target.id)})

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

    async def _bring(self, attempt: "_Attempt", goal: Volume, source: "LogVolume", log: "LogVolume") -> Copied:
        """Do it, or go on with it where it was done in part: when something looks damaged, this is called once more."""
        from fusevol.log.copying import Copier

        volume, target = attempt.volume, attempt.target
        way = Lineage(volume, source, goal, target, log)
        steps = way.steps(only=attempt.only)
        if attempt.taken and way.is_nothing_new(steps):
            steps = []
        way.check(steps)
        if not way.clean and not (steps and log.becoming == way.becoming(steps[0])):
            attempt.started = True
            await self._context.change(target.id, unfinished)
            await way.go_back()
        async with self._reading(volume, [way.theirs[origin] for origin in (*steps, way.common) if origin]):
            for origin in steps:
                snapshot = way.theirs[origin]
                attempt.started = True
                attempt.begun = attempt.begun or origin == way.wanted
                await log.become(way.becoming(origin))
                await self._context.change(target.id, unfinished)
                async with AsyncExitStack() as views:
                    base = there = None
                    if way.common:
                        base = await views.enter_async_context(source.view(way.theirs[way.common].name))
                        there = await views.enter_async_context(log.view(way.ours[way.common].name))
                    copier = Copier(base, await views.enter_async_context(source.view(snapshot.name)), there, log)
                    try:
                        await copier.run(attempt.tell)
                    finally:
                        attempt.written += copier.copied
                way.ours[origin] = await log.snapshot(snapshot.name, labels_of_copy(snapshot, origin), like=snapshot)
                way.common = origin
                attempt.copied.append(snapshot.name)
        await drop_halves(log)
        await log.become("")
        held = way.theirs[way.common or way.wanted]
        attempt.superseded = [attempt.taken] if attempt.taken and not attempt.begun else []
        attempt.left = [each.name for each in log.snapshots() if way.is_left(each)]
        if attempt.taken and way.is_paired(held):
            # What earlier copies of the one to the other have left, on both sides.
            attempt.superseded = [each.name for each in source.snapshots() if way.is_paired(each) and each != held]
            attempt.left += [each.name for each in log.snapshots() if way.is_paired(each) and each.name != held.name]
        now = VolumeRef(volume.locator.name, held.name)
        return Copied(volume=target, source=now, copied=tuple(attempt.copied), written=attempt.written)

    @asynccontextmanager
    async def _reading(self, volume: Volume, snapshots: Iterable["Snapshot"]) -> AsyncIterator[None]:
        """Keep snapshots from being deleted while they are read; those that are gone by then are missed later."""
        process, key = self._context.store.owner, secrets.token_hex(8)
        ids = [snapshot_id(volume, snapshot) for snapshot in snapshots]
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

    async def _drop(self, volume: Volume, names: list[str]) -> None:
        """Delete snapshots that were taken for copies, as far as there are such; what is in the way is left."""
        with suppress(FusevolError):
            async with self._context.hold(volume.id) as held:
                for name in names:
                    with suppress(FusevolError):
                        await self._snapshots.delete(held, name)


@dataclass
class _Attempt:
    """One call of `copy`, of `volume` to `target`, which is held.

    taken: name of the snapshot to be copied, where it is taken for this. started: whether the target is on its way to
    some snapshot; begun: to that one, or has it. superseded, left: names of those that are no longer needed in the end,
    of the volume and of the target. copied, written: as in `Copied`.
    """

    volume: Volume
    target: Volume
    only: bool
    tell: "Progress | None"
    taken: str | None = None
    started: bool = False
    begun: bool = False
    superseded: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    copied: list[str] = field(default_factory=list)
    written: int = 0

    def finished(self, record: Volume, goal: Volume) -> Volume:
        """The record of the target, once it holds what the snapshot does. It may hold as much as the volume."""
        record = available(record) if record.state is VolumeState.RESTORE else record
        wanted, size = self.volume.spec.size, record.spec.size
        size = max(size, wanted) if size and wanted else 0
        record = msgspec.structs.replace(record, spec=msgspec.structs.replace(record.spec, size=size))
        return with_labels(record, {COPIED_LABEL: utc_text(goal.ctime.timestamp())})


def _add_hint(error: BaseException) -> None:
    """Say of the store's errors what is to be done about the copy. Others have a hint where there is one."""
    if isinstance(error, BackendError) and not isinstance(error, CorruptData):
        error.hint = "the copy is not finished: once that is mended, the same command goes on with it"


async def refuse_if_unfinished(context: Context, volume: Volume, *, force: bool = False) -> None:
    """Raise VolumeBusy for a held volume that is only partly a copy of another.

    force: take it first from a process that cannot be seen from here, so that it can be finished.
    """
    from fusevol.log import read_manifest

    if volume.state is not VolumeState.RESTORE and not (force and not volume.attached_on):
        return
    manifest, _ = await read_manifest(context.backend_of(volume), volume.id)
    if manifest.becoming:
        if force:
            async with context.writing(volume, force=True, unfinished=True):
                pass
        name = volume.locator.name
        raise VolumeBusy(
            f'volume "{name}" is an unfinished copy',
            hint=f"finish it: fusevol copy SOURCE {name}; or give that up: fusevol restore {name}@SNAPSHOT",
        )
