"""The system calls that Python does not have: mount(2), umount2(2), syncfs(2).

Through ctypes, which lets go of the interpreter lock while it waits. All of them may wait for the
filesystem concerned, so on the own mount they are called from threads only.
"""

import ctypes
import enum
import os

__all__ = ["MountFlag", "UnmountFlag", "mount", "syncfs", "umount2"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syncfs.argtypes = [ctypes.c_int]


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


def syncfs(fd: int) -> None:
    """syncfs(2): returns when everything written to the filesystem of `fd` is on stable storage; raises OSError."""
    _check(_libc.syncfs(fd), None)


def _check(result: int, target: os.PathLike[str] | None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if target is None else os.fspath(target))
