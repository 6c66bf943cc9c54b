"""Blocks of a log on a local disk: a file of slots, each for a chunk of some space, and which of its blocks are there.

Whatever is in the file is only believed once it matches a checksum of the log's, so nothing here needs to be durable,
and a slot may be given to another chunk while somebody reads it. That makes for a retry, never for wrong bytes.
"""

import logging
import os
import tempfile
from collections import OrderedDict
from pathlib import Path

import msgspec

from fusevol.api.io import Buffer

__all__ = ["BLOCK", "CHUNK", "Slots"]

log = logging.getLogger(__name__)

BLOCK = 4096
#: Bytes of a slot.
CHUNK = 64 * 1024
_BLOCKS = CHUNK // BLOCK
_ALL = (1 << _BLOCKS) - 1


#: Positions in the file, and how many bytes there.
Places = list[tuple[int, int]]


class _Chunk(msgspec.Struct, array_like=True):
    """Where a chunk is, and which of its blocks are there, as bits."""

    slot: int
    there: int


class _Index(msgspec.Struct, array_like=True):
    """What is in the file, when it was closed: by space and number, those to be kept and the others."""

    kept: list[tuple[str, int, _Chunk]]
    others: list[tuple[str, int, _Chunk]]


class Slots:
    """A file of at most `size` bytes, in a directory that is this process's alone; what was there before is used again.

    directory: None for a file without a name, which goes with the process.

    A disk that fails or is full makes for blocks that are not there. Raises OSError when the file cannot be opened.
    """

    def __init__(self, directory: Path | None, size: int) -> None:
        self._index = directory / "index" if directory else None
        self._most = max(4, size // CHUNK)
        self._chunks: OrderedDict[tuple[str, int], _Chunk] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], _Chunk] = OrderedDict()
        self._free: list[int] = []
        self._next = 0
        self._failing = False
        if directory is None:
            with tempfile.TemporaryFile() as file:
                self._fd = os.dup(file.fileno())
        else:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(directory / "blocks", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._load(directory / "index")

    def _load(self, index: Path) -> None:
        try:
            found = msgspec.msgpack.decode(index.read_bytes(), type=_Index)
        except FileNotFoundError:
            found = _Index([], [])
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("what was cached before is not used: %s", error)
            found = _Index([], [])
        # Not there unless this is closed properly: it would say what is not so any more.
        index.unlink(missing_ok=True)
        taken = set()
        for chunks, old in ((self._kept, found.kept), (self._chunks, found.others)):
            for space, number, chunk in old:
                if chunk.slot not in taken and 0 <= chunk.slot < self._most and 0 < chunk.there <= _ALL:
                    taken.add(chunk.slot)
                    chunks[space, number] = chunk
        self._next = max(taken, default=-1) + 1
        self._free = [slot for slot in range(self._next) if slot not in taken]
        if not taken:
            os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file, and write down what is in it."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self._index is None:
            return
        index = _Index(*([(*key, chunk) for key, chunk in found.items()] for found in (self._kept, self._chunks)))
        try:
            self._index.write_bytes(msgspec.msgpack.encode(index))
        except OSError as error:
            log.warning("what is cached will not be used again: %s", error)

    def __len__(self) -> int:
        return len(self._chunks) + len(self._kept)

    # -- blocks -----------------------------------------------------------------------------------

    def _find(self, key: tuple[str, int], *, keep: bool = False) -> _Chunk | None:
        """A chunk, which is used by that. keep: from now on it is to stay."""
        chunk = self._kept.get(key)
        if chunk is not None:
            self._kept.move_to_end(key)
            return chunk
        chunk = self._chunks.get(key)
        if chunk is not None and keep:
            del self._chunks[key]
            self._kept[key] = chunk
        elif chunk is not None:
            self._chunks.move_to_end(key)
        return chunk

    def before(self, space: str, offset: int, most: int) -> int:
        """How many chunks there are of those right before the chunk of `offset`; `most` or more are `most`."""
        number = offset // CHUNK
        for count in range(most):
            key = (space, number - 1 - count)
            if key not in self._chunks and key not in self._kept:
                return count
        return most

    def find(self, space: str, size: int, offset: int, *, keep: bool = False) -> Places | None:
        """Where these blocks are in the file; None where one of them is not there. keep: as of `put`."""
        places = []
        for number, mask, inner, length in _pieces(size, offset):
            chunk = self._find((space, number), keep=keep)
            if chunk is None or chunk.there & mask != mask:
                return None
            places.append((chunk.slot * CHUNK + inner, length))
        return places

    def read(self, places: Places, *, wait: bool) -> bytearray | None:
        """The bytes there; None where the disk fails or, without `wait`, would be waited for. For any thread."""
        data = bytearray(sum(length for _, length in places))
        view, at = memoryview(data), 0
        for position, length in places:
            try:
                if os.preadv(self._fd, [view[at : at + length]], position, 0 if wait else os.RWF_NOWAIT) != length:
                    return None
            except OSError:
                return None
            at += length
        return data

    def put(self, space: str, data: Buffer, offset: int, *, keep: bool = False) -> None:
        """Have whole blocks. keep: they are to stay, as long as there are others to give up."""
        view, at = memoryview(data).cast("B"), 0
        for number, mask, inner, length in _pieces(len(view), offset):
            key = (space, number)
            chunk = self._find(key, keep=keep)
            if chunk is None:
                chunk = _Chunk(self._slot(), 0)
                (self._kept if keep else self._chunks)[key] = chunk
            chunk.there &= ~mask
            try:
                if os.pwrite(self._fd, view[at : at + length], chunk.slot * CHUNK + inner) == length:
                    chunk.there |= mask
            except OSError as error:
                if not self._failing:
                    log.warning("blocks are not cached, for now: %s", error)
                self._failing = True
                return
            self._failing = False
            at += length

    def drop(self, space: str, size: int, offset: int) -> None:
        """Forget blocks."""
        for number, mask, _, _ in _pieces(size, offset):
            chunk = self._find((space, number))
            if chunk is not None:
                chunk.there &= ~mask

    def forget(self, space: str) -> None:
        """Forget all of a space."""
        for found in (self._chunks, self._kept):
            for key in [key for key in found if key[0] == space]:
                self._free.append(found.pop(key).slot)

    def _slot(self) -> int:
        """A slot for one more chunk, if need be that of the chunk that was not used for longest."""
        if self._free:
            return self._free.pop()
        if self._next < self._most:
            self._next += 1
            return self._next - 1
        # What is kept may fill half of it before it has to give way to others of its kind.
        crowd = self._chunks if len(self._kept) * 2 < self._most and self._chunks else self._kept
        _, chunk = crowd.popitem(last=False)
        return chunk.slot


def _pieces(size: int, offset: int) -> list[tuple[int, int, int, int]]:
    """The chunks that a range touches: number, blocks as bits, where it begins in the chunk, bytes in it."""
    found, end = [], offset + size
    while offset < end:
        number, inner = divmod(offset, CHUNK)
        length = min(CHUNK - inner, end - offset)
        mask = ((1 << length // BLOCK) - 1) << inner // BLOCK
        found.append((number, mask, inner, length))
        offset += length
    return found
