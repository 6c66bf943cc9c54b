"""What a process asks of the kernel about a mount, its own or another's, without blocking its loop.

All of these may wait for requests that the mount's own process has to answer, so they run in threads, and
in threads of their own (`in_thread`): if they used trio's default limit, enough of them could keep the handlers
from getting the very threads they wait for.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyfuse3
import trio

from fusevol.errors import InvalidArgument, NotSupported
from fusevol.mount import syscalls
from fusevol.mount.attaching import FSTYPE
from fusevol.mount.beside import Beside
from fusevol.mount.mounttable import Mount, find, mounts, resolve

__all__ = [
    "abort",
    "beside",
    "ended",
    "forget_names",
    "in_thread",
    "invalidate_entry",
    "invalidate_inode",
    "reachable",
    "set_dirty_share",
    "set_max_background",
    "set_read_ahead",
    "size_known",
    "sync_filesystem",
    "unasked",
]

log = logging.getLogger(__name__)

T = TypeVar("T")

_threads = trio.CapacityLimiter(64)
#: Makes the calls that wait for this very process.
beside = Beside()

#: struct fuse_out_header: length, code of the notification, 0.
_NOTIFICATION = struct.Struct("<IiQ")
_INC_EPOCH = 8

#: How many mounts of ours are promised a share of the machine's dirty pages.
_FEW_MOUNTS = 4


async def in_thread(function: Callable[[], T], *, abandon_on_cancel: bool = False) -> T:
    """Run what may wait for the own mount, in a thread that no handler competes for."""
    return await trio.to_thread.run_sync(function, abandon_on_cancel=abandon_on_cancel, limiter=_threads)


async def sync_filesystem(path: Path, device: tuple[int, int] | None = None) -> None:
    """syncfs(2) on the filesystem of the directory `path`: its dirty pages are written; raises OSError.

    device: what it has to be, or ESTALE is raised.

    On the own mount this returns when all WRITE requests of earlier write(2) calls have been answered. (FUSE
    sends no SYNCFS request to an ordinary server; making that durable is up to the caller.)
    """

    await in_thread(lambda: beside.sync(path, os.makedev(*device) if device else 0))


async def size_known(mounted: Mount, node: int) -> int:
    """How many bytes the kernel takes a file to be long. It knows better than the server while it holds writes back.

    Takes no lock of the file, and has nothing written. Raises OSError, EPERM for all but root, ESTALE where the mount
    or the file cannot be reached.
    """

    def look() -> int:
        return beside.size(reachable(mounted.device), os.makedev(*mounted.device), node)

    return await in_thread(look)


def reachable(device: tuple[int, int]) -> Path:
    """A path where the filesystem with this number is mounted, with nothing on top of it. Raises OSError(ESTALE)."""
    on_top = {place.mountpoint: place.device for place in mounts()}  # of several the last one
    for path, number in on_top.items():
        if number == device:
            return path
    raise OSError(errno.ESTALE, "the mount is nowhere to be found")


async def invalidate_inode(inode: int, *, attributes_only: bool = False) -> None:
    """Make the kernel forget attributes and, unless told otherwise, cached pages of `inode`.

    Dirty pages are written first, so handlers must be able to run: hold no lock that they need.
    """

    def invalidate() -> None:
        with _unknown_to_kernel():
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode), attr_only=attributes_only)

    await in_thread(invalidate)


async def invalidate_entry(parent: int, name: bytes, *, deleted: int = 0) -> None:
    """Make the kernel forget the name `name` in directory `parent`; with `deleted`, also that this inode had it.

    Waits for requests under way in that directory: hold no lock that they need.
    """

    def invalidate() -> None:
        with _unknown_to_kernel():
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name), deleted=pyfuse3.InodeT(deleted))

    await in_thread(invalidate)


def forget_names(device: int) -> bool:
    """Make the kernel look up every name anew that it knows or knows not to be there, of the whole mount.

    device: the open /dev/fuse. Waits for nobody. False where the kernel has no such notification (before Linux 6.16).
    """
    try:
        os.write(device, _NOTIFICATION.pack(_NOTIFICATION.size, _INC_EPOCH, 0))
    except OSError as error:
        log.debug("the kernel does not forget all names at once: %s", error.strerror)
        return False
    return True


@contextlib.contextmanager
def _unknown_to_kernel() -> Iterator[None]:
    """What the kernel does not know (ENOENT) it need not forget; nor, once it is unmounted (ENODEV), anything."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENOTCONN):
            raise


def set_read_ahead(mounted: Mount, kib: int) -> bool:
    """Let the kernel read ahead up to `kib` KiB in files opened from now on; False where that is not allowed."""
    return _set(mounted, "read_ahead_kb", kib)


def set_dirty_share(mounted: Mount, percent: int) -> bool:
    """Let the mount have up to this share of what the machine may keep unwritten; False where that is not allowed.

    A FUSE mount has 1 % of it, a hard limit, since a server that needs memory to clean memory might wait for itself.
    That is little enough to have random writes of 4 KiB come one by one. A little more, and they come joined and in
    order; much more, and a long sequential write is not begun to be written out before it is over.
    """
    if not _set(mounted, "max_ratio", percent):
        return False
    # Below that it goes by who wrote much lately, and a new mount has not; so it is promised its share. What is
    # promised is kept from the machine's disks when many pages are dirty: not where volumes are many.
    if sum(mount.fstype == FSTYPE for mount in mounts()) <= _FEW_MOUNTS:
        _set(mounted, "min_ratio", percent)
    return True


def _set(mounted: Mount, setting: str, value: int) -> bool:
    """Write a setting of the mount's "backing device" in sysfs."""
    major, minor = mounted.device
    try:
        Path(f"/sys/class/bdi/{major}:{minor}/{setting}").write_text(f"{value}\n")
    except OSError as error:
        log.debug("%s of %s stays as it is: %s", setting, mounted.mountpoint, error.strerror)
        return False
    return True


def abort(mountpoint: Path) -> None:
    """Cut the connection of a mount of ours, for one whose process hangs: everything waiting in it gets an error.

    The mount stays in the tree, dead, until it is unmounted. What had not been flushed is lost. Needs root;
    raises InvalidArgument where no volume is mounted, NotSupported where the kernel gives no way (fusectl).
    """
    mounted = find(resolve(mountpoint))
    if mounted is None or mounted.fstype != FSTYPE:
        raise InvalidArgument(f'no volume is mounted on "{mountpoint}"')
    with _fusectl() as control:
        try:
            Path(control, str(mounted.device[1]), "abort").write_bytes(b"1")
        except FileNotFoundError:
            return  # The connection has ended already.
        except PermissionError as error:
            raise NotSupported(f'aborting "{mountpoint}" is not allowed', hint="try as root") from error


def ended(device: int) -> bool:
    """Whether the connection of an open /dev/fuse has ended: its mount is gone, or was aborted."""
    poller = select.poll()
    poller.register(device, 0)
    return bool(poller.poll(0))


def unasked(device: int) -> Callable[[], bool]:
    """A question that costs little: whether no request waits to be read from an open /dev/fuse."""
    poller = select.poll()
    poller.register(device, select.POLLIN)
    return lambda: not poller.poll(0)


def set_max_background(mounted: Mount, count: int) -> bool:
    """Set how many requests of its own (read-ahead, write-back) the kernel has under way at once in a mount.

    False where that is not allowed, or the mount has gone. Blocks, but not for the mount.
    """
    try:
        with _fusectl() as control:
            Path(control, str(mounted.device[1]), "max_background").write_text(f"{count}\n")
    except (OSError, NotSupported) as error:
        log.debug("the requests that the kernel has under way stay as they are: %s", error)
        return False
    return True


@contextlib.contextmanager
def _fusectl() -> Iterator[Path]:
    """Where fusectl is mounted; in containers and small systems it often is not, then for a moment here."""
    there = next((mount.mountpoint for mount in mounts() if mount.fstype == "fusectl"), None)
    if there is not None:
        yield there
        return
    with tempfile.TemporaryDirectory(prefix="fusectl-") as name:
        directory = Path(name)
        try:
            syscalls.mount("fusectl", directory, "fusectl", syscalls.MountFlag(0), "")
        except OSError as error:
            raise NotSupported(f"fusectl cannot be mounted: {error.strerror}", hint="try as root") from error
        try:
            yield directory
        finally:
            syscalls.umount2(directory, syscalls.UnmountFlag.DETACH)
