"""The backend on a device: what is asked of it, carried out in threads."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Capacity, Manifest, Started, Traits
from fusevol.backends.checks import check_range, check_volume_id, flat
from fusevol.backends.device.catalog import Catalog
from fusevol.backends.device.disk import BLOCK, Disk, TablesBusy
from fusevol.backends.device.extents import Known
from fusevol.backends.device.layout import Layout
from fusevol.backends.device.space import Space
from fusevol.backends.device.writer import Writer
from fusevol.backends.overwriter import Immediate
from fusevol.backends.readahead import ReadAhead
from fusevol.backends.systemcalls import translate
from fusevol.errors import FusevolError, InvalidArgument, VolumeNotFound

__all__ = ["DeviceBackend"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_THREADS = 16
_DOUBTED = 1000


class _Device:
    """A device that is one for volumes, opened."""

    def __init__(self, disk: Disk, layout: Layout) -> None:
        self.disk = disk
        self.catalog = Catalog(disk, layout)
        self.space = Space(disk, self.catalog)
        self.reading = ReadAhead()
        # Not what the kernel carries out by itself: that may not be what it has of a device in its cache afterwards.
        self.immediate = Immediate()
        self._writers: dict[str, Writer] = {}
        self._guard = threading.Lock()
        #: Ranges of volumes that were read as they were not written: (id, size, offset).
        self.doubted: set[tuple[str, int, int]] = set()

    def writer(self, known: Known) -> Writer:
        """Who changes a volume here. Raises VolumeNotFound where another one has its name by now."""
        with self._guard:
            writer = self._writers.get(known.id)
            if writer is None or writer.known.number < known.number:
                if writer is not None:
                    writer.end()
                writer = Writer(known, self.disk, self.space, self.catalog, self.relieve)
                self._writers[known.id] = writer
        if writer.known.number != known.number:
            raise VolumeNotFound(f'volume "{known.id}" was deleted')
        return writer

    def known_writer(self, volume_id: str) -> Writer | None:
        """The same, if there is one."""
        return self._writers.get(volume_id)

    def drop(self, known: Known) -> None:
        """A volume was deleted."""
        with self._guard:
            writer = self._writers.get(known.id)
            if writer is not None and writer.known.number == known.number:
                self._writers.pop(known.id).end()

    def all_writers(self) -> list[Writer]:
        """Those that there are now."""
        with self._guard:
            return [*self._writers.values()]

    def relieve(self) -> None:
        """Give back what is to be, of all volumes. Blocks."""
        for writer in self.all_writers():
            writer.give_back()

    def close(self) -> None:
        """Give back what was held for writes that did not come. Blocks."""
        for writer in self.all_writers():
            try:
                writer.close()
            except (FusevolError, OSError) as error:
                # Whoever attaches the volume gives it back once more.
                log.warning('space of volume "%s" could not be given back: %s', writer.known.id, error)
        self.space.close()
        self.catalog.close()
        self.disk.close()


class DeviceBackend(Backend):
    """Volumes on a block device, which several processes of one host may use at once, and nobody else.

    path: of the device, or of a file. An empty one (nothing but zeros at its beginning and its end) is made one for
    volumes with the first volume; one that holds something else is refused with InvalidArgument.
    """

    traits = Traits(block=BLOCK)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._device: _Device | None = None
        self._opening = threading.Lock()
        self._threads = trio.CapacityLimiter(_THREADS)
        #: Of reads: those that need not wait for others do not wait for those that do.
        self._reading = trio.CapacityLimiter(_THREADS)
        #: Calls that are in threads, and what is set when there are none.
        self._running = 0
        self._idle = trio.Event()

    async def _run(self, what: str, work: Callable[[], T], limiter: trio.CapacityLimiter | None = None) -> T:
        """Run blocking `work` in a thread, to the end even if cancelled; `what` names it in errors."""
        self._running += 1
        try:
            return await trio.to_thread.run_sync(work, limiter=limiter or self._threads)
        except OSError as error:
            raise translate(error, what) from error
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
                self._idle = trio.Event()

    # -- the device -------------------------------------------------------------------------------

    def _open(self, *, create: bool = False) -> _Device | None:
        """The device; None where it is empty, and nobody wants it to be another than that. Blocks."""
        with self._opening:
            if self._device is None:
                disk = Disk(self.path)
                try:
                    layout = Layout.load(disk)
                    if layout is None and create:
                        layout = self._make(disk)
                    if layout is not None:
                        self._device = _Device(disk, layout)
                    else:
                        self._check_empty(disk)
                finally:
                    if self._device is None:
                        disk.close()
            return self._device

    def _check_empty(self, disk: Disk) -> None:
        """Raise InvalidArgument where a device can never be one for volumes, VolumeBusy where somebody uses it.

        BackendError where it can only be read.
        """
        try:
            Layout.plan(disk)
        except InvalidArgument:
            # Unless somebody has made it one just now; then it is for the next call.
            if Layout.load(disk) is None:
                disk.check_unused()
                raise
        disk.check_writable()

    def _make(self, disk: Disk) -> Layout:
        """Make an empty device one for volumes."""
        disk.check_writable()
        with disk.locked():
            layout = Layout.load(disk)
            if layout is None:
                layout = Layout.plan(disk)
                disk.check_unused()
                catalog = Catalog(disk, layout)
                try:
                    catalog.create()
                finally:
                    catalog.close()
                # Last: until now it is empty.
                layout.store(disk)
        return layout

    def _found(self, volume_id: str) -> tuple[_Device, Known]:
        """A volume, and its device. Blocks."""
        check_volume_id(volume_id)
        device = self._open()
        if device is None:
            raise VolumeNotFound(f'volume "{volume_id}" does not exist on {self.path}')
        return device, device.catalog.find(volume_id)

    def _current(self, volume_id: str) -> tuple[_Device, Known] | None:
        """The same, where it is known; does not wait. Raises OSError."""
        device = self._device
        known = device.catalog.current(volume_id) if device else None
        return (device, known) if device and known else None

    # -- volumes ----------------------------------------------------------------------------------

    async def create(self, volume_id: str) -> None:
        check_volume_id(volume_id)

        def work() -> None:
            device = self._open(create=True)
            assert device is not None
            device.catalog.add(volume_id)

        await self._run(f'volume "{volume_id}" could not be created', work)

    async def delete(self, volume_id: str) -> None:
        def work() -> None:
            device, known = self._found(volume_id)
            device.catalog.remove(volume_id)
            device.drop(known)
            device.catalog.sweep()

        await self._run(f'volume "{volume_id}" could not be deleted', work)

    async def list(self) -> list[str]:
        def work() -> list[str]:
            device = self._open()
            return device.catalog.names() if device else []

        return await self._run(f"the volumes on {self.path} could not be listed", work)

    async def sweep(self) -> None:
        def work() -> None:
            if (device := self._open()) and device.disk.writable:
                device.catalog.sweep()
                device.space.trim()

        await self._run(f"what is left of deleted volumes on {self.path} could not be removed", work)

    async def used_size(self, volume_id: str) -> int:
        def work() -> int:
            device, known = self._found(volume_id)
            writer = device.writer(known)
            return (known.blocks - writer.pending_blocks - writer.prepared_blocks) * BLOCK

        return await self._run(f'the size of volume "{volume_id}" is not known', work)

    # -- bytes ------------------------------------------------------------------------------------

    def _read(self, volume_id: str, size: int, offset: int, *, stored: bool = False) -> bytes:
        """Blocks."""
        _check(size, offset)
        device, known = self._found(volume_id)
        if (volume_id, size, offset) in device.doubted:
            device.doubted.discard((volume_id, size, offset))
            stored = True
        size = max(0, min(size, known.end * BLOCK - offset))
        start, count = offset // BLOCK, size // BLOCK
        while (pieces := known.pieces(start, count)) is None:
            device.catalog.load(known, start, count)
        parts = []
        for piece in pieces:
            if len(piece) == 2:
                parts.append(bytes(piece[1] * BLOCK))
                continue
            first, length, address = piece
            if stored:
                parts.append(device.disk.read_stored(length * BLOCK, address * BLOCK))
            else:
                device.reading.note(device.disk.fd, address * BLOCK, first * BLOCK, length * BLOCK)
                parts.append(device.disk.read(length * BLOCK, address * BLOCK))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        what = f'{size} bytes at {offset} of volume "{volume_id}" could not be read'
        return await self._run(what, lambda: self._read(volume_id, size, offset), self._reading)

    async def read_stored(self, volume_id: str, size: int, offset: int) -> Buffer:
        what = f'{size} bytes at {offset} of volume "{volume_id}" could not be read'
        return await self._run(what, lambda: self._read(volume_id, size, offset, stored=True), self._reading)

    def read_blocking(self, volume_id: str, size: int, offset: int) -> Buffer:
        try:
            return self._read(volume_id, size, offset)
        except OSError as error:
            raise translate(error, f'{size} bytes at {offset} of volume "{volume_id}" could not be read') from error

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        if (size | offset) % BLOCK or size <= 0:
            return None
        try:
            current = self._current(volume_id)
            if not current or (volume_id, size, offset) in current[0].doubted:
                return None
            pieces = current[1].pieces(offset // BLOCK, size // BLOCK)
            if not pieces or len(pieces) > 1 or len(pieces[0]) == 2:
                return None
            device, (first, length, address) = current[0], pieces[0]
            data = device.disk.read_cached(length * BLOCK, address * BLOCK)
            if data is not None:
                device.reading.note(device.disk.fd, address * BLOCK, first * BLOCK, length * BLOCK)
        except OSError:
            # `read` comes upon the same error, and reports it.
            return None
        return data

    def doubt(self, volume_id: str, size: int, offset: int) -> None:
        device = self._device
        if device is None:
            return
        if len(device.doubted) >= _DOUBTED:
            device.doubted.clear()
        # The kernel need not forget what it is asked to; and the first to read it again reads what is stored.
        device.doubted.add((volume_id, size, offset))
        first, known = offset // BLOCK, device.catalog.recalled(volume_id)
        pieces = known.pieces(first, -(-(offset + size) // BLOCK) - first) if known else None
        for piece in pieces or ():
            if len(piece) == 3:
                with suppress(OSError):
                    device.disk.forget(piece[1] * BLOCK, piece[2] * BLOCK)

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        view = flat(data)
        _check(len(view), offset)

        def work() -> int:
            device, known = self._found(volume_id)
            return device.writer(known).write(view, offset) if view else 0

        what = f'{len(view)} bytes at {offset} of volume "{volume_id}" could not be written'
        return await self._run(what, work)

    def start_write(self, volume_id: str, data: Buffer, offset: int, *, alone: bool = False) -> Started | None:
        device = self._device
        writer = device.known_writer(volume_id) if device else None
        return writer.start(flat(data), offset, device.immediate) if device and writer and alone else None

    async def flush(self, volume_id: str) -> None:
        try:
            current = self._current(volume_id)
        except OSError:
            current = None
        if current and (writer := current[0].known_writer(volume_id)) and writer.known is current[1] and writer.clean:
            return

        def work() -> None:
            # What was written is durable already, and a flush that failed would be the end of the volume: so this
            # waits for the tables for as long as others need them.
            while True:
                try:
                    device, known = self._found(volume_id)
                    device.writer(known).flush()
                    break
                except TablesBusy as error:
                    log.warning("%s", error)

        await self._run(f'volume "{volume_id}" could not be flushed', work)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        _check(length, offset)

        def work() -> None:
            device, known = self._found(volume_id)
            if length:
                device.writer(known).discard(offset // BLOCK, length // BLOCK)

        await self._run(f'space of volume "{volume_id}" could not be given back', work)

    def capacity(self, volume_id: str) -> Capacity | None:
        device = self._device
        total, free = device.catalog.capacity() if device else (0, 0)
        if device is None or total <= 0:
            return None
        pending = sum(writer.pending_blocks for writer in device.all_writers())
        return Capacity(total * BLOCK, min(free + pending, total) * BLOCK)

    # -- manifest ---------------------------------------------------------------------------------

    async def get_manifest(self, volume_id: str) -> Manifest:
        try:
            if current := self._current(volume_id):
                return current[1].manifest
        except OSError:
            pass  # the same, below, is reported

        def work() -> Manifest:
            return self._found(volume_id)[1].manifest

        return await self._run(f'the manifest of volume "{volume_id}" could not be read', work)

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        body = bytes(data)

        def work() -> str:
            return self._found(volume_id)[0].catalog.put_manifest(volume_id, body, if_version)

        return await self._run(f'the manifest of volume "{volume_id}" could not be written', work)

    # -- the end ----------------------------------------------------------------------------------

    def release(self, volume_id: str) -> None:
        if self._device and (writer := self._device.known_writer(volume_id)):
            writer.retire()

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):
            # What they have open is not to become somebody else's.
            while self._running:
                await self._idle.wait()
            device, self._device = self._device, None
            if device is not None:
                await self._run(f"{self.path} could not be closed", device.close)


def _check(size: int, offset: int) -> None:
    """Raise InvalidArgument for a range that is no whole blocks, or cannot exist."""
    check_range(size, offset)
    if size and (size | offset) % BLOCK:
        raise InvalidArgument(f"{size} bytes at {offset}: a device is used in blocks of {BLOCK} bytes")
