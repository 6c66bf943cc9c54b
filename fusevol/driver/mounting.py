"""Mounting and unmounting: starting and ending the process that serves a volume."""

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from fusevol.api import Volume, VolumeState
from fusevol.driver import snapmounts
from fusevol.driver.attachment import server_of
from fusevol.driver.consumers import refuse_if_used, uses
from fusevol.driver.context import Context, data_missing
from fusevol.driver.control import Control
from fusevol.driver.copying import refuse_if_unfinished
from fusevol.driver.mounts import Mount, is_ours, mount_at, take_away
from fusevol.errors import BackendError, InvalidArgument, NotSupported, VolumeBusy, VolumeDetached, VolumeNotFound
from fusevol.mount.mounttable import places, resolve
from fusevol.store.processes import Life, Process

if TYPE_CHECKING:
    from fusevol.mount.process import Entry

__all__ = ["Mounting", "absolute", "resolved"]

#: Seconds that an unmounted volume may take to make its last writes durable.
_PATIENCE = 600.0


class Mounting:
    """Mounts of the volumes of one state directory."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def mount(
        self,
        volume_id: str,
        path: str,
        options: Mapping[str, str] | None = None,
        *,
        again: bool = False,
        force: bool = False,
    ) -> Volume:
        """Mount a volume or snapshot on a directory, and return its record.

        Mounting where it is mounted already is no error. A snapshot can be mounted on several paths, read-only.

        options: as of mount(8), flags with the value ""; they come after those of the volume's spec. again: where it
        is mounted on another path, show that mount here too, with its options; so it is, unless there are options,
        where containers have it. force: take it from a process of which
        cannot be seen from here whether it still runs; should it do so, it can write no more.

        Raises VolumeNotFound, VolumeBusy (it, or the directory, is in use), VolumeAttachedOnRemoteNode (by a process
        that cannot be seen from here), InvalidArgument (the directory, an option), CorruptData, NotSupported,
        BackendError.
        """
        from fusevol.driver.server import serve_mount

        path = await resolved(path)
        await trio.to_thread.run_sync(self.refuse_own_place, path)
        record = await self._context.store.get_vol(volume_id)
        if record.is_snapshot:
            return await self._mount_snapshot(record, path, options, force=force)
        async with self._context.hold(volume_id, force=force) as volume:
            name = volume.locator.name
            self._wanted(volume, options)
            await refuse_if_unfinished(self._context, volume, force=force)
            if volume.attached_on:
                if path in volume.attach_path and self._context.control(volume):
                    return volume
                if not (again or (uses(volume) and not options)) or not self._context.control(volume):
                    self._context.refuse_if_mounted(volume, "mounted twice")
                return await self._mount_again(volume, path)
            return await self._start(serve_mount, volume, name, path, options, force=force)

    def refuse_own_place(self, path: str) -> None:
        """Raise InvalidArgument for a mountpoint over what its mount needs, which would wait for itself for ever."""
        home, where = self._context.home, os.path.realpath(path)
        above = {home.path: "the state directory", home.cache: "the cache of the state directory"}
        for pool in home.config.pools.values():
            if pool.directory:
                above[pool.directory] = f'the directory of pool "{pool.name}"'
        for place, what in above.items():
            own = os.path.realpath(place)
            common = os.path.commonpath([own, where])
            if common == where or (common == own and place != home.path):
                raise InvalidArgument(
                    f'"{path}" cannot be a mountpoint: {what}, "{place}", '
                    f"{'is' if own == where else 'is below' if common == where else 'is above'} it",
                    hint="mount on another directory",
                )

    async def _start(
        self,
        entry: "Entry",
        record: Volume,
        name: str,
        path: str,
        options: Mapping[str, str] | None,
        *,
        force: bool = False,
    ) -> Volume:
        """Start the process that serves a volume or snapshot of that name; return its record once it is mounted."""
        from fusevol.mount.attaching import check_mountpoint
        from fusevol.mount.process import spawn

        # Whichever volume it was of: nobody can use it any more.
        await take_away(path)
        # Before anything of the volume is touched: most mistakes are made here.
        await trio.to_thread.run_sync(check_mountpoint, Path(path))
        arguments = self.arguments(record, path, options, force=force)
        log_file = self._context.log_file(record.id)
        try:
            await trio.to_thread.run_sync(lambda: spawn(entry, arguments, log_file=log_file, title=f"{name} on {path}"))
        except VolumeNotFound as error:
            # There is a record.
            raise error if record.is_snapshot else data_missing(record) from error
        return await self._context.store.get_vol(record.id)

    async def _mount_snapshot(
        self, snapshot: Volume, path: str, options: Mapping[str, str] | None, *, force: bool
    ) -> Volume:
        """Mount a snapshot by itself. Its volume may be mounted meanwhile, or not."""
        from fusevol.driver.server import serve_snapshot_mount

        async with self.hold_snapshot(snapshot.id, options, force=force) as (volume, held):
            name = f"{volume.locator.name}@{held.locator.name}"
            if server := snapmounts.servers(held).get(path):
                if is_ours(mount_at(path)):
                    return held
                raise VolumeBusy(
                    f'snapshot "{name}" is being mounted on, or unmounted from, {path} by {server}',
                    hint="try again in a moment",
                )
            return await self._start(serve_snapshot_mount, held, name, path, options)

    @asynccontextmanager
    async def hold_snapshot(
        self, snapshot_id: str, options: Mapping[str, str] | None, *, force: bool = False
    ) -> AsyncIterator[tuple[Volume, Volume]]:
        """Hold the volume of a snapshot that is to be mounted, so that it is not deleted; give both records.

        Raises VolumeNotFound, VolumeBusy, InvalidArgument for options that a snapshot cannot have, and for `force`.
        """
        from fusevol.driver.server import mount_options

        if force:
            raise InvalidArgument("a snapshot needs no force to be mounted, since any number of processes can have it")
        for key, value in dict(options or {}).items():
            if key == "rw" or (key == "control" and value != "off"):
                raise InvalidArgument(
                    f'mount option "{key}{"=" if value else ""}{value}": a snapshot is mounted read-only, '
                    "and has no control files",
                    hint="to write to it, mount a clone of it",
                )
        snapshot = await self._context.store.get_vol(snapshot_id)
        async with self._context.hold(snapshot.source.parent) as volume:
            # It may be gone since.
            snapshot = await self._context.store.get_vol(snapshot_id)
            mount_options(dict(options or {}), snapshot.locator.name)
            if volume.spec.ephemeral:
                raise NotSupported(
                    f'volume "{volume.locator.name}" is ephemeral: its snapshots are mounted in it alone, as it goes',
                    hint="look in .fusevol/snapshots/",
                )
            yield volume, snapmounts.believed_snapshot(snapshot)

    async def _mount_again(self, volume: Volume, path: str) -> Volume:
        """Show the mount of a held volume on one more path."""
        from fusevol.mount.attaching import check_mountpoint
        from fusevol.mount.syscalls import MountFlag, mount

        control = self._context.control(volume)
        if control is None:
            raise VolumeDetached(f'volume "{volume.locator.name}" is not mounted any more')

        def bind() -> None:
            root = control.open_root()
            try:
                mount(f"/proc/self/fd/{root}", Path(path), "none", MountFlag.BIND, "")
            finally:
                os.close(root)

        await take_away(path)
        await trio.to_thread.run_sync(check_mountpoint, Path(path))
        # First the record, in which a path without a mount means nothing.
        after = await self._context.change(volume.id, lambda now: _with(now, path))
        try:
            await trio.to_thread.run_sync(bind)
        except (OSError, VolumeBusy) as error:
            await self._context.change(volume.id, lambda now: _without(now, path))
            if isinstance(error, VolumeBusy):
                raise
            if isinstance(error, PermissionError):
                raise NotSupported(
                    f'"{volume.attach_path[0]}" is mounted, and only root can mount it on "{path}" as well'
                ) from error
            raise BackendError(f'mounting on "{path}" failed: {error.strerror}') from error
        return after

    def arguments(
        self, volume: Volume, path: str, options: Mapping[str, str] | None, *, force: bool = False
    ) -> dict[str, object]:
        """What the serving process is to be told. Raises InvalidArgument for an option that is not known."""
        home = str(Path(self._context.home.path).absolute())
        wanted = self._wanted(volume, options)
        return {"home": home, "volume_id": volume.id, "path": path, "options": wanted, "force": force}

    def _wanted(self, volume: Volume, options: Mapping[str, str] | None) -> dict[str, str]:
        """The options of a mount. What is not said is as the volume's spec has it."""
        from fusevol.driver.server import mount_options

        # A snapshot is mounted as it is said: it has its volume's spec, but no control files, and is read-only.
        wanted = {**({} if volume.is_snapshot else volume.spec.mount_options), **(options or {})}
        mount_options(wanted, volume.locator.name)
        return wanted

    async def mounted_at(self, path: str) -> str:
        """The id of the volume mounted on a path, or "" if there is none."""
        path = await resolved(path)
        if not is_ours(mount_at(path)):
            return ""
        for volume in await self._context.store.in_state(VolumeState.ATTACHED, VolumeState.DETACHING):
            if path in volume.attach_path:
                return volume.id
        return ""

    async def control(self, volume: Volume) -> Control:
        """The way to the process that serves a mounted volume. Raises VolumeDetached, VolumeBusy."""
        control = self._context.control(volume)
        if control is None:
            raise VolumeDetached(
                f'volume "{volume.locator.name}" is not mounted', hint="it has these numbers while it is"
            )
        return control

    async def unmount(self, volume_id: str, path: str = "") -> None:
        """Unmount a volume; everything written to it is durable when this returns.

        path: where, if it matters. Where it is mounted on others as well, it stays so. Raises VolumeNotFound,
        VolumeDetached (not mounted), InvalidArgument (not there, but elsewhere), VolumeBusy (in use, or by containers,
        whose own mounts this would leave behind), BackendError (what was written last may not be durable).
        """
        volume = await self._context.store.get_vol(volume_id)
        if volume.is_snapshot:
            await self._unmount_snapshot(volume, path)
            return
        name = volume.locator.name
        async with self._context.hold(volume_id) as volume:
            server = server_of(volume)
            # Those of containers are in a directory of the volume's own.
            others = [place for place in volume.attach_path if os.path.basename(place) != volume_id]
            where = await resolved(path) if path else next(iter(others or volume.attach_path), "")
            if not volume.attached_on or not where:
                raise VolumeDetached(f'volume "{name}" is not mounted')
            if where not in volume.attach_path:
                elsewhere = " and ".join(volume.attach_path)
                raise InvalidArgument(f'volume "{name}" is not mounted on {where}, but on {elsewhere}')
            if not others or where not in others or len(volume.attach_path) == 1:
                refuse_if_used(volume, "unmounted")
            mounted = mount_at(where)
        # Not held from here on: the serving process ends by itself, which may take as long as the last writes do.
        if left := await trio.to_thread.run_sync(lambda: _unmount(mounted, f'volume "{name}"')):
            await self._context.change(
                volume_id, lambda now: _without(now, where, left) if server_of(now) == server else now
            )
            return
        if server is not None:
            await trio.to_thread.run_sync(lambda: _wait(server, name))
        # The server itself writes down that it has ended; where it was killed, `hold` does, with that as the error.
        async with self._context.hold(volume_id) as after:
            if after.error and after.attach_time == volume.attach_time:
                raise BackendError(f'volume "{name}" is unmounted, but not cleanly: {after.error}')

    async def _unmount_snapshot(self, snapshot: Volume, path: str) -> None:
        """Unmount a snapshot that is mounted by itself. path: where, if there are several."""
        parent = await self._context.store.get_vol(snapshot.source.parent)
        name, found = f"{parent.locator.name}@{snapshot.locator.name}", snapmounts.servers(snapshot)
        if not path and len(found) > 1:
            raise VolumeBusy(
                f'snapshot "{name}" is mounted on {len(found)} paths: {", ".join(sorted(found))}',
                hint=f"say which: fusevol umount {min(found)}",
            )
        where = await resolved(path) if path else next(iter(found), "")
        if where not in found:
            if where:
                await take_away(where)
            await self._context.change(snapshot.id, lambda record: snapmounts.unmounted(record, where, record.error))
            raise VolumeDetached(f'snapshot "{name}" is not mounted{f" on {where}" if where else ""}')
        if found[where].life is Life.UNKNOWN:
            snapmounts.refuse_if_mounted(parent.locator.name, snapshot, "unmounted from here")
        server = found[where]
        mounted = mount_at(where)
        if snapmounts.servers(await self._context.store.get_vol(snapshot.id)).get(where) != server:
            raise VolumeBusy(
                f'snapshot "{name}" is being mounted on, or unmounted from, {where}', hint="try again in a moment"
            )
        if left := await trio.to_thread.run_sync(lambda: _unmount(mounted, f'snapshot "{name}"')):
            await self._context.change(snapshot.id, lambda record: snapmounts.moved(record, server, left[0]))
            return
        await trio.to_thread.run_sync(lambda: _wait(server, name))


def absolute(path: str) -> str:
    """A path as records and mountinfo have it, free of symbolic links. Raises InvalidArgument."""
    if not path or "\0" in path:
        raise InvalidArgument(f"{path!r} is no path")
    found = str(resolve(Path(os.path.abspath(path))))
    try:
        found.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{found!r} is not UTF-8, as records are", hint="mount on another path") from None
    return found


async def resolved(path: str) -> str:
    """`absolute`, of a path that may be on a mount which does not answer."""
    return await trio.to_thread.run_sync(absolute, path, abandon_on_cancel=True)


def _with(volume: Volume, path: str) -> Volume:
    before = _without(volume, path)
    return msgspec.structs.replace(before, attach_path=(*before.attach_path, path))


def _without(volume: Volume, path: str, seen: Sequence[str] = ()) -> Volume:
    """seen: where it is mounted besides; what somebody mounted without us counts where nothing else is left."""
    left = tuple(other for other in volume.attach_path if other != path)
    return msgspec.structs.replace(volume, attach_path=left or tuple(seen))


def _unmount(mounted: Mount | None, name: str) -> list[str]:
    """Unmount it, if it is there still; return where else the same is mounted, and stays.

    name: what it is of, with its kind.
    """
    from fusevol.mount.attaching import unmount

    if mounted is None:
        return []
    others = [mount for mount in places(mounted.device) if mount.id != mounted.id]
    try:
        unmount(mounted)
    except VolumeBusy as error:
        where = mounted.mountpoint
        raise VolumeBusy(f"{name} is in use on {where}", hint=f"to see by whom: fuser -vm {where}") from error
    # Only those: once a filesystem is gone, the next one that anybody mounts gets its number.
    return [str(mount.mountpoint) for mount in places(mounted.device) if mount in others]


def _wait(server: Process, name: str) -> None:
    """Wait for a process to end. Blocks."""
    from fusevol.mount.process import readable

    try:
        fd = os.pidfd_open(server.pid)
    except ProcessLookupError:
        return
    try:
        if server.alive and not readable(fd, _PATIENCE):
            raise VolumeBusy(f'volume "{name}" is unmounted, but its last writes are still under way')
    finally:
        os.close(fd)
