"""The process that serves one mounted volume: what `spawn` runs for `fusevol mount`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import trio

from fusevol.api import IoThrottle, Volume
from fusevol.driver import snapmounts
from fusevol.driver.attachment import attached, believed, detached, server_of
from fusevol.driver.claims import claim
from fusevol.driver.context import Context
from fusevol.driver.mounts import detach_dead
from fusevol.driver.snapshots import Snapshots
from fusevol.errors import FusevolError, NotSupported, VolumeBusy, VolumeNotFound
from fusevol.home import Home
from fusevol.log import Snapshot
from fusevol.mount.options import MountOptions
from fusevol.mount.process import Arguments
from fusevol.mount.serving import serve_snapshot, serve_volume
from fusevol.mount.settings import Outside, Settings
from fusevol.store.processes import Process

__all__ = ["mount_options", "serve_mount", "serve_snapshot_mount"]

log = logging.getLogger(__name__)

_CONTROL = ("rw", "ro", "off")


def mount_options(options: Mapping[str, str], name: str) -> tuple[MountOptions, str]:
    """Mount options, and the mode of the control directory, from what `-o` said; a flag has the value "".

    Raises InvalidArgument for an option that is not known.
    """
    control, words = "rw", []
    for key, value in options.items():
        if key == "control" and value in _CONTROL:
            control = value
        else:
            words.append(f"{key}={value}" if value else key)
    return MountOptions(fsname=name).with_words(words, also="control=" + "|".join(_CONTROL)), control


class _Record(Outside):
    """The record of a volume that this process, `server`, serves."""

    def __init__(self, context: Context, volume_id: str, server: Process) -> None:
        self._context = context
        self._id = volume_id
        self._server = server

    async def settings(self) -> Settings:
        return _settings(await self._context.store.get_vol(self._id))

    async def check_unused(self, snapshot: str) -> None:
        found = await self._context.store.named(snapshot, parent=self._id)
        if found is not None:
            volume = await self._context.store.get_vol(self._id)
            snapmounts.refuse_if_mounted(volume.locator.name, found, "deleted")

    async def snapshots_changed(self, snapshots: Sequence[Snapshot]) -> None:
        await Snapshots(self._context).record(await self._context.store.get_vol(self._id), snapshots)

    async def note(self, failure: str) -> None:
        def change(volume: Volume) -> Volume:
            # Not where the lease was broken meanwhile.
            return msgspec.structs.replace(volume, error=failure) if server_of(volume) == self._server else volume

        await self._context.change(self._id, change)


def _settings(volume: Volume) -> Settings:
    """What a mount of a volume or snapshot is to go by."""
    spec = volume.spec
    return Settings(
        snapshot_interval=spec.snapshot_interval, snapshot_schedule=spec.snapshot_schedule,
        io_throttle=spec.io_throttle or IoThrottle(), readahead=spec.readahead, created=volume.ctime.timestamp(),
    )  # fmt: skip


async def serve_mount(arguments: Arguments, ready: Callable[[], None]) -> None:
    """Mount a volume and serve it until it is unmounted or ended by a signal; an entry for `mount.process`.

    arguments: home, volume_id, path, options, force (break the claim of a process that cannot be seen; may be left
    out). Writes down in the volume's record who serves it, and how that ended.
    Whoever starts this holds the volume's lock until it is ready.
    """
    volume_id = str(arguments["volume_id"])
    context = Context(Home(arguments["home"]), command=f"serving {arguments['path']}", cache=volume_id)
    path, options = str(arguments["path"]), dict(arguments["options"])
    failure = ""
    try:
        record = await context.store.get_vol(volume_id)
        name = record.locator.name
        if record.spec.format not in (record.format, type(record.format).NONE):
            raise NotSupported(f'volume "{name}" is to hold {record.spec.format}, which this version cannot mount')
        mounting, control = mount_options(options, name)
        server = Process.current(command=f"serving {path}")

        def take(volume: Volume) -> Volume:
            context.refuse_if_mounted(believed(volume), "mounted twice")
            return attached(volume, path, server, options)

        await context.change(volume_id, take)
        try:
            if record.spec.ephemeral:
                await context.empty(record, force=bool(arguments.get("force")))
                record = await context.store.get_vol(volume_id)
            await serve_volume(
                context.backend_of(record), volume_id, Path(path), name=name, ready=ready, size=record.spec.size,
                control=control, options=mounting, outside=_Record(context, volume_id, server),
                claim=claim(record, server, context.home.path, force=bool(arguments.get("force"))),
            )  # fmt: skip
        except FusevolError as error:
            failure = str(error)
            raise
        finally:
            with trio.CancelScope(shield=True):
                await _write_down(context, volume_id, server, failure)
    finally:
        await context.aclose()


async def serve_snapshot_mount(arguments: Arguments, ready: Callable[[], None]) -> None:
    """Mount a snapshot by itself and serve it until it is unmounted or ended by a signal; an entry as `serve_mount`.

    arguments: home, volume_id (of the snapshot), path, options. Whoever starts this holds the lock of the volume.
    """
    context = Context(Home(arguments["home"]), command=f"serving {arguments['path']}")
    snapshot_id, path, options = str(arguments["volume_id"]), str(arguments["path"]), dict(arguments["options"])
    failure = ""
    try:
        record = await context.store.get_vol(snapshot_id)
        volume = await context.store.get_vol(record.source.parent)
        name = f"{volume.locator.name}@{record.locator.name}"
        mounting, _ = mount_options(options, name)
        server = Process.current(command=f"serving {path}")

        def take(snapshot: Volume) -> Volume:
            if other := snapmounts.servers(snapshot).get(path):
                raise VolumeBusy(f'snapshot "{name}" is mounted on {path} by {other} already')
            return snapmounts.mounted(snapshot, path, server)

        # Written down before the snapshot is looked for, so that whoever deletes it after that will see it.
        await context.change(snapshot_id, take)
        try:
            await serve_snapshot(
                context.backend_of(record), volume.id, record.locator.name, Path(path), name=name, ready=ready,
                options=mounting, settings=_settings(volume),
            )  # fmt: skip
        except FusevolError as error:
            failure = str(error)
            raise
        finally:
            with trio.CancelScope(shield=True), suppress(VolumeNotFound):
                await context.change(snapshot_id, lambda snapshot: snapmounts.ended(snapshot, server, failure))
    finally:
        await context.aclose()


async def _write_down(context: Context, volume_id: str, server: Process, failure: str) -> None:
    """Say in the record that nobody serves the volume any more, and if so that the end was not clean.

    Nothing is said where the lease was broken meanwhile: the record is another process's now.
    """

    def change(volume: Volume) -> Volume:
        return msgspec.structs.replace(detached(volume), error=failure) if server_of(volume) == server else volume

    with suppress(VolumeNotFound):
        record = await context.store.get_vol(volume_id)
        if record.spec.ephemeral and server_of(record) == server:
            await context.empty(record)
        for path in record.attach_path if failure and server_of(record) == server else ():
            # After an abort, all of them are still there.
            await trio.to_thread.run_sync(detach_dead, path)
        await context.change(volume_id, change)
