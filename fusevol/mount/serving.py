"""A volume from its backend to its mountpoint, for as long as the mount lasts."""

import dataclasses
import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from fusevol.backends.base import Backend
from fusevol.errors import NotSupported
from fusevol.fs import Filesystem, fetch_metadata, leave_filesystem, load_filesystem, open_snapshot
from fusevol.fs.layout import ROOT
from fusevol.log import Claim, LogOptions, LogVolume, open_volume
from fusevol.mount.control import Control, NoControl
from fusevol.mount.kernel import (
    ended,
    forget_names,
    in_thread,
    invalidate_entry,
    invalidate_inode,
    reachable,
    set_max_background,
    set_read_ahead,
    size_known,
    sync_filesystem,
    unasked,
)
from fusevol.mount.mounttable import Mount, find, places, resolve
from fusevol.mount.nodes import Nodes
from fusevol.mount.operations import VolumeOperations
from fusevol.mount.options import MountOptions
from fusevol.mount.quiesce import Quiesce
from fusevol.mount.requests import Requests
from fusevol.mount.scheduler import Scheduler
from fusevol.mount.served import Served
from fusevol.mount.session import serve
from fusevol.mount.settings import Outside, Settings
from fusevol.mount.steering import Steering
from fusevol.mount.throttle import Throttle

__all__ = ["serve_snapshot", "serve_volume"]

log = logging.getLogger(__name__)

#: Seconds that a restore waits for the kernel to forget the tree before, where that has to be done by name.
_FORGET_SECONDS = 1.0
#: How many requests are served while as many changes wait as may, when a volume is quiesced.
_SERVED_WHILE_QUIESCED = 32


async def serve_volume(
    backend: Backend,
    volume_id: str,
    mountpoint: Path,
    *,
    name: str,
    ready: Callable[[], None],
    size: int = 0,
    control: str = "rw",
    options: MountOptions | None = None,
    log_options: LogOptions | None = None,
    outside: Outside | None = None,
    clock: Callable[[], float] = time.time,
    claim: Claim | None = None,
) -> None:
    """Attach a volume, mount it, and serve it until it is unmounted or this is cancelled; then make all durable.

    size: the quota in bytes, 0 for none. control: "rw", "ro" or "off". ready: called once the mount answers.
    outside: who keeps the volume's record. clock: seconds since 1970, by which snapshots are due. claim: for whom
    the volume is attached.

    Raises as `Outside.settings`, `open_volume`, `load_filesystem` and `session.serve`. When it returns without an
    error, everything that was written is durable.
    """
    outside = outside or Outside()
    settings = await outside.settings()
    async with open_volume(backend, volume_id, options=log_options, claim=claim) as volume:
        filesystem = await load_filesystem(volume)
        if filesystem.size != size:
            filesystem.resize(size)
        options = reading_ahead(options or MountOptions(fsname=name), settings.readahead)
        options = options.for_remote() if volume.traits.remote else options
        await _serve(volume, filesystem, mountpoint, name, ready, control, options, outside, settings, clock)


def reading_ahead(options: MountOptions, wanted: bool) -> MountOptions:
    """Mount options with or without reading ahead."""
    return options if wanted else dataclasses.replace(options, read_ahead_kb=0)


async def serve_snapshot(
    backend: Backend,
    volume_id: str,
    snapshot: str,
    mountpoint: Path,
    *,
    name: str,
    ready: Callable[[], None],
    options: MountOptions,
    settings: Settings,
) -> None:
    """Mount one snapshot of a volume, read-only, and serve it until it is unmounted or this is cancelled.

    The volume is not attached: it may be mounted elsewhere, and written. Whoever calls this has to keep the snapshot
    from being deleted. name: how the mount calls it. settings: it goes by those on reading.

    Raises SnapshotNotFound, and as `open_volume` for reading, `open_snapshot` and `session.serve`.
    """
    async with open_volume(backend, volume_id, read_only=True) as volume, volume.view(snapshot) as view:
        tree = await open_snapshot(view)
        try:
            # Nothing changes here, so there is nothing to hold back, either.
            quiesce = Quiesce(lambda: False, _nothing, 1)
            operations = VolumeOperations(Nodes(tree), NoControl(), Requests(), quiesce, log.error)
            operations.obey(Throttle(settings.io_throttle))
            options = reading_ahead(dataclasses.replace(options, read_only=True), settings.readahead)
            options = options.for_remote() if volume.traits.remote else options
            async with trio.open_nursery() as nursery:
                if volume.traits.remote:
                    nursery.start_soon(fetch_metadata, view)
                await serve(operations, mountpoint, options, ready=ready)
                nursery.cancel_scope.cancel()
        finally:
            tree.close()


async def _nothing(_: bool) -> None:
    """Nothing to be done."""


async def _serve(
    volume: LogVolume,
    filesystem: Filesystem,
    mountpoint: Path,
    name: str,
    ready: Callable[[], None],
    control: str,
    options: MountOptions,
    outside: Outside,
    settings: Settings,
    clock: Callable[[], float],
) -> None:
    device: int | None = None
    mounted: Mount | None = None

    def connected(fd: int) -> None:
        nonlocal device, mounted
        device, mounted = fd, find(resolve(mountpoint))
        calm = unasked(fd)
        volume.hold_up_while(lambda: requests.alone and calm())

    def gone() -> bool:
        # By its number: a mount that was moved, or is on a second path as well, is still there.
        there = mounted is None or bool(places(mounted.device))
        return not there or (device is not None and ended(device))

    async def widen(wide: bool) -> None:
        if mounted is not None:
            where, count = mounted, options.max_tasks if wide else options.max_background
            await in_thread(lambda: set_max_background(where, count))

    async def sync_kernel() -> None:
        # It may have been mounted on a second path since, and unmounted from the first; or something may be on top.
        device = mounted.device if mounted else None
        where = reachable(device) if device else mountpoint
        try:
            await sync_filesystem(where, device)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # Somebody wrote to a file of a tree that a restore replaced, and was told; that is told here once more.
            await sync_filesystem(where, device)

    async def size_of(node: int) -> int:
        if mounted is None:
            raise OSError(errno.ESTALE, "not mounted")
        return await size_known(mounted, node)

    async def forget_by_name(names: set[bytes], done: trio.Event) -> None:
        # Below the root nothing is reachable any more once its names are forgotten: their ids are stale.
        for entry in names:
            with suppress(OSError):
                await invalidate_entry(ROOT, entry)
        done.set()

    async def forget_tree(names: set[bytes]) -> None:
        if device is None or not forget_names(device):
            # Not waited for any longer: it may be waiting for the very request that is being answered, a setxattr
            # on the root, which holds the lock of that directory in the kernel.
            nursery.start_soon(forget_by_name, names, done := trio.Event())
            with trio.move_on_after(_FORGET_SECONDS):
                await done.wait()
        with suppress(OSError):
            await invalidate_inode(ROOT)

    async def read_ahead(wanted: bool) -> None:
        kib = reading_ahead(MountOptions(), wanted).read_ahead_kb
        if mounted is None or not set_read_ahead(mounted, kib):
            raise NotSupported(
                f'volume "{name}": what is read ahead can only be changed by root while it is mounted',
                hint="unmount it first",
            )

    nodes, requests = Nodes(filesystem), Requests()
    quiesce = Quiesce(gone, widen, max(1, options.max_tasks - _SERVED_WHILE_QUIESCED))
    served = Served(volume, nodes, requests, quiesce, name, sync_kernel, forget_tree, outside)
    throttle = Throttle(settings.io_throttle)
    scheduler = Scheduler(served, partial(served.troubles.note, "schedule"), settings, clock)
    files = Control(
        served, Steering(outside, settings, throttle, scheduler, read_ahead), control, os.geteuid(), os.getegid()
    )
    operations = VolumeOperations(nodes, files, requests, quiesce, log.error)
    operations.obey(throttle)
    operations.size_of = size_of  # type: ignore[method-assign]

    def answers() -> None:
        # Not before, since it needs the mount to answer.
        nursery.start_soon(scheduler.run)
        ready()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.commit_forever)
            # Only a cache below is in need of it; elsewhere it would be read ahead for nothing.
            if volume.traits.remote:
                nursery.start_soon(fetch_metadata, volume)
            # When this is cancelled, what waits goes on first, or unmounting would wait for it.
            nursery.start_soon(quiesce.run)
            nursery.start_soon(throttle.run)
            try:
                await serve(operations, mountpoint, options, ready=answers, connected=connected)
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await served.close()
            await leave_filesystem(nodes.filesystem)
