"""The care of data: what volumes take up, whether it is sound, and giving back what nobody needs."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from fusevol.api import Volume
from fusevol.driver.context import Context
from fusevol.driver.overview import Overseeing
from fusevol.driver.snapshots import Snapshots
from fusevol.errors import (
    CorruptData,
    FusevolError,
    NotSupported,
    ReadOnly,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
)

if TYPE_CHECKING:
    from fusevol.fs.findings import Finding
    from fusevol.log import Damage, LogVolume, ScrubReport

__all__ = [
    "REMOVED",
    "CheckReport",
    "Problem",
    "Reclaimed",
    "SnapshotSize",
    "Upkeep",
    "VolumeUsage",
]

#: Called with the bytes verified so far, and about how many there are.
Progress = Callable[[int, int], None]

#: The note on a volume that is no more.
REMOVED = "removed: its creation or deletion was interrupted"

_BLOCK = 4096


class SnapshotSize(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a snapshot: all it refers to, and what deleting it would give back."""

    name: str
    referenced: int
    exclusive: int


class VolumeUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a volume, exact to the block of 4 KiB, as of its last barrier.

    live: mapped by the live tree. inherited: of these, those that it reads from the volume it was cloned from.
    data: own data, of the live tree or snapshots. in_snapshots: those of them that only snapshots hold.
    metadata: maps and records of the log. reclaimable: dead, to be given back. total: data, metadata, reclaimable.
    """

    live: int
    inherited: int
    data: int
    in_snapshots: int
    metadata: int
    reclaimable: int
    total: int
    snapshots: tuple[SnapshotSize, ...] = ()


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it should be.

    what: in words. offset, size: the bytes of the volume concerned, where it is about bytes. holders: who has
    them: "live", and snapshots by name.
    """

    what: str
    offset: int | None = None
    size: int | None = None
    holders: tuple[str, ...] = ()


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a check or scrub found: bytes of data verified, and all problems."""

    verified: int
    problems: tuple[Problem, ...]


class Reclaimed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one volume, or leftover, in a gc. freed: bytes given back. note: where it was passed over."""

    name: str
    freed: int = 0
    note: str = ""


class Upkeep(Overseeing):
    """Usage, checks and space of volumes. What only reads holds no lock, and works on mounted volumes as well."""

    def __init__(self, context: Context, snapshots: Snapshots) -> None:
        super().__init__(context)
        self._snapshots = snapshots

    async def flush(self, volume: Volume) -> None:
        """Make what was written to a mounted volume visible to readers of its log, if that can be done."""
        with suppress(FusevolError):
            if control := self._context.control(volume):
                await control.flush()

    # -- usage ------------------------------------------------------------------------------------

    async def usage(self, volume: Volume, *, with_snapshots: bool = False) -> VolumeUsage:
        """What a volume takes up. with_snapshots: and each of its snapshots."""

        async def measure(log: "LogVolume") -> VolumeUsage:
            used = await log.usage()
            snapshots = []
            for snapshot in log.snapshots() if with_snapshots else ():
                size = await log.snapshot_usage(snapshot.name)
                snapshots.append(
                    SnapshotSize(
                        name=snapshot.name,
                        referenced=size.referenced,
                        exclusive=size.exclusive + size.exclusive_metadata,
                    )
                )
            return VolumeUsage(
                live=used.live, inherited=used.inherited, data=used.data, in_snapshots=used.snapshots,
                metadata=used.metadata, reclaimable=used.reclaimable, total=used.total, snapshots=tuple(snapshots),
            )  # fmt: skip

        await self.flush(volume)
        return await self._context.look(volume, measure)

    # -- soundness --------------------------------------------------------------------------------

    async def scrub(self, volume: Volume, progress: Progress | None = None) -> CheckReport:
        """Read and verify all that a volume and its snapshots hold.

        Raises CorruptData where so much is damaged that the volume cannot be opened.
        """
        await self.flush(volume)
        report = await self._scrub(volume, progress)
        damage = report.damage
        if damage:
            # Somebody may have given back in the meantime what looks damaged: real damage is there to stay.
            again = {_key(item) for item in (await self._scrub(volume, None)).damage}
            damage = [item for item in damage if _key(item) in again]
        return CheckReport(verified=report.blocks * _BLOCK, problems=tuple(_problem(item) for item in damage))

    async def _scrub(self, volume: Volume, progress: Progress | None) -> "ScrubReport":
        async def work(log: "LogVolume") -> "ScrubReport":
            used = await log.usage()
            total = used.data + used.inherited

            def tell(blocks: int) -> None:
                if progress:
                    progress(min(blocks * _BLOCK, total), total)

            return await log.scrub(tell)

        return await self._context.look(volume, work)

    async def check(self, volume: Volume, progress: Progress | None = None) -> CheckReport:
        """Say what is wrong with a volume: its log, the maps in it, all data, and the filesystem in it."""
        try:
            report = await self.scrub(volume, progress)
        except CorruptData as error:
            return CheckReport(verified=0, problems=(Problem(what=str(error)),))
        found = await self._context.look(volume, _check_filesystem)
        if any(finding.unreadable for finding in found):
            # As for `scrub`. What is wrong in what can be read may be said in other words the second time.
            before = {str(finding) for finding in found}
            again = await self._context.look(volume, _check_filesystem)
            found = [finding for finding in again if not finding.unreadable or str(finding) in before]
        problems = (Problem(what=str(finding), holders=("live",)) for finding in found)
        return CheckReport(verified=report.verified, problems=(*report.problems, *problems))

    # -- space ------------------------------------------------------------------------------------

    async def gc(self, volume: Volume) -> Reclaimed:
        """Give back the dead space of a volume; through its mount, where it is mounted.

        Passed over, with a note that says why: volumes in use by another command, and mounts that do not do it.
        """
        name = volume.locator.name
        try:
            async with self._context.hold(volume.id) as held:
                control = self._context.control(held)
                for snapshot in await self._snapshots.of(held):
                    if await self._snapshots.is_stale(snapshot):
                        # Not that of a clone which has no record here, and its data all the same.
                        with suppress(VolumeHasSnapshots, VolumeBusy):
                            await self._snapshots.delete(held, snapshot.locator.name)
                backend = self._context.backend_of(held)
                before = await backend.used_size(held.id)
                if control:
                    await control.reclaim()
                else:
                    async with self._context.writing(held, unfinished=True) as log:
                        await log.reclaim()
                return Reclaimed(name=name, freed=max(0, before - await backend.used_size(held.id)))
        except VolumeNotFound:
            return Reclaimed(name=name, note=REMOVED)
        except (VolumeBusy, NotSupported, ReadOnly) as error:
            return Reclaimed(name=name, note=str(error))


def _key(damage: "Damage") -> tuple[int, int, str]:
    return damage.block, damage.address, damage.space


def _problem(damage: "Damage") -> Problem:
    size = damage.count * _BLOCK
    what = f"{size} bytes at {damage.block * _BLOCK}: {damage.reason}"
    return Problem(what=what, offset=damage.block * _BLOCK, size=size, holders=damage.holders)


async def _check_filesystem(log: "LogVolume") -> "list[Finding]":
    from fusevol.fs.check import check_filesystem

    # Of what is only partly a copy, the log alone can be judged.
    return [] if log.becoming else (await check_filesystem(log)).errors
