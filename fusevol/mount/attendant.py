"""System calls that wait for a server of a mount, made for it: a program of its own, which `beside` starts.

Reads lines of JSON, [name, path in hexadecimal, argument ...], and answers each with a line: the errno, 0 for none, and
a number. It ends with its input, which ends with the server. It has the standard library only, and starts in a tenth of
the time that the rest takes.
"""

import ctypes
import errno
import json
import os
import signal
import struct
import sys
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
#: Of linux/exportfs.h: FUSE makes its handles of the two halves of a node id and the generation.
_FILEID_INO64_GEN = 0x81
#: Directories that are held open, by their paths.
_held: dict[bytes, int] = {}


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _opened(path: bytes, device: int) -> int:
    """Open a directory. Raises OSError, ESTALE where it is on another device, which 0 stands for any of."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if device not in (0, os.fstat(fd).st_dev):
        os.close(fd)
        raise OSError(errno.ESTALE, "something else is mounted there")
    return fd


def hold(path: bytes, device: int) -> int:
    """Keep a directory open until `sync_held`."""
    _held[path] = _opened(path, device)
    return 0


def sync(path: bytes, device: int) -> int:
    """syncfs(2) on the filesystem of a directory."""
    fd = _opened(path, device)
    try:
        return _check(_libc.syncfs(fd))
    finally:
        os.close(fd)


def sync_held(path: bytes) -> int:
    """syncfs(2) on that of a directory that is held, which it is no longer. Raises OSError, ESTALE if it is not."""
    if path not in _held:
        raise OSError(errno.ESTALE, "it is not held")
    fd = _held.pop(path)
    try:
        return _check(_libc.syncfs(fd))
    finally:
        os.close(fd)


def umount(path: bytes, flags: int) -> int:
    """umount2(2)."""
    return _check(_libc.umount2(path, flags))


def size(path: bytes, device: int, node: int) -> int:
    """How long a file of the FUSE mount on `path` is, by its node id: open_by_handle_at(2), which is for root.

    The kernel has to know the node, and its generation has to be 0.
    """
    root = _opened(path, device)
    try:
        handle = struct.pack("=IiIII", 12, _FILEID_INO64_GEN, node >> 32, node & 0xFFFFFFFF, 0)
        fd = _check(_libc.open_by_handle_at(root, handle, os.O_PATH | os.O_CLOEXEC))
    finally:
        os.close(root)
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


CALLS: dict[str, Callable[..., int]] = {
    "hold": hold, "sync": sync, "sync_held": sync_held, "umount": umount, "size": size
}  # fmt: skip


def main() -> None:
    """Do as told until there is nobody any more."""
    # Who ends the server in this way, with all that belongs to it, has it unmount, which takes this process.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for line in sys.stdin:
        name, path, *arguments = json.loads(line)
        code, result = 0, 0
        try:
            result = CALLS[name](bytes.fromhex(path), *arguments)
        except OSError as error:
            code = error.errno or errno.EIO
        print(code, result, flush=True)


if __name__ == "__main__":
    main()
