"""The system calls that Python does not have: mount(2), umount2(2), syncfs(2), prctl(2).

Through ctypes, which lets go of the interpreter lock while it waits. All of them may wait for the
filesystem concerned, so on the own mount they are called from threads only.
"""

import ctypes
import enum
import os

__all__ = ["MountFlag", "UnmountFlag", "mark_as_flusher", "mount", "syncfs", "umount2"]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

_PR_SET_IO_FLUSHER = 57


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


def mark_as_flusher() -> None:
    """prctl(PR_SET_IO_FLUSHER): others wait for what this thread, and threads it starts from now on, write.

    The memory they allocate does not wait for dirty pages to be cleaned, and they are not held up for pages that
    others dirtied. Raises OSError, EPERM without CAP_SYS_RESOURCE.
    """
    _check(_libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0), None)


def _check(result: int, target: os.PathLike[str] | None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), None if target is None else os.fspath(target))
