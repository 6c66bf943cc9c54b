"""A volume from its backend to its mountpoint, for as long as the mount lasts."""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from fusevol.backends.base import Backend
from fusevol.errors import NotSupported
from fusevol.fs import Filesystem, load_filesystem
from fusevol.fs.layout import ROOT
from fusevol.log import LogOptions, LogVolume, open_volume
from fusevol.mount.control import Control
from fusevol.mount.kernel import forget_names, invalidate_entry, invalidate_inode, sync_filesystem
from fusevol.mount.mounttable import Mount, find, places, resolve
from fusevol.mount.nodes import Nodes
from fusevol.mount.operations import VolumeOperations
from fusevol.mount.options import MountOptions
from fusevol.mount.requests import Requests
from fusevol.mount.served import Served
from fusevol.mount.session import serve

__all__ = ["serve_volume"]

log = logging.getLogger(__name__)

#: Seconds that a restore waits for the kernel to forget the tree before, where that has to be done by name.
_FORGET_SECONDS = 1.0


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
) -> None:
    """Attach a volume, mount it, and serve it until it is unmounted or this is cancelled; then make all durable.

    size: the quota in bytes, 0 for none. control: "rw", "ro" or "off". ready: called once the mount answers.

    Raises as `open_volume`, `load_filesystem` and `session.serve`. When it returns without an error, everything that
    was written is durable.
    """
    try:
        # Metadata are read this way: a store that cannot must not get a filesystem that it could not mount again.
        backend.read_blocking(volume_id, 0, 0)
    except NotSupported as error:
        raise NotSupported(
            f'volume "{name}" cannot be mounted: {error}', hint="only pools on a local file system can be, so far"
        ) from error
    async with open_volume(backend, volume_id, options=log_options) as volume:
        filesystem = await load_filesystem(volume)
        if filesystem.size != size:
            filesystem.resize(size)
        await _serve(volume, filesystem, mountpoint, name, ready, control, options or MountOptions(fsname=name))


async def _serve(
    volume: LogVolume,
    filesystem: Filesystem,
    mountpoint: Path,
    name: str,
    ready: Callable[[], None],
    control: str,
    options: MountOptions,
) -> None:
    device: int | None = None
    mounted: Mount | None = None

    def connected(fd: int) -> None:
        nonlocal device, mounted
        device, mounted = fd, find(resolve(mountpoint))

    async def sync_kernel() -> None:
        # It may have been mounted on a second path since, and unmounted from the first.
        seen = places(mounted.device) if mounted else []
        where = seen[0].mountpoint if seen else mountpoint
        try:
            await sync_filesystem(where)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # Somebody wrote to a file of a tree that a restore replaced, and was told; that is told here once more.
            await sync_filesystem(where)

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

    nodes, requests = Nodes(filesystem), Requests()
    served = Served(volume, nodes, requests, name, sync_kernel, forget_tree)
    operations = VolumeOperations(nodes, Control(served, control, os.geteuid(), os.getegid()), requests, log.error)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.commit_forever)
            try:
                await serve(operations, mountpoint, options, ready=ready, connected=connected)
            finally:
                nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await served.close()
            try:
                await nodes.filesystem.sync()
            finally:
                nodes.filesystem.close()
