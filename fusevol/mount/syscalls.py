"""The system calls that Python does not have, mount(2) and umount2(2), and mallopt(3).

Through ctypes, which lets go of the interpreter lock while it waits. All of them may wait for the
filesystem concerned: where that is the own mount, `beside` has them made by another process.
"""

import ctypes
import enum
import os

__all__ = ["MountFlag", "UnmountFlag", "keep_freed_memory", "mount", "umount2"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
#: Of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class MountFlag(enum.IntFlag):
    """Flags of mount(2); values from linux/mount.h."""

    RDONLY = 1 << 0
    NOSUID = 1 << 1
    NODEV = 1 << 2
    NOEXEC = 1 << 3
    NOATIME = 1 << 10
    BIND = 1 << 12


class UnmountFlag(enum.IntFlag):
    """Flags of umount2(2)."""

    NONE = 0
    DETACH = 2
    NOFOLLOW = 8


def mount(source: str, target: os.PathLike[str], fstype: str, flags: MountFlag, data: str) -> None:
    """mount(2); raises OSError."""
    result = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), int(flags), os.fsencode(data))
    _check(result, target)


def umount2(target: os.PathLike[str], flags: UnmountFlag = UnmountFlag.NONE) -> None:
    """umount2(2); raises OSError, EBUSY where somebody uses the mount."""
    _check(_libc.umount2(os.fsencode(target), int(flags)), target)


def keep_freed_memory(largest: int, most: int) -> bool:
    """Have the allocator use again what was freed, in pieces of up to `largest` bytes, and keep `most` of it.

    Otherwise it gets the buffers of large requests from the kernel and gives them back, one by one, and to have their
    pages made takes longer than to fill them. False where the C library has no mallopt(3), or will not have it.
    """
    mallopt = getattr(_libc, "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, largest) and mallopt(_M_TRIM_THRESHOLD, most))


def _check(result: int, target: os.PathLike[str] | None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if target is None else os.fspath(target))
