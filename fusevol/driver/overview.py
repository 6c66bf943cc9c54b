"""A state directory at a glance: its volumes, mounts and pools, and what somebody should look at."""

import shutil
from collections.abc import Mapping
from contextlib import suppress

import msgspec
import trio

from fusevol.api import Volume, VolumeState
from fusevol.driver import snapmounts
from fusevol.driver.attachment import believed
from fusevol.driver.context import LEFTOVER, Context
from fusevol.driver.labels import pool_of
from fusevol.driver.mounts import is_ours, mount_at
from fusevol.driver.pools import check_key
from fusevol.errors import FusevolError

__all__ = ["Overseeing", "Overview", "PoolState"]

#: Seconds that a pool may take to say what is in it.
_PATIENCE = 10.0
#: In the names of parameters that are not to be shown.
_SECRET = ("secret", "password", "token", "account_key", "sas_key", "service_account_key", "private_key")


class PoolState(msgspec.Struct, frozen=True, kw_only=True):
    """A pool: its backend, its parameters, the volumes in it.

    size, free: bytes of the disk under it, and how many of them are left; None where there is no such disk.
    orphans: ids of data without a record here. missing: names of volumes that have a record here, and no data.
    error: why it cannot be used, in one line; empty where it can. encrypted: whether it encrypts what it stores.
    """

    name: str
    backend: str
    attributes: dict[str, object]
    volumes: int = 0
    size: int | None = None
    free: int | None = None
    orphans: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    error: str = ""
    encrypted: bool = False


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


class Overseeing:
    """Looks at everything. No volume is held or opened."""

    def __init__(self, context: Context) -> None:
        self._context = context

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
            f'volume "{volume.locator.name}": it is an unfinished copy; the same fusevol copy goes on with it'
            for volume in volumes
            if volume.state is VolumeState.RESTORE and volume.id not in locked
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
        known = {pool.name for pool in pools}
        problems += [
            f'volume "{volume.locator.name}": there is no pool "{pool_of(volume)}" in {context.home.config_path}'
            for volume in volumes
            if pool_of(volume) not in known
        ]
        for pool in pools:
            if pool.error:
                problems.append(f'pool "{pool.name}": {pool.error}')
            problems += [
                f'volume "{name}": its data is missing from pool "{pool.name}"; is its disk mounted?'
                for name in pool.missing
            ]
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
            with trio.move_on_after(_PATIENCE):
                found[name] = await self._pool(name, volumes)
                return
            error = f"it has not answered for {_PATIENCE:g} seconds"
            found[name] = msgspec.structs.replace(self._configured(name, volumes), error=error)

        names = list(self._context.home.config.pools)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)
        return [found[name] for name in names]

    def _configured(self, name: str, volumes: list[Volume]) -> PoolState:
        """What is known of a pool without asking it."""
        pool = self._context.home.pool(name)
        return PoolState(
            name=name,
            backend=pool.backend,
            encrypted=bool(pool.key_file),
            attributes=_shown({**pool.attributes, **({"key_file": pool.key_file} if pool.key_file else {})}),
            volumes=sum(pool_of(volume) == name for volume in volumes),
        )

    async def _pool(self, name: str, volumes: list[Volume]) -> PoolState:
        state, store = self._configured(name, volumes), self._context.store
        if directory := self._context.home.pool(name).directory:
            with suppress(OSError):
                # A disk that hangs is given up by whoever called this.
                # Of a directory alone: how full the file system is that a device has its name in says nothing.
                place = f"{directory}/."
                disk = await trio.to_thread.run_sync(shutil.disk_usage, place, abandon_on_cancel=True)
                state = msgspec.structs.replace(state, size=disk.total, free=disk.free)
        try:
            backend = self._context.backend(name)
            there = await backend.list()
            if state.size is None and (capacity := backend.capacity(next(iter(there), ""))):
                state = msgspec.structs.replace(state, size=capacity.total, free=capacity.free)
            await check_key(backend, [volume.id for volume in volumes if pool_of(volume) == name] or there)
            orphans = await store.unknown(there)
            gone = {volume.id for volume in volumes if pool_of(volume) == name} - set(there)
            # Some may have been deleted since `volumes` was read; what is being made or deleted may have none.
            left = [volume for volume in await store.inspect(sorted(gone)) if volume.state not in LEFTOVER]
        except FusevolError as error:
            return msgspec.structs.replace(state, error=str(error).removeprefix(f'pool "{name}": '))
        missing = sorted(volume.locator.name for volume in left if volume.id in gone)
        return msgspec.structs.replace(state, orphans=tuple(orphans), missing=tuple(missing))


def _shown(attributes: Mapping[str, object]) -> dict[str, object]:
    """Parameters of a pool, without what is secret in them."""

    def shown(name: str, value: object) -> object:
        if isinstance(value, Mapping):
            return {key: shown(key, inner) for key, inner in value.items()}
        secret = any(word in name.lower() for word in _SECRET)
        return "(hidden)" if secret and value else value

    return {name: shown(name, value) for name, value in attributes.items()}
