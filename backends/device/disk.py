"""The device itself: reading, writing and locking it. Nothing else here touches a descriptor. Every call blocks.

Locks are OFD locks (fcntl(2)) of byte ranges: they belong to an open file, so two instances in one process are two
parties, and they end with whoever holds them, however it ends, once its last write has.
"""

import errno
import fcntl
import mmap
import os
import stat
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fusevol.backends.systemcalls import is_aligned, overwrites_in_place, punch
from fusevol.errors import BackendError, InvalidArgument, VolumeBusy

__all__ = ["BLOCK", "Disk", "TablesBusy"]

#: Everything is in blocks of a volume, and so are offsets and sizes in this package where nothing else is said.
BLOCK = 4096
#: linux/fs.h.
_BLKROGET, _BLKDISCARD = 0x125E, 0x1277
#: struct flock.
_FLOCK = struct.Struct("@hhqqi4x")
#: Beyond the end of any device: the byte that is locked while the tables are used.
_TABLES = 1 << 62
#: Seconds that others may use the tables at a stretch. A change of theirs takes some milliseconds.
_PATIENCE = 60.0
_LARGE_READ = 128 << 10
#: The largest piece that the kernel caches at once.
_PIECE = 2 << 20


class TablesBusy(BackendError):
    """Another process uses the tables, and does not come to an end; it may be stopped."""


class Disk:
    """A block device, or a file in its place.

    Data is written around the page cache (O_DIRECT) where that can be, and read through it; the tables are read and
    written through it, so that all processes of the host see the same, at once.
    """

    def __init__(self, path: str) -> None:
        """Open it, for reading alone where it cannot be written to. Raises OSError, InvalidArgument."""
        self.path = os.path.realpath(path)
        status = os.stat(self.path)
        self._block = stat.S_ISBLK(status.st_mode)
        if not self._block and not stat.S_ISREG(status.st_mode):
            raise InvalidArgument(
                f"{path} is neither a block device nor a file", hint='a directory is for the backend "file"'
            )
        if self._block:
            self.path = _common_name(status.st_rdev)
        #: Whether small writes over blocks that it has are known to take less than others.
        self.overwrites = self._block or overwrites_in_place(Path(self.path))
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self.writable = False
        if not (self._block and _read_only(self.fd)):
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    os.close(self.fd)
                    raise
            else:
                os.close(self.fd)
                self.fd, self.writable = fd, True
        #: For data, and around the page cache where the file system of a file has that.
        self.direct = self._open_direct()
        self._failed: OSError | None = None

    def _open_direct(self) -> int:
        flags = os.O_RDWR if self.writable else os.O_RDONLY
        try:
            return os.open(self.path, flags | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                os.close(self.fd)
                raise
            return os.dup(self.fd)

    def close(self) -> None:
        """Close it, and let go of all that is locked."""
        # Locks are of the other one.
        os.close(self.direct)
        os.close(self.fd)
        self.fd = self.direct = -1

    @property
    def blocks(self) -> int:
        """How many it has now."""
        return os.lseek(self.fd, 0, os.SEEK_END) // BLOCK

    def check_writable(self) -> None:
        """Raise BackendError where it can only be read."""
        if not self.writable:
            raise BackendError(
                f"{self.path} can only be read",
                hint="make it writable (blockdev --setrw); snapshots that are on it can be mounted as it is",
            )

    def check_unused(self) -> None:
        """Raise VolumeBusy where the kernel uses the device: it is mounted, say, or a part of another one."""
        if self._block:
            try:
                os.close(os.open(self.path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise VolumeBusy(f"{self.path} is in use: mounted, or a part of another device") from None

    # -- bytes ------------------------------------------------------------------------------------

    def read(self, size: int, offset: int) -> bytes:
        """Bytes of any range, through the page cache."""
        if size >= _LARGE_READ:
            # The kernel's own read-ahead asks for 128 KiB at a time.
            os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_WILLNEED)
        data = os.pread(self.fd, size, offset)
        while len(data) < size:
            more = os.pread(self.fd, size - len(data), offset + len(data))
            if not more:
                raise OSError(errno.EIO, f"{self.path} ends before byte {offset + size}")
            data += more
        return data

    def read_cached(self, size: int, offset: int) -> bytearray | None:
        """The same where all of it is in the page cache; None elsewhere. Does not wait for the device."""
        buffer = bytearray(size)
        try:
            return buffer if os.preadv(self.fd, [buffer], offset, os.RWF_NOWAIT) == size else None
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
            return None

    def read_stored(self, size: int, offset: int) -> bytes:
        """Bytes of whole blocks as they are on the device, whatever the page cache has."""
        with mmap.mmap(-1, size) as buffer:
            done = 0
            while done < size:
                count = os.preadv(self.direct, [memoryview(buffer)[done:]], offset + done)
                if not count:
                    raise OSError(errno.EIO, f"{self.path} ends before byte {offset + size}")
                done += count
            return buffer[:]

    def forget(self, size: int, offset: int) -> None:
        """Have the kernel forget what it has in its cache there; it may have to keep what others are reading."""
        # It passes by what is cached in larger pieces than are asked for.
        start = offset - offset % _PIECE
        os.posix_fadvise(self.fd, start, -(-(offset + size) // _PIECE) * _PIECE - start, os.POSIX_FADV_DONTNEED)

    def write(self, data: memoryview, offset: int, *, durable: bool = False) -> None:
        """Write whole blocks of data; durable: to stable storage before it returns. Else `sync` does that."""
        if not is_aligned(data, offset):
            buffer = mmap.mmap(-1, len(data))
            buffer[:] = data
            data = memoryview(buffer)
        while data:
            written = os.pwritev(self.direct, [data], offset, os.RWF_DSYNC if durable else 0)
            data, offset = data[written:], offset + written

    def write_table(self, data: bytes, offset: int) -> None:
        """Write to the tables."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        """Make all that was written durable. Once it has failed it fails for good: nobody knows what was lost."""
        if self._failed is None:
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                self._failed = error
        if self._failed is not None:
            raise OSError(self._failed.errno, f"{self._failed.strerror}, when it was to make writes durable")

    def trim(self, address: int, blocks: int) -> bool:
        """What is in blocks is not needed any more; whether the device wants to know such things."""
        if self._block:
            try:
                fcntl.ioctl(self.fd, _BLKDISCARD, struct.pack("QQ", address * BLOCK, blocks * BLOCK))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                    raise
                return False
            return True
        if code := punch(self.fd, address * BLOCK, blocks * BLOCK):
            if code != errno.EOPNOTSUPP:
                raise OSError(code, os.strerror(code))
            return False
        return True

    # -- locks ------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else uses the tables. Raises TablesBusy where somebody does, and does not come to an end."""
        ends, pause = time.monotonic() + _PATIENCE, 1e-4
        kind = fcntl.F_WRLCK if self.writable else fcntl.F_RDLCK
        while not self._set(kind, _TABLES, 1):
            if time.monotonic() > ends:
                raise TablesBusy(
                    f"another process has kept the tables of {self.path} for {_PATIENCE:g} seconds",
                    hint="see who has it open (fuser), and whether it is stopped",
                )
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
        try:
            yield
        finally:
            self._set(fcntl.F_UNLCK, _TABLES, 1)

    def hold(self, address: int, blocks: int) -> tuple[int, int] | None:
        """Keep others from writing to blocks; where somebody else has some of them, return which: (address, blocks)."""
        if self._set(fcntl.F_WRLCK, address * BLOCK, blocks * BLOCK):
            return None
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, address * BLOCK, blocks * BLOCK, 0)
        kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(self.fd, fcntl.F_OFD_GETLK, asked))
        if kind == fcntl.F_UNLCK:
            return address, blocks  # who had it is gone by now; it can be had another time
        return start // BLOCK, -(-length // BLOCK) if length else 1 << 51  # without a length: all there is

    def let_go(self, address: int, blocks: int) -> None:
        """Others may write there again."""
        self._set(fcntl.F_UNLCK, address * BLOCK, blocks * BLOCK)

    def _set(self, kind: int, start: int, length: int) -> bool:
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            return False
        return True


def _common_name(device: int) -> str:
    """The one name of a block device by which all who name it so have the same locks.

    Locks are on what has the name: another node of the same device, in a container say, knows nothing of those here.
    devtmpfs is the same wherever it is mounted. Raises BackendError where it is not there.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in Path(f"/sys/dev/block/{number}/uevent").read_text().splitlines():
        if line.startswith("DEVNAME="):
            path = f"/dev/{line.removeprefix('DEVNAME=')}"
            with suppress(OSError):
                found = os.stat(path)
                if found.st_rdev == device and stat.S_ISBLK(found.st_mode) and _is_devtmpfs(found.st_dev):
                    return path
    raise BackendError(
        f"the block device {number} is not in the /dev that the kernel keeps (devtmpfs)",
        hint="in a container, have the /dev of the host: others who use the device could not be kept out else",
    )


def _is_devtmpfs(device: int) -> bool:
    number = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return any(line.split()[2] == number and " - devtmpfs " in line for line in mounts)


def _read_only(device: int) -> bool:
    """Whether a block device is set to that: it can be opened for writing all the same."""
    return fcntl.ioctl(device, _BLKROGET, bytes(4)) != bytes(4)
