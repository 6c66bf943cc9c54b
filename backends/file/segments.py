"""One volume's directory of segment files: the synchronous half of the file backend.

Methods that may block say so and run in worker threads; what they share is guarded by a lock that is
never held across a system call that waits for the disk, but when files are closed for good.
"""

import errno
import mmap
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fusevol.backends.ahead import AHEAD_BYTES, SMALL_BYTES, Ahead
from fusevol.backends.file.segment_file import Segment
from fusevol.backends.overwriter import Overwrite, Overwriter, Overwritten
from fusevol.backends.readahead import ReadAhead
from fusevol.backends.systemcalls import fsync_directory, is_aligned, overwrites_in_place, punch, translate
from fusevol.errors import NotSupported, VolumeNotFound

__all__ = ["SEGMENT_BYTES", "SegmentDirectory", "StartedWrite"]

#: Bytes of the space in one file: small enough to be dropped whole now and then, large enough to be few.
SEGMENT_BYTES = 1 << 30
_OPEN_FILES = 128
#: The kernel's own readahead asks for 128 KiB at a time; reads of this size and more ask for all of it at once.
_LARGE_READ = 128 << 10
_ZEROS = mmap.mmap(-1, AHEAD_BYTES)
#: What was modified longer ago than this was written back by the kernel (it waits half a minute by default).
_SETTLED_SECONDS = 86400

_NAME = re.compile(r"([0-9a-f]{10})\.seg")


class SegmentDirectory:
    """Byte ranges of one volume, over files of SEGMENT_BYTES each; missing files are holes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        #: One at a time: what one of them has taken the marks of is not durable before it is through.
        self._flushing = threading.Lock()
        self._open: OrderedDict[int, Segment] = OrderedDict()
        self._dirty: set[int] = set()
        self._created = False
        self._adopted = False
        self._discards = 0
        self._reading = ReadAhead()
        self._ahead = Ahead(worthwhile=overwrites_in_place(path))

    # -- descriptors ------------------------------------------------------------------------------

    def _file(self, index: int) -> Path:
        return self.path / f"{index:010x}.seg"

    def _get(self, index: int, *, create: bool) -> Segment | None:
        """The segment, opened; None if there is none. The caller holds the lock, or is the only thread."""
        segment = self._open.get(index)
        if segment is not None and (segment.writable or segment.users):
            self._open.move_to_end(index)
            return segment
        if segment is not None:
            # Its file system may be writable again by now.
            self._open.pop(index).close()
        try:
            segment = Segment.open(self._file(index), create=False)
        except FileNotFoundError:
            if not self.path.is_dir():
                raise VolumeNotFound(f'volume "{self.path.name}" does not exist') from None
            if not create:
                return None
            segment = Segment.open(self._file(index), create=True)
            self._created = True
        self._open[index] = segment
        while len(self._open) > _OPEN_FILES:
            # Not the one with zeros, which is the head's: to give those back takes the disk.
            kept = index, self._ahead.unused[0] // SEGMENT_BYTES
            idle = next((i for i, old in self._open.items() if not old.users and i not in kept), None)
            if idle is None:
                break
            self._open.pop(idle).close()
        return segment

    def _close(self, index: int) -> None:
        """Close a segment, and give back what was prepared in it for writes that did not come. Under the lock."""
        segment = self._open.pop(index)
        start, end = self._ahead.unused
        if start < end and start // SEGMENT_BYTES == index:
            punch(segment.buffered, start % SEGMENT_BYTES, end - start)
            self._ahead.forget()
        segment.close()

    @contextmanager
    def _use(self, index: int, *, create: bool = False) -> Iterator[Segment | None]:
        """Hold a segment open, so that no other thread closes it meanwhile."""
        with self._lock:
            segment = self._get(index, create=create)
            if segment:
                segment.users += 1
        try:
            yield segment
        finally:
            if segment:
                with self._lock:
                    segment.users -= 1

    def segments(self) -> list[int]:
        """Numbers of the segments that exist, sorted. Raises VolumeNotFound."""
        try:
            names = os.listdir(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise VolumeNotFound(f'volume "{self.path.name}" does not exist') from None
        return sorted(int(match[1], 16) for name in names if (match := _NAME.fullmatch(name)))

    def end(self) -> int:
        """Where the space ends: behind the last byte of the last segment."""
        existing = self.segments()
        while existing:
            with suppress(FileNotFoundError):
                return existing[-1] * SEGMENT_BYTES + os.stat(self._file(existing[-1])).st_size
            existing.pop()
        return 0

    # -- bytes ------------------------------------------------------------------------------------

    def read_cached(self, size: int, offset: int) -> bytes | None:
        """The range, if it is in one segment and all of it in the page cache. Never blocks on the disk."""
        index, inner = divmod(offset, SEGMENT_BYTES)
        if inner + size > SEGMENT_BYTES or not size:
            return None
        # Only opening is guarded: what is open stays so, since nothing else runs between here and the read.
        with self._lock:
            segment = self._get(index, create=False)
            if segment is None:
                return None
            buffer = bytearray(size)
            try:
                if os.preadv(segment.buffered, [buffer], inner, os.RWF_NOWAIT) != size:
                    return None
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                return None
            self._reading.note(segment.buffered, inner, offset, size)
        return buffer  # type: ignore[return-value]  # a bytearray nobody else has

    def read(self, size: int, offset: int) -> bytes:
        """The range, cut where the space ends. Blocks."""
        parts, at = [], offset
        while at < offset + size:
            index, inner = divmod(at, SEGMENT_BYTES)
            count = min(offset + size - at, SEGMENT_BYTES - inner)
            with self._use(index) as segment:
                if segment is None:
                    break
                if count >= _LARGE_READ:
                    os.posix_fadvise(segment.buffered, inner, count, os.POSIX_FADV_WILLNEED)
                self._reading.note(segment.buffered, inner, at, count)
                part = os.pread(segment.buffered, count, inner)
            parts.append(part)
            at += len(part)
            if len(part) < count:
                break
        if at < offset + size:
            return self._with_holes(parts, at, offset, size)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _with_holes(self, parts: list[bytes], at: int, offset: int, size: int) -> bytes:
        """Go on where a file is missing or short: zeros up to the next one, or to the end of the space."""
        end = min(self.end(), offset + size)
        while at < end:
            index, inner = divmod(at, SEGMENT_BYTES)
            count = min(end - at, SEGMENT_BYTES - inner)
            part = b""
            with self._use(index) as segment:
                if segment:
                    part = os.pread(segment.buffered, count, inner)
            parts.append(part.ljust(count, b"\0"))
            at += count
        return b"".join(parts)

    def write(self, data: memoryview, offset: int) -> None:
        """Write all of it. Blocks. Raises OSError."""
        at, size = 0, len(data)
        with self._ahead.writing:
            if self._ahead.note(offset, size) and self._write_ahead(data, offset):
                return
        while at < size:
            index, inner = divmod(offset + at, SEGMENT_BYTES)
            count = min(size - at, SEGMENT_BYTES - inner)
            with self._use(index, create=True) as segment:
                assert segment is not None  # created if need be
                segment.write(data[at : at + count], inner, durable=size <= SMALL_BYTES)
                # Marked only now: a flush that took the marks earlier owes this write nothing, the next one does.
                if size > SMALL_BYTES:
                    with self._lock:
                        self._dirty.add(index)
            at += count

    def _write_ahead(self, data: memoryview, offset: int) -> bool:
        """Write, durably, with zeros behind it; False where that cannot be done, and it is still to be written."""
        index, inner = divmod(offset, SEGMENT_BYTES)
        end = min(inner + len(data) + AHEAD_BYTES, SEGMENT_BYTES)
        zeros = memoryview(_ZEROS)[: max(0, end - inner - len(data))]
        with self._use(index) as segment:
            if not zeros or segment is None or segment.direct is None or not is_aligned(data, offset):
                return False
            if os.fstat(segment.buffered).st_size > inner + len(data):
                return False  # there is something already, which somebody else wrote
            try:
                done = os.pwritev(segment.direct, [data, zeros], inner, os.RWF_DSYNC) == end - inner
            except OSError:
                done = False
            if done:
                self._ahead.prepared(offset + len(data), offset - inner + end)
            else:
                # The disk may be too full for the zeros only; if it is too full for the data, writing that will say so.
                self._ahead.worthwhile = False
                punch(segment.buffered, inner + len(data), len(zeros))
            return done

    def start_write(
        self, data: memoryview, offset: int, overwriter: Overwriter, *, alone: bool
    ) -> "StartedWrite | None":
        """Begin a write that only overwrites what was prepared for it; None where it would not.

        Nor while holes are punched, for which the kernel would have it, and whoever submits it, wait.
        """
        if self._discards or not self._ahead.within(offset, len(data)) or not is_aligned(data, offset):
            return None
        # What fails here fails `write` as well, which reports it.
        with suppress(OSError, VolumeNotFound), ExitStack() as stack:
            segment = stack.enter_context(self._use(offset // SEGMENT_BYTES))
            if segment is None or segment.direct is None:
                return None
            self._ahead.note(offset, len(data))
            overwrite = overwriter.start(segment.direct, data, offset % SEGMENT_BYTES, alone=alone)
            return StartedWrite(overwrite, stack.pop_all(), self.path.name) if overwrite else None
        return None

    @property
    def clean(self) -> bool:
        """Whether a flush has nothing to do."""
        return self._adopted and not self._dirty and not self._created and not self._flushing.locked()

    def flush(self) -> None:
        """Make all writes durable, those of earlier owners of the directory too. Blocks. Raises OSError."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        with self._lock:
            dirty, self._dirty = self._dirty, set()
            created, self._created = self._created, False
        try:
            adopted = set() if self._adopted else self._recent()
            for index in dirty | adopted:
                with self._use(index) as segment:
                    if segment:
                        os.fdatasync(segment.buffered)
            if created or not self._adopted:
                fsync_directory(self.path)
        except BaseException:
            with self._lock:
                self._dirty |= dirty
                self._created |= created
            raise
        self._adopted = True

    def _recent(self) -> set[int]:
        """Segments that somebody who died may have written: only the page cache or the device's cache may have it."""
        recent, found = time.time() - _SETTLED_SECONDS, set()
        for index in self.segments():
            with suppress(FileNotFoundError):
                if os.stat(self._file(index)).st_mtime > recent:
                    found.add(index)
        return found

    def discard(self, length: int, offset: int) -> None:
        """Give the range back: drop files it covers, punch holes in others. Blocks. Raises OSError."""
        start, prepared = self._ahead.unused
        if offset < prepared and start < offset + length:
            self._ahead.forget()
        with self._discarding():
            self._discard(offset, offset + length)

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        with self._lock:
            self._discards += 1
        try:
            yield
        finally:
            with self._lock:
                self._discards -= 1

    def _discard(self, offset: int, end: int) -> None:
        first, last = offset // SEGMENT_BYTES, (end - 1) // SEGMENT_BYTES
        for index in self.segments():
            if not first <= index <= last:
                continue
            low = max(offset - index * SEGMENT_BYTES, 0)
            high = min(end - index * SEGMENT_BYTES, SEGMENT_BYTES)
            if high - low < SEGMENT_BYTES:
                with self._use(index) as segment:
                    if segment is None:
                        continue
                    if code := punch(segment.buffered, low, high - low):
                        if code == errno.EOPNOTSUPP:
                            raise NotSupported(
                                f"the file system of {self.path} cannot punch holes, so space does not come back",
                                hint="use ext4, xfs, btrfs or tmpfs",
                            )
                        raise OSError(code, os.strerror(code))
                    if os.fstat(segment.buffered).st_blocks:
                        continue
            self._drop(index, whole=high - low == SEGMENT_BYTES)

    def _drop(self, index: int, *, whole: bool) -> None:
        """Remove a file that holds nothing any more; unless it is the one being written to."""
        with self._lock:
            segment = self._open.get(index)
            busy = index in self._dirty or (segment is not None and segment.users > 0)
            if not whole and (busy or index == max(self.segments())):
                return
            if segment is not None and not segment.users:
                self._open.pop(index).close()
            self._dirty.discard(index)
            with suppress(FileNotFoundError):
                self._file(index).unlink()

    def used_size(self) -> int:
        """Bytes that the files take up. Blocks."""
        total = 0
        for index in self.segments():
            with suppress(FileNotFoundError):
                total += os.stat(self._file(index)).st_blocks * 512
        start, end = self._ahead.unused
        return max(0, total - (end - start))

    def close_idle(self) -> None:
        """Close files that no thread uses just now. Those that a flush has to be told of errors of stay open."""
        with self._lock:
            idle = [index for index, segment in self._open.items() if not segment.users and index not in self._dirty]
            for index in idle:
                self._close(index)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for index in list(self._open):
                self._close(index)
            self._ahead.forget()


class StartedWrite:
    """A write that is being carried out, or was; its segment stays open until it is asked about."""

    def __init__(self, overwrite: Overwrite | Overwritten, held: ExitStack, volume_id: str) -> None:
        self._overwrite = overwrite
        self._held = held
        self._volume_id = volume_id

    async def finished(self) -> int:
        """As `backends.base.Started`."""
        try:
            written = await self._overwrite.finished()
        except OSError as error:
            self._held.close()
            raise translate(error, f'volume "{self._volume_id}" could not be written') from error
        self._held.close()
        return written
