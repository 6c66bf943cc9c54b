"""EncryptedBackend: a backend whose store sees nothing but encrypted bytes."""

import mmap
from dataclasses import replace
from functools import partial
from typing import Final

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Backend, Manifest, Started
from fusevol.backends.checks import check_range, check_volume_id, flat
from fusevol.backends.encryption.ciphers import BLOCK, ManifestCipher, SpaceCipher
from fusevol.backends.encryption.keys import Key
from fusevol.backends.wrappers.wrapper import Wrapper
from fusevol.errors import InvalidArgument

__all__ = ["EncryptedBackend"]

#: More than this takes long enough to be worth a thread.
_LARGE: Final = 256 << 10
#: Writes that begin at once are small; encrypting a large one would keep the loop from others.
_SMALL: Final = 64 << 10
#: Buffers that are used again: the largest batch of a log, and how many of them may be on their way.
_BUFFER_BYTES: Final = 9 << 20
_BUFFERS: Final = 4


class EncryptedBackend(Wrapper):
    """Encrypts what another backend is to keep, and decrypts what it kept: bytes, and manifests.

    What the store still sees: how many volumes there are, their ids, how many bytes each has and which of them are
    written, read and given back when. Whoever can write to the store can damage what is there, which is noticed, or put
    all of a volume back as it once was, which is not.

    A space is read, written and given back in blocks (`Traits.block`).
    """

    def __init__(self, inner: Backend, key: Key) -> None:
        super().__init__(inner)
        self.traits = replace(inner.traits, block=BLOCK)
        self._key = key
        self._spaces: dict[str, SpaceCipher] = {}
        self._manifests: dict[str, ManifestCipher] = {}
        self._buffers: list[mmap.mmap] = []

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
        buffer = self._buffer(len(view))
        stored = memoryview(buffer)[: len(view)]
        encrypt = partial(self._space(volume_id).encrypt, view, offset, stored)
        if len(view) > _LARGE:
            await trio.to_thread.run_sync(encrypt)
        else:
            encrypt()
        written = await self.inner.write(volume_id, stored, offset)
        # Not of a write that failed: whoever was carrying it out may be at it still.
        if len(buffer) == _BUFFER_BYTES and len(self._buffers) < _BUFFERS:
            self._buffers.append(buffer)
        return written

    def start_write(self, volume_id: str, data: Buffer, offset: int, *, alone: bool = False) -> Started | None:
        """Encrypt a small one, and have it begun."""
        view = flat(data)
        if len(view) > _SMALL or not _whole(len(view), offset):
            return None
        stored = memoryview(mmap.mmap(-1, len(view)))
        self._space(volume_id).encrypt(view, offset, stored)
        return self.inner.start_write(volume_id, stored, offset, alone=alone)

    def _buffer(self, size: int) -> mmap.mmap:
        """Memory at the beginning of a page, as writing around the page cache needs it."""
        if size > _BUFFER_BYTES:
            return mmap.mmap(-1, size)
        return self._buffers.pop() if self._buffers else mmap.mmap(-1, _BUFFER_BYTES)

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
