"""The care of data: what volumes take up, whether it is sound, and giving back what nobody needs."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import trio

from fusevol.api import Volume, VolumeState
from fusevol.driver import snapmounts
from fusevol.driver.attachment import believed
from fusevol.driver.context import Context, pool_of
from fusevol.driver.importing import unrecorded
from fusevol.driver.mounts import is_ours, mount_at
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
    "Overview",
    "PoolState",
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
#: In the names of parameters that are not to be shown.
_SECRET = ("secret", "password", "token", "account_key", "sas_key", "service_account_key", "private_key")


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


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """A pool: its backend, its parameters, the volumes in it. orphans: ids of data without a record here.

    error: why it cannot be used, in one line; empty where it can.
    """

    name: str
    backend: str
    attributes: dict[str, object]
    volumes: int = 0
    orphans: tuple[str, ...] = ()
    error: str = ""


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A state directory at a glance. problems: what somebody should look at, a line each."""

    home: str
    version: str
    volumes: int
    snapshots: int
    mounted: int
    in_use: tuple[str, ...]
    pools: tuple[PoolState, ...]
    problems: tuple[str, ...]


class Upkeep:
    """Usage, checks and space of volumes. What only reads holds no lock, and works on mounted volumes as well."""

    def __init__(self, context: Context, snapshots: Snapshots) -> None:
        self._context = context
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
                    async with self._context.writing(held) as log:
                        await log.reclaim()
                return Reclaimed(name=name, freed=max(0, before - await backend.used_size(held.id)))
        except VolumeNotFound:
            return Reclaimed(name=name, note=REMOVED)
        except (VolumeBusy, NotSupported, ReadOnly) as error:
            return Reclaimed(name=name, note=str(error))

    # -- the whole --------------------------------------------------------------------------------

    async def overview(self) -> Overview:
        """What there is, and what is wrong."""
        from fusevol import __version__

        context = self._context
        found = await context.store.volumes()
        volumes = [believed(volume) for volume, _ in found]
        held = await context.store.locks()
        names = {volume.id: volume.locator.name for volume in volumes}
        locked = {lock.volume_id for lock in held}
        problems = [
            f'volume "{volume.locator.name}": its {what} was interrupted; fusevol gc removes what is left of it'
            for volume in volumes
            for state, what in ((VolumeState.PENDING, "creation"), (VolumeState.DELETED, "deletion"))
            if volume.state is state and volume.id not in locked
        ]
        problems += [
            f"{path}: the process that served this mount is gone; unmount it"
            for record, _ in found
            if not believed(record).attached_on
            for path in record.attach_path
            if is_ours(mount_at(path))
        ]
        # Once it is not mounted any more, it is what its last mount ended with.
        problems += [f'volume "{v.locator.name}": {v.error}' for v in volumes if v.error and v.attached_on]
        # Of very many, those that somebody mounted by itself.
        snapshots = [record for record in await context.store.in_state(VolumeState.ATTACHED) if record.is_snapshot]
        mounts_of_snapshots = sum(len(snapmounts.servers(record)) for record in snapshots)
        problems += [
            f"{path}: the process that served this mount is gone; unmount it"
            for record in snapshots
            for path in record.attach_path
            if path not in snapmounts.servers(record) and is_ours(mount_at(path))
        ]
        pools = await self._pools(volumes)
        for pool in pools:
            if pool.error:
                problems.append(f'pool "{pool.name}": {pool.error}')
            if pool.orphans:
                what = f"{len(pool.orphans)} volumes" if len(pool.orphans) > 1 else f'volume "{pool.orphans[0]}"'
                problems.append(f'pool "{pool.name}": no record here of the data of {what}; see fusevol import')
        return Overview(
            home=str(context.home.path),
            version=__version__,
            volumes=len(volumes),
            snapshots=sum(count for _, count in found),
            mounted=sum(bool(volume.attached_on) for volume in volumes) + mounts_of_snapshots,
            in_use=tuple(f"{names.get(lock.volume_id, lock.volume_id)}: {lock.owner}" for lock in held),
            pools=tuple(pools),
            problems=tuple(problems),
        )

    async def pools(self) -> list[PoolState]:
        """The pools that are configured."""
        volumes = [volume for volume, _ in await self._context.store.volumes()]
        return await self._pools(volumes)

    async def _pools(self, volumes: list[Volume]) -> list[PoolState]:
        """All of them, as they are configured. Asked at once: who is away takes long to be given up."""
        found: dict[str, PoolState] = {}

        async def ask(name: str) -> None:
            found[name] = await self._pool(name, volumes)

        names = list(self._context.home.config.pools)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)
        return [found[name] for name in names]

    async def _pool(self, name: str, volumes: list[Volume]) -> PoolState:
        pool = self._context.home.pool(name)
        state = PoolState(
            name=name,
            backend=pool.backend,
            attributes=_shown(pool.attributes),
            volumes=sum(pool_of(volume) == name for volume in volumes),
        )
        try:
            orphans = await unrecorded(self._context, name, known=[volume.id for volume in volumes])
        except FusevolError as error:
            return msgspec.structs.replace(state, error=str(error).removeprefix(f'pool "{name}": '))
        return msgspec.structs.replace(state, orphans=tuple(orphans))


def _key(damage: "Damage") -> tuple[int, int, str]:
    return damage.block, damage.address, damage.space


def _problem(damage: "Damage") -> Problem:
    size = damage.count * _BLOCK
    what = f"{size} bytes at {damage.block * _BLOCK}: {damage.reason}"
    return Problem(what=what, offset=damage.block * _BLOCK, size=size, holders=damage.holders)


async def _check_filesystem(log: "LogVolume") -> "list[Finding]":
    from fusevol.fs.check import check_filesystem

    return (await check_filesystem(log)).errors


def _shown(attributes: Mapping[str, object]) -> dict[str, object]:
    """Parameters of a pool, without what is secret in them."""

    def shown(name: str, value: object) -> object:
        if isinstance(value, Mapping):
            return {key: shown(key, inner) for key, inner in value.items()}
        secret = any(word in name.lower() for word in _SECRET)
        return "(hidden)" if secret and value else value

    return {name: shown(name, value) for name, value in attributes.items()}
