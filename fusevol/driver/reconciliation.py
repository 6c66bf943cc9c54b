"""Making the records true: what processes that died, or a reboot, left behind is finished or taken away.

What the driver reads it never believes more than is so (`attachment.believed`), and an operation first puts its own
volume in order (`Context.hold`). This does the same for all volumes at once, so that nothing waits for somebody to
come by: the daemon does it when it starts, and `fusevol gc`.
"""

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from fusevol.api import Volume
from fusevol.driver.attachment import believed
from fusevol.driver.context import LEFTOVER, Context
from fusevol.driver.mounts import take_away
from fusevol.driver.snapmounts import believed_snapshot, servers
from fusevol.driver.snapshots import CLONE_LABEL, Snapshots
from fusevol.errors import FusevolError, VolumeBusy, VolumeNotFound

__all__ = ["Reconciled", "reconcile", "sweep"]


class Reconciled(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconciliation did. All of it is empty where everything was in order.

    detached: volumes and snapshots, by name, whose serving process was gone. unmounted: paths of dead mounts that were
    taken away. removed: volumes and snapshots, by name, whose creation or deletion had been interrupted. problems: what
    could not be done, a line each.
    """

    detached: tuple[str, ...] = ()
    unmounted: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        """All of it for a log, a line for each thing done, the problems last."""
        return (
            *(f'"{name}" is detached: the process that served it is gone' for name in self.detached),
            *(f"{path} is unmounted: the process that served it is gone" for path in self.unmounted),
            *(f'"{name}" is removed: its creation or deletion was interrupted' for name in self.removed),
            *self.problems,
        )


async def reconcile(context: Context, snapshots: Snapshots) -> Reconciled:
    """Check all records against living processes and mounts, and put right what is not so.

    What somebody else is at work on is left to them. No volume is opened that is in order, so this takes no longer
    with many of them than reading their records does. Data without a record is left alone: `Upkeep.overview` names it.
    What is left in the stores, without any record, is for `sweep`.

    Raises what reading the records raises; what goes wrong with one volume is among the problems.
    """
    work = _Work(context, snapshots)
    await work.everything()
    return Reconciled(
        detached=tuple(work.detached), unmounted=tuple(work.unmounted), removed=tuple(work.removed),
        problems=tuple(work.problems),
    )  # fmt: skip


async def sweep(context: Context) -> None:
    """Have the pools do away with what is left of deleted volumes, and tell their disks what is free."""
    for pool in context.home.config.pools:
        # One that cannot be opened is named by `Upkeep.overview`.
        with suppress(FusevolError):
            await context.backend(pool).sweep()


class _Work:
    """One reconciliation."""

    def __init__(self, context: Context, snapshots: Snapshots) -> None:
        self._context = context
        self._snapshots = snapshots
        self.detached: list[str] = []
        self.unmounted: list[str] = []
        self.removed: list[str] = []
        self.problems: list[str] = []

    async def everything(self) -> None:
        records = await self._context.store.enumerate()
        names = {record.id: record.locator.name for record in records}
        busy = {lock.volume_id for lock in await self._context.store.locks()}
        for record in records:
            name = record.locator.name
            if record.is_snapshot:
                name = f"{names.get(record.source.parent, record.source.parent)}@{name}"
            if record.id in busy or record.source.parent in busy:
                continue
            try:
                if record.is_snapshot:
                    await self._snapshot(record, name, names)
                else:
                    await self._volume(record, name)
            except VolumeBusy:
                # Somebody has begun to work on it, who puts it in order first.
                continue
            except FusevolError as error:
                self.problems.append(f'"{name}": {error}')

    async def _volume(self, record: Volume, name: str) -> None:
        if record.state in LEFTOVER:
            try:
                async with self._context.hold(record.id):
                    pass
            except VolumeNotFound:
                self.removed.append(name)
        elif _is_dead(record) and _is_dead(await self._context.store.get_vol(record.id)):
            # Looked at again, since its process may have written down its end after the records were read.
            await self._unmount(record.attach_path)
            async with self._context.hold(record.id):
                self.detached.append(name)

    async def _snapshot(self, record: Volume, name: str, names: dict[str, str]) -> None:
        clone = record.locator.volume_labels.get(CLONE_LABEL)
        if clone is not None and clone not in names and await self._snapshots.is_stale(record):
            await self._snapshots.drop_for_clone(record.source.parent, clone)
            if not await self._context.store.inspect([record.id]):
                self.removed.append(name)
        elif _dead_paths(record) and (dead := _dead_paths(await self._context.store.get_vol(record.id))):
            await self._unmount(dead)
            await self._context.change(record.id, believed_snapshot)
            self.detached.append(name)

    async def _unmount(self, paths: Iterable[str]) -> None:
        """Take away those mounts of ours that nobody serves any more."""
        for path in paths:
            if await take_away(path):
                self.unmounted.append(path)


def _is_dead(record: Volume) -> bool:
    return bool(record.attached_on) and not believed(record).attached_on


def _dead_paths(snapshot: Volume) -> list[str]:
    return [path for path in snapshot.attach_path if path not in servers(snapshot)]
