"""MemoryBackend: volumes in RAM, gone with the process. For ephemeral volumes and tests."""

import itertools

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Backend, Manifest, Traits
from fusevol.backends.checks import check_range, check_volume_id, flat
from fusevol.errors import AlreadyExists, ManifestConflict, VolumeNotFound

__all__ = ["MemoryBackend", "Space", "new_version"]

#: The unit in which memory is given back and counted.
PAGE = 4096
#: The unit in which it is taken. A larger one makes 8 MiB writes faster and sparse ones wasteful.
CHUNK = 64 * 1024

_PAGES = CHUNK // PAGE
_ZEROS = bytes(CHUNK)

# One counter for all instances, so that no version comes back, not even after delete and create.
_versions = itertools.count(1)


def new_version() -> str:
    """A manifest version that was never used in this process."""
    return f"m{next(_versions)}"


class Space:
    """One sparse byte space and its manifest. Nothing here waits, so every method is atomic.

    Bytes live in chunks; a bit per page says which pages of a chunk are held. Bytes of pages not
    held are zero, so a read need not look at the bits.
    """

    __slots__ = ("_chunks", "_held", "end", "manifest")

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}
        self._held: dict[int, int] = {}
        self.end = 0
        self.manifest = Manifest(b"", NO_VERSION)

    def copy(self) -> "Space":
        """An independent space with the same bytes and manifest."""
        twin = Space()
        twin._chunks = {number: bytearray(chunk) for number, chunk in self._chunks.items()}
        twin._held = dict(self._held)
        twin.end, twin.manifest = self.end, self.manifest
        return twin

    def used_size(self) -> int:
        """Bytes of the pages held."""
        return PAGE * sum(held.bit_count() for held in self._held.values())

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; zeros where nothing was written."""
        size = min(size, self.end - offset)
        if size <= 0:
            return b""
        number, start = divmod(offset, CHUNK)
        if start + size <= CHUNK:
            return bytes(memoryview(self._chunks.get(number, _ZEROS))[start : start + size])
        pieces = []
        while size > 0:
            piece = memoryview(self._chunks.get(number, _ZEROS))[start : start + size]
            pieces.append(piece)
            size -= len(piece)
            number, start = number + 1, 0
        return b"".join(pieces)

    def write(self, data: Buffer, offset: int) -> None:
        """Copy `data` to `offset`."""
        view, done = flat(data), 0
        number, start = divmod(offset, CHUNK)
        while done < len(view):
            chunk = self._chunks.get(number)
            if chunk is None:
                chunk = self._chunks[number] = bytearray(CHUNK)
            piece = view[done : done + CHUNK - start]
            stop = start + len(piece)
            chunk[start:stop] = piece
            first, last = start // PAGE, -(-stop // PAGE)
            self._held[number] = self._held.get(number, 0) | (1 << last) - (1 << first)
            done += len(piece)
            number, start = number + 1, 0
        if done:
            self.end = max(self.end, offset + done)

    def _chunks_in(self, length: int, offset: int) -> list[int]:
        """Numbers of the chunks with a part of the range, which is not empty, sorted."""
        numbers = range(offset // CHUNK, -(-(offset + length) // CHUNK))
        if len(numbers) > len(self._chunks):  # a vast range over few chunks
            return sorted(number for number in self._chunks if number in numbers)
        return [number for number in numbers if number in self._chunks]

    def occupied(self, length: int, offset: int) -> list[tuple[int, int]]:
        """The parts of the range outside of which it holds nothing: (offset, length)."""
        parts = []
        for number in self._chunks_in(length, offset):
            start, stop = max(number * CHUNK, offset), min((number + 1) * CHUNK, offset + length, self.end)
            if start < stop:
                parts.append((start, stop - start))
        return parts

    def discard(self, length: int, offset: int) -> None:
        """Zero the range and give back the pages that lie wholly in it. The end stays where it is."""
        stop = min(offset + length, self.end)
        if stop <= offset:
            return
        for number in self._chunks_in(stop - offset, offset):
            base = number * CHUNK
            first, last = max(offset - base, 0), min(stop - base, CHUNK)
            self._chunks[number][first:last] = _ZEROS[: last - first]
            # The last page of the space ends where the space does.
            last_page = _PAGES if stop == self.end and last < CHUNK else last // PAGE
            first_page = -(-first // PAGE)
            if last_page > first_page:
                self._held[number] &= ~((1 << last_page) - (1 << first_page))
            if not self._held[number]:
                del self._held[number], self._chunks[number]


class MemoryBackend(Backend):
    """Spaces in a dictionary. A call that finds itself cancelled has had no effect."""

    traits = Traits(durable=False)

    def __init__(self) -> None:
        #: Every volume by id, for tests that look or tamper.
        self.spaces: dict[str, Space] = {}

    def _space(self, volume_id: str) -> Space:
        space = self.spaces.get(volume_id)
        if space is None:
            check_volume_id(volume_id)
            raise VolumeNotFound(f"volume {volume_id!r} does not exist")
        return space

    async def create(self, volume_id: str) -> None:
        """See Backend."""
        await trio.lowlevel.checkpoint_if_cancelled()
        check_volume_id(volume_id)
        if volume_id in self.spaces:
            raise AlreadyExists(f"volume {volume_id!r} exists")
        self.spaces[volume_id] = Space()

    async def delete(self, volume_id: str) -> None:
        """See Backend."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._space(volume_id)
        del self.spaces[volume_id]

    async def list(self) -> list[str]:
        """See Backend."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return sorted(self.spaces)

    async def used_size(self, volume_id: str) -> int:
        """Bytes of the 4 KiB pages held."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._space(volume_id).used_size()

    async def read(self, volume_id: str, size: int, offset: int) -> bytes:
        """See IODriver."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return self.read_nowait(volume_id, size, offset)

    def read_blocking(self, volume_id: str, size: int, offset: int) -> bytes:
        return self.read_nowait(volume_id, size, offset)

    def read_nowait(self, volume_id: str, size: int, offset: int) -> bytes:
        """Always answers."""
        space = self._space(volume_id)
        check_range(size, offset)
        return space.read(size, offset)

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """See IODriver."""
        await trio.lowlevel.checkpoint_if_cancelled()
        space = self._space(volume_id)
        size = memoryview(data).nbytes
        check_range(size, offset)
        space.write(data, offset)
        return size

    async def flush(self, volume_id: str) -> None:
        """Nothing to do: RAM is as stable as it gets."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._space(volume_id)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Give back the pages that lie wholly in the range; all of it reads as zeros."""
        await trio.lowlevel.checkpoint_if_cancelled()
        space = self._space(volume_id)
        check_range(length, offset)
        space.discard(length, offset)

    async def get_manifest(self, volume_id: str) -> Manifest:
        """See Backend."""
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._space(volume_id).manifest

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """See Backend."""
        await trio.lowlevel.checkpoint_if_cancelled()
        space = self._space(volume_id)
        if space.manifest.version != if_version:
            raise ManifestConflict(f"the manifest of volume {volume_id!r} was changed by someone else")
        space.manifest = Manifest(bytes(data), new_version())
        return space.manifest.version
