"""Mounts of volumes, as the kernel has them."""

import ctypes
import errno
import os
import shutil
import subprocess
from pathlib import Path

import trio

from fusevol.mount.mounttable import Mount, find

__all__ = ["FS_TYPE", "Mount", "detach_dead", "is_dead", "is_ours", "mount_at", "take_away"]

#: The type under which volumes are mounted.
FS_TYPE = "fuse.fusevol"

_MNT_DETACH = 2
#: Seconds after which a mount that has said nothing counts as served.
_PATIENCE = 2.0


def is_ours(mount: Mount | None) -> bool:
    """Whether that is the mount of a volume."""
    return mount is not None and mount.fstype == FS_TYPE


def mount_at(path: str) -> Mount | None:
    """What is mounted on a path, as records have it; None where nothing is. Does not touch the path."""
    return find(Path(os.path.normpath(path)))


def is_dead(mount: Mount) -> bool:
    """Whether the process that served a mount is gone. Waits for as long as the mount takes to answer."""
    try:
        os.statvfs(mount.mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach_dead(path: str) -> bool:
    """Take away a mount of ours that nobody serves any more; return whether that was done."""
    mount = mount_at(path)
    if mount is None or not is_ours(mount) or not is_dead(mount):
        return False
    if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(path), _MNT_DETACH) == 0:
        return True
    helper = shutil.which("fusermount3")
    if helper is None:
        return False
    return subprocess.run([helper, "-u", "-z", "--", path], capture_output=True, check=False).returncode == 0


async def take_away(path: str) -> bool:
    """`detach_dead`, which does not wait for long: a dead mount says so at once, any other may not answer at all."""
    with trio.move_on_after(_PATIENCE):
        return await trio.to_thread.run_sync(detach_dead, path, abandon_on_cancel=True)
    return False
