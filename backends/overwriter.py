"""Writes without a thread: to hand a small write to one, and to hear of it, takes about as long as the disk takes.

The kernel carries them out by itself (io_submit(2)): it does so for direct I/O to blocks that a file has already; for
others io_submit(2) may wait for the disk. To hear of those takes half as long as the disk still. So where nobody else
would have to wait, and the disk is known to be quick, the loop is held up for as long as the write takes.
"""

import ctypes
import errno
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import trio

__all__ = ["Immediate", "Overwrite", "Overwriter", "Overwritten"]

#: Numbers of io_setup, io_destroy, io_getevents, io_submit: the C library has no functions for them.
_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}
_PWRITE = 1
_NOTIFY = 1
_MOST = 8
#: So many times in a row submitting may take so long, in seconds: it does where the kernel carries out the write
#: meanwhile. (On a busy machine it does now and then, like anything else.)
_DELAYS = 20
_DELAY = 5e-3
#: For so long, in seconds, the loop may be held up. A write that takes ten times as long has to be made up for by ten
#: that do not; where there were too few (at most so many count), the loop is not held up for the next `_REST` writes.
_QUICK = 1e-3
_CREDIT = 16
_REST = 1000


class _Control(ctypes.Structure):
    """struct iocb of linux/aio_abi.h, as little-endian machines have it."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("notify", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("control", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class _Slot:
    """What one write at a time needs: a context of its own, so that its completion is nobody else's."""

    def __init__(self, calls: tuple[int, int, int, int]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        setup, self._destroy, self._events, self._submit = (ctypes.c_long(number) for number in calls)
        self._context = ctypes.c_ulong(0)
        self._completed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._check(self._libc.syscall(setup, ctypes.c_long(1), ctypes.byref(self._context)))
        except OSError:
            os.close(self._completed)
            raise
        self._control = _Control(
            opcode=_PWRITE, rw_flags=os.RWF_DSYNC, flags=_NOTIFY, notify=self._completed
        )  # fmt: skip
        self._pointer = ctypes.pointer(self._control)
        self._event = _Event()

    @staticmethod
    def _check(result: int) -> int:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def submit(self, fd: int, data: memoryview, offset: int) -> None:
        """Give a write to the kernel. Raises OSError where it does not take it."""
        control, one = self._control, ctypes.c_long(1)
        control.fd, control.offset, control.size = fd, offset, len(data)
        control.buffer = ctypes.addressof(ctypes.c_char.from_buffer(data))
        self._check(self._libc.syscall(self._submit, self._context, one, ctypes.byref(self._pointer)))

    async def completed(self) -> int:
        """Wait for it, perhaps once more after a cancellation; return what write(2) would, or an errno below 0."""
        try:
            await trio.lowlevel.wait_readable(self._completed)
        except OSError:
            # It cannot be waited for like that. But the kernel has the buffer until it has finished.
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._take)
        else:
            self._take()
        with suppress(BlockingIOError):
            os.eventfd_read(self._completed)
        return int(self._event.result)

    def _take(self) -> None:
        """Take the completion; blocks until there is one."""
        one = ctypes.c_long(1)
        while True:
            with suppress(InterruptedError):
                self._check(self._libc.syscall(self._events, self._context, one, one, ctypes.byref(self._event), None))
                return

    def close(self) -> None:
        """End the context."""
        self._libc.syscall(self._destroy, self._context)
        os.close(self._completed)


class Overwrite:
    """A write that is on its way. The memory it is of must not be changed before it has finished."""

    def __init__(self, slot: _Slot, data: memoryview, finished: Callable[[_Slot], None]) -> None:
        self._slot = slot
        self._data = data
        self._finished = finished

    async def finished(self) -> int:
        """Return how many bytes are durable. Raises OSError.

        Whoever is cancelled may ask again; the write goes on.
        """
        result = await self._slot.completed()
        self._finished(self._slot)
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


class Overwritten:
    """A write that was carried out at once."""

    def __init__(self, size: int) -> None:
        self._size = size

    async def finished(self) -> int:
        """As `Overwrite`."""
        return self._size


class Immediate:
    """Durable direct writes for which the loop is held up, as long as they are quick."""

    def __init__(self) -> None:
        self._credit = 0
        self._rest = 0

    def quick(self) -> bool:
        """Whether the next one may be expected to be, by those that were seen; to be asked once for each."""
        if self._rest:
            self._rest -= 1
        return not self._rest

    def write(self, fd: int, data: memoryview, offset: int) -> Overwritten | None:
        """Write aligned memory with O_DIRECT; None where it could not be. Who writes it in another way is told why."""
        before = time.perf_counter()
        try:
            written = os.pwritev(fd, [data], offset, os.RWF_DSYNC)
        except OSError:
            return None
        finally:
            self._took(time.perf_counter() - before)
        return Overwritten(written) if written == len(data) else None

    def _took(self, seconds: float) -> None:
        self._credit = min(self._credit + 1, _CREDIT) if seconds <= _QUICK else self._credit - int(seconds / _QUICK)
        if self._credit < 0:
            self._credit, self._rest = 0, _REST


class Overwriter:
    """Durable direct writes to blocks that files have already."""

    def __init__(self) -> None:
        little = sys.byteorder == "little" and sys.maxsize > 1 << 32
        self._calls = _CALLS.get(platform.machine()) if little else None
        self._immediate = Immediate()
        self._idle: list[_Slot] = []
        self._slots = 0
        self._delays = 0

    def start(self, fd: int, data: memoryview, offset: int, *, alone: bool) -> Overwrite | Overwritten | None:
        """Begin to write aligned memory with O_DIRECT; None where that cannot be done now, or not here at all.

        alone: nobody would have to wait for it; it may be carried out here and now.
        """
        if alone and self._immediate.quick():
            return self._immediate.write(fd, data, offset)
        slot = self._slot()
        if slot is None:
            return None
        before = time.perf_counter()
        try:
            slot.submit(fd, data, offset)
        except OSError as error:
            slot.close()
            self._slots -= 1
            if error.errno != errno.EAGAIN:
                self._calls = None
            return None
        self._delays = self._delays + 1 if time.perf_counter() - before > _DELAY else 0
        if self._delays > _DELAYS:
            self._calls = None  # it waits for the disk, which is what this is there to avoid
        return Overwrite(slot, data, self._idle.append)

    def _slot(self) -> _Slot | None:
        if self._calls is not None and self._idle:
            return self._idle.pop()
        if self._calls is None or self._slots == _MOST:
            return None
        try:
            slot = _Slot(self._calls)
        except OSError as error:
            # A system without (ENOSYS), a sandbox that forbids it (EPERM); or too many in use just now.
            if error.errno not in (errno.EAGAIN, errno.EMFILE, errno.ENFILE):
                self._calls = None
            return None
        self._slots += 1
        return slot

    def close(self) -> None:
        """Let go of everything; nothing may be on its way."""
        while self._idle:
            self._idle.pop().close()
        self._slots = 0
