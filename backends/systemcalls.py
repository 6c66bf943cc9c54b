"""What the file backend asks of the operating system, where Python has no words for it or ours are better."""

import ctypes
import errno
import os
from pathlib import Path

from fusevol.errors import BackendError, NoSpace, VolumeNotFound

__all__ = ["ALIGNMENT", "fsync_directory", "is_aligned", "overwrites_in_place", "punch", "translate"]

#: What O_DIRECT asks of addresses, offsets and sizes.
ALIGNMENT = 4096
#: f_type of statfs(2).
_OVERWRITING = (0xEF53, 0x58465342)
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def translate(error: OSError, what: str) -> BackendError | VolumeNotFound:
    """The fusevol error for an operating-system error; `what` says what could not be done."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{what}: {error.strerror}", hint="free space on the file system, then try again")
    hint = "what is there can be read: fusevol mount VOL@SNAP" if error.errno == errno.EROFS else None
    return BackendError(f"{what}: {error.strerror or error}", hint=hint)


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable. Blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def overwrites_in_place(path: Path) -> bool:
    """Whether a file system is known to, and to make an asynchronous write durable when asked to: ext4, XFS.

    FUSE forgets to sync what it was given asynchronously; btrfs and its like write to a new place.
    """
    buffer = ctypes.create_string_buffer(256)
    return not _libc.statfs(os.fsencode(path), buffer) and ctypes.c_long.from_buffer(buffer).value in _OVERWRITING


def punch(fd: int, offset: int, length: int) -> int:
    """Make a hole; return the errno it failed with, or 0."""
    return ctypes.get_errno() if _libc.fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) else 0


def is_aligned(data: memoryview, offset: int) -> bool:
    """Whether memory can be written to an offset with O_DIRECT."""
    return not (offset | len(data) | _address(data)) % ALIGNMENT


def _address(data: memoryview) -> int:
    """Where the bytes are in memory; 1, which is not aligned, for memory that must not be written to."""
    if data.readonly:
        return 1
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
