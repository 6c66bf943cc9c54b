"""EncryptedBackend: a backend whose store sees nothing but encrypted bytes."""

import mmap
from dataclasses import replace
from typing import Final

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Backend, Manifest, Started
from fusevol.backends.checks import check_range, check_volume_id, flat
from fusevol.backends.encryption.ciphers import BLOCK, ManifestCipher, SpaceCipher
from fusevol.backends.encryption.keys import Key
from fusevol.backends.wrappers.wrapper import Wrapper
from fusevol.errors import InvalidArgument

__all__ = ["EncryptedBackend"]

#: Writes that begin at once are small; encrypting a large one would keep the loop from others.
_SMALL: Final = 64 << 10
#: The largest batch of a log.
_BATCH: Final = 9 << 20
#: So many buffers of a size are kept.
_KEPT: Final = 4


class _Buffers:
    """Memory at the beginning of a page, as writing around the page cache needs it, that is used again and again."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> mmap.mmap:
        """Memory for at least so many bytes."""
        if size > self._size:
            return mmap.mmap(-1, size)
        return self._free.pop() if self._free else mmap.mmap(-1, self._size)

    def give(self, buffer: mmap.mmap) -> None:
        """Nobody uses it any more."""
        if len(buffer) == self._size and len(self._free) < _KEPT:
            self._free.append(buffer)


class _Started:
    """A write that was begun, of a buffer that is used again once it has succeeded."""

    def __init__(self, started: Started, buffers: _Buffers, buffer: mmap.mmap) -> None:
        self._started = started
        self._buffers = buffers
        self._buffer: mmap.mmap | None = buffer

    async def finished(self) -> int:
        """As `backends.base.Started`."""
        written = await self._started.finished()
        if self._buffer is not None:
            self._buffers.give(self._buffer)
            self._buffer = None
        return written


class EncryptedBackend(Wrapper):
    """Encrypts what another backend is to keep, and decrypts what it kept: bytes, and manifests.

    What the store still sees: how many volumes there are, their ids, how many bytes each has and which of them are
    written, read and given back when. Whoever can write to the store can damage what is there, which is noticed, or put
    a volume back as it once was, which is not.

    A space is read, written and given back in blocks (`Traits.block`).
    """

    def __init__(self, inner: Backend, key: Key) -> None:
        super().__init__(inner)
        self.traits = replace(inner.traits, block=BLOCK)
        self._key = key
        self._spaces: dict[str, SpaceCipher] = {}
        self._manifests: dict[str, ManifestCipher] = {}
        self._small, self._large = _Buffers(_SMALL), _Buffers(_BATCH)

    def _space(self, volume_id: str) -> SpaceCipher:
        if volume_id not in self._spaces:
            self._spaces[volume_id] = SpaceCipher(self._key, volume_id)
        return self._spaces[volume_id]

    def release(self, volume_id: str) -> None:
        """Forget the volume's keys, and forward."""
        self._spaces.pop(volume_id, None)
        self._manifests.pop(volume_id, None)
        self.inner.release(volume_id)

    # -- reading ----------------------------------------------------------------------------------

    def _decrypted(self, volume_id: str, stored: Buffer, offset: int) -> Buffer:
        view = flat(stored)
        # Only damage ends a space within a block.
        return self._space(volume_id).decrypt(view[: len(view) // BLOCK * BLOCK], offset)

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Decrypt what the store has."""
        _check(size, offset)
        return self._decrypted(volume_id, await self.inner.read(volume_id, size, offset), offset)

    async def read_stored(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Decrypt what the store itself has."""
        _check(size, offset)
        return self._decrypted(volume_id, await self.inner.read_stored(volume_id, size, offset), offset)

    def read_blocking(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Decrypt what the store has."""
        _check(size, offset)
        return self._decrypted(volume_id, self.inner.read_blocking(volume_id, size, offset), offset)

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Decrypt what is at hand."""
        stored = self.inner.read_nowait(volume_id, size, offset) if _whole(size, offset) else None
        return None if stored is None else self._decrypted(volume_id, stored, offset)

    def read_kept(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Decrypt what is at hand, and stays there."""
        stored = self.inner.read_kept(volume_id, size, offset) if _whole(size, offset) else None
        return None if stored is None else self._decrypted(volume_id, stored, offset)

    # -- writing ----------------------------------------------------------------------------------

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Encrypt, and have that written."""
        check_volume_id(volume_id)
        view = flat(data)
        _check(len(view), offset)
        buffers = self._small if len(view) <= _SMALL else self._large
        buffer = buffers.take(len(view))
        stored = memoryview(buffer)[: len(view)]
        # Not in a thread: it would hold the interpreter all the same, for a millisecond and a half at most.
        self._space(volume_id).encrypt(view, offset, stored)
        written = await self.inner.write(volume_id, stored, offset)
        # Not of a write that failed: whoever was carrying it out may be at it still.
        buffers.give(buffer)
        return written

    def start_write(self, volume_id: str, data: Buffer, offset: int, *, alone: bool = False) -> Started | None:
        """Encrypt a small one, and have it begun."""
        view = flat(data)
        if len(view) > _SMALL or not _whole(len(view), offset):
            return None
        buffer = self._small.take(len(view))
        stored = memoryview(buffer)[: len(view)]
        self._space(volume_id).encrypt(view, offset, stored)
        started = self.inner.start_write(volume_id, stored, offset, alone=alone)
        if started is None:
            self._small.give(buffer)
            return None
        return _Started(started, self._small, buffer)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Forward."""
        _check(length, offset)
        await self.inner.discard(volume_id, length, offset)

    # -- manifest ---------------------------------------------------------------------------------

    def _manifest(self, volume_id: str) -> ManifestCipher:
        if volume_id not in self._manifests:
            self._manifests[volume_id] = ManifestCipher(self._key, volume_id)
        return self._manifests[volume_id]

    async def get_manifest(self, volume_id: str) -> Manifest:
        """The manifest, opened. Raises WrongKey where it was sealed with another key, or never."""
        stored = await self.inner.get_manifest(volume_id)
        if stored.version == NO_VERSION:
            return stored
        return Manifest(self._manifest(volume_id).opened(stored.data), stored.version)

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """Seal it, and have that put."""
        check_volume_id(volume_id)
        return await self.inner.put_manifest(volume_id, self._manifest(volume_id).seal(bytes(data)), if_version)


def _whole(size: int, offset: int) -> bool:
    return size > 0 and not size % BLOCK and not offset % BLOCK


def _check(size: int, offset: int) -> None:
    check_range(size, offset)
    if size and not _whole(size, offset):
        raise InvalidArgument(f"{size} bytes at {offset} are not whole blocks of {BLOCK} bytes, which are encrypted")
