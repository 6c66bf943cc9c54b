"""Volumes whose data is in a pool and whose records are not here: lost, or in a state directory of another host.

Whoever changes a volume's record, or attaches it, leaves the record in the manifest as well. So records can be made
from the pools alone; those of snapshots come from the log as ever.
"""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import trio

from fusevol.api import Volume, VolumeLocator, check_name, from_json
from fusevol.driver.about import lasting
from fusevol.driver.claims import Held, held
from fusevol.driver.context import LEFTOVER, Context
from fusevol.driver.labels import STORAGE_LABELS, TAG_LABEL, pool_of, without_labels
from fusevol.driver.pools import check_key, is_uuid
from fusevol.driver.records import available, in_pool, unfinished
from fusevol.driver.snapshots import Snapshots
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    FusevolError,
    InvalidArgument,
    NotSupported,
    VolumeNotFound,
    WrongKey,
)
from fusevol.store import Life

__all__ = ["Importable", "Importing"]

#: How many volumes are looked at at once.
_AT_ONCE = 16
_NOBODY = Held(Life.GONE, "", False)
#: For what does not say when it was made.
_LAST = datetime.max.replace(tzinfo=UTC)


class Importable(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in a pool that has no record here.

    name: what it was called, "" where it does not say. record: that it had, None where it does not say. unfinished:
    whether it is only partly a copy of another. held: who has it open for writing, as far as can be seen. problem: what
    is wrong with it, in one line; "" for nothing. locked: that is that it is encrypted, or not, otherwise
    than its pool says.
    """

    id: str
    pool: str
    name: str = ""
    record: Volume | None = None
    unfinished: bool = False
    held: Held = _NOBODY
    problem: str = ""
    locked: bool = False

    @property
    def held_by(self) -> str:
        """Who has it open, in words; "" for nobody."""
        return "" if self.held.life is Life.GONE else self.held.by


class Importing:
    """Makes records, in one state directory, of volumes that are in its pools."""

    def __init__(self, context: Context, snapshots: Snapshots) -> None:
        self._context = context
        self._snapshots = snapshots

    async def found(self, pool: str = "") -> list[Importable]:
        """What there is to import, the oldest first; in one pool, or in all of them.

        Raises BackendError where a pool does not answer, InvalidArgument where there is none of that name.
        """
        pools = [pool] if pool else list(self._context.home.config.pools)
        found = [item for name in pools for item in await self._look_into(name)]
        pools_of, ids_of = defaultdict[str, list[str]](list), defaultdict[str, set[str]](set)
        for item in found:
            pools_of[item.id].append(item.pool)
            ids_of[item.name].add(item.id)

        def with_others(item: Importable) -> Importable:
            problem = item.problem
            if len(pools := pools_of[item.id]) > 1:
                problem = f"it is in several pools: {', '.join(pools)}"
            elif not problem and len(ids := ids_of[item.name]) > 1:
                # Which of them is the one that users mean by that name?
                problem = f"{len(ids)} volumes were called so: import it by id"
            return msgspec.structs.replace(item, problem=problem)

        # So a clone comes after what it is a clone of.
        return sorted(map(with_others, found), key=lambda item: (item.record.ctime if item.record else _LAST, item.id))

    async def check_pool(self, name: str, pool: str) -> None:
        """Raise where a volume of that name is not to be made in a pool, though it has no record here.

        AlreadyExists where the pool has one: after the records were lost, whoever makes their volumes when they miss
        them would find them empty. CorruptData where it has none of those that have records: then another disk is
        under it, most likely. WrongKey where they are encrypted otherwise than that volume would be. Of a pool that is
        asked over a network, no more than the key is looked at once a volume of it has a record.
        """
        backend, recorded = self._context.backend(pool), await self._recorded(pool)
        if backend.traits.remote and recorded:
            await check_key(backend, recorded)
            return
        # First of all: a disk that hangs holds up a thread here, and nobody else.
        there = await backend.list()
        fits = await check_key(backend, recorded)
        unrecorded = await self._context.store.unknown(there)
        if len(unrecorded) == len(there) and recorded:
            raise CorruptData(
                f'pool "{pool}" has none of the {len(recorded)} volumes that are on record in it',
                hint="is its disk mounted, and is config.toml right?",
            )
        for item in await self._look_at(unrecorded, pool):
            if item.locked and not fits:
                raise WrongKey(
                    f'pool "{pool}": {item.problem}', hint="say in config.toml which key_file it has, or has not"
                )
            if item.name == name:
                raise AlreadyExists(
                    f'pool "{pool}" has a volume "{name}" already, that has no record here',
                    hint=f"to have it: fusevol import {item.id}; to have it under another name: "
                    f"fusevol import {item.id} NAME",
                )

    async def _recorded(self, pool: str) -> list[str]:
        """The ids of volumes that are on record and should be in a pool."""
        volumes = [volume for volume, _ in await self._context.store.volumes()]
        return [volume.id for volume in volumes if pool_of(volume) == pool and volume.state not in LEFTOVER]

    async def _look_into(self, pool: str) -> list[Importable]:
        """What is in a pool and has no record. Raises as `Backend.list` does."""
        there = await self._context.backend(pool).list()
        return await self._look_at(await self._context.store.unknown(there), pool)

    async def _look_at(self, volume_ids: Iterable[str], pool: str) -> list[Importable]:
        found: list[Importable] = []
        failures: list[FusevolError] = []
        at_once = trio.CapacityLimiter(_AT_ONCE)

        async def look(volume_id: str) -> None:
            async with at_once:
                try:
                    found.append(await self._look(volume_id, pool))
                except FusevolError as error:
                    failures.append(error)

        async with trio.open_nursery() as nursery:
            for volume_id in volume_ids:
                nursery.start_soon(look, volume_id)
        if failures:
            raise failures[0]
        return found

    async def _look(self, volume_id: str, pool: str) -> Importable:
        from fusevol.log import check_ready, read_manifest

        found = Importable(id=volume_id, pool=pool)
        if not is_uuid(volume_id):
            return msgspec.structs.replace(found, problem="no driver made it: its id is no UUID")
        backend = self._context.backend(pool)
        # One file that cannot be read is that volume's problem; a store that does not answer is everybody's.
        damaged = CorruptData if backend.traits.remote else BackendError
        try:
            manifest, _ = await read_manifest(backend, volume_id)
            context = self._context
            found = msgspec.structs.replace(
                found, unfinished=bool(manifest.becoming),
                held=held(manifest.holder or "", context.store.owner, context.home.path),
            )  # fmt: skip
            check_ready(manifest, volume_id)
            if not manifest.about:
                return msgspec.structs.replace(found, problem="it does not say what it was called")
            record = from_json(manifest.about, Volume)
        except (damaged, NotSupported, InvalidArgument, VolumeNotFound) as error:
            return msgspec.structs.replace(found, problem=str(error), locked=isinstance(error, WrongKey))
        return msgspec.structs.replace(found, name=record.locator.name, record=record)

    async def import_volume(self, found: Importable, name: str = "", *, force: bool = False) -> Volume:
        """Make the record of a volume that was found; return it. Its data is not touched.

        name: what it is to be called; otherwise as it was. One with a problem can be imported as well, to be looked at
        or deleted. force: also where a process that cannot be seen had its record here, and may run.

        Raises AlreadyExists where it has a record by now, or another volume has that name, InvalidArgument where it
        needs a name, or no driver made it, VolumeBusy while a process of this host has it open,
        VolumeAttachedOnRemoteNode, WrongKey.
        """
        if found.locked:
            # Nobody could say who has it open, nor what it is.
            raise WrongKey(found.problem, hint=f'say in config.toml which key_file pool "{found.pool}" has, or has not')
        # Of one of another state directory that cannot be seen, whoever attaches the volume will be told.
        found.held.refuse(
            found.name or found.id, force=force or not found.held.here, how=f"fusevol import --force {found.id}"
        )
        record = in_pool(_record(found, name), self._context.home.pool(found.pool))
        if (tag := record.locator.volume_labels.get(TAG_LABEL)) and await self._context.store.enumerate(
            None, {TAG_LABEL: tag}
        ):
            # That of another state directory, which calls its own as this one does.
            record = without_labels(record, STORAGE_LABELS)
        async with self._context.lock(record):
            if known := await self._context.store.inspect([found.id]):
                raise AlreadyExists(f'volume "{found.id}" has a record already, as "{known[0].locator.name}"')
            try:
                await self._context.store.create_vol(record)
            except AlreadyExists as error:
                error.hint = f"to give it another name: fusevol import {found.id} NAME"
                raise
        # Who looks at them makes their records as well; here it is for `ls` to count them.
        with suppress(FusevolError):
            await self._snapshots.of(record)
        return record


def _record(found: Importable, name: str) -> Volume:
    """The record that a volume is to have here. Where its parent has none, that may still come."""
    if not is_uuid(found.id):
        raise InvalidArgument(f'"{found.id}" cannot be imported: {found.problem}')
    if name:
        check_name(name, "volume")
    elif found.record is None:
        hint = f"fusevol import {found.id} NAME"
        raise InvalidArgument(f'volume "{found.id}" needs a name: {found.problem}', hint=hint)
    if found.record is None:
        record = Volume(id=found.id, locator=VolumeLocator(name=name), ctime=datetime.now(UTC))
    else:
        record = lasting(found.record)
        locator = msgspec.structs.replace(record.locator, name=name or record.locator.name)
        record = msgspec.structs.replace(record, id=found.id, locator=locator)
    return unfinished(record) if found.unfinished else available(record)
