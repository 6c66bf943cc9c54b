"""What the kernel has mounted: /proc/self/mountinfo, read as proc(5) describes it."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

__all__ = ["FS_TYPE", "Mount", "detach_dead", "is_dead", "mount_at", "our_mounts"]

#: The type under which volumes are mounted.
FS_TYPE = "fuse.fusevol"

_MOUNTINFO = Path("/proc/self/mountinfo")
_MNT_DETACH = 2
_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One mount: where, of which device number, of which type, and what it calls its source."""

    path: str
    device: str
    type: str
    source: str


def all_mounts() -> list[Mount]:
    """Every mount in this process's namespace; one on top of another comes after it."""
    found = []
    for line in _MOUNTINFO.read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields, rest = before.split(b" "), after.split(b" ")
        found.append(Mount(_text(fields[4]), _text(fields[2]), _text(rest[0]), _text(rest[1])))
    return found


def _text(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def our_mounts() -> list[Mount]:
    """The mounts of volumes."""
    return [mount for mount in all_mounts() if mount.type == FS_TYPE]


def mount_at(path: str) -> Mount | None:
    """What is mounted on a path, topmost; None where nothing is. Does not touch the path."""
    wanted = os.path.normpath(path)
    return next((mount for mount in reversed(all_mounts()) if mount.path == wanted), None)


def is_dead(mount: Mount) -> bool:
    """Whether the process that served a mount is gone. Waits for as long as the mount takes to answer."""
    try:
        os.statvfs(mount.path)
    except ConnectionError:
        return True
    except OSError as error:
        return error.errno == 107  # ENOTCONN, which Python has no class for
    return False


def detach_dead(path: str) -> bool:
    """Take away a mount of ours that nobody serves any more; return whether that was done."""
    mount = mount_at(path)
    if mount is None or mount.type != FS_TYPE or not is_dead(mount):
        return False
    if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(path), _MNT_DETACH) == 0:
        return True
    helper = shutil.which("fusermount3")
    if helper is None:
        return False
    return subprocess.run([helper, "-u", "-z", "--", path], capture_output=True, check=False).returncode == 0
