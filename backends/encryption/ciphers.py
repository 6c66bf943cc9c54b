"""Bytes and manifests, into what is stored and back (docs/format.md section 7).

A space is encrypted as a disk is, with AES-256 in XTS mode (IEEE 1619, NIST SP 800-38E): nothing grows, any block can
be read by itself, and who sees the same bytes written twice to one place learns that they are the same, and no more. A
manifest is sealed with AES-256-GCM (NIST SP 800-38D) and a random nonce.
"""

import secrets
import struct
from typing import Final

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fusevol.backends.base import SEALED
from fusevol.backends.encryption.keys import KEY_ID_BYTES, Key
from fusevol.errors import CorruptData, WrongKey

__all__ = ["BLOCK", "ManifestCipher", "SpaceCipher"]

#: What is read and written at least. A block that was never written is zeros in the store, and to its reader.
BLOCK: Final = 4096
#: Bytes of a data unit of XTS, which has one tweak, its number. To begin with a unit takes as long as going through
#: it, so that within one, what comes before the bytes that are wanted is gone through as well.
_UNIT: Final = 64 << 10
_WORDS: Final = BLOCK // 8
_HEAD: Final = struct.Struct(f"<{len(SEALED)}s{KEY_ID_BYTES}s12s")


class SpaceCipher:
    """The cipher of one volume's space. Offsets and sizes are multiples of BLOCK. Threads may share it."""

    def __init__(self, key: Key, volume_id: str) -> None:
        self._key = algorithms.AES(key.for_space(volume_id))

    def encrypt(self, data: memoryview, offset: int, into: memoryview) -> None:
        """Encrypt what is to be stored at `offset`, into memory of the same size."""
        self._transform(data, offset, into, encrypt=True)

    def decrypt(self, stored: memoryview, offset: int) -> bytearray:
        """What was written at `offset`, from what is stored there."""
        data = bytearray(len(stored))
        self._transform(stored, offset, memoryview(data), encrypt=False)
        words = np.frombuffer(stored, np.uint64)
        # Most blocks show by their first word that they are no hole.
        for block in np.flatnonzero(words[::_WORDS] == 0).tolist():
            if not words[block * _WORDS : (block + 1) * _WORDS].any():
                data[block * BLOCK : (block + 1) * BLOCK] = bytes(BLOCK)
        return data

    def _transform(self, data: memoryview, offset: int, into: memoryview, *, encrypt: bool) -> None:
        at = 0
        while at < len(data):
            unit, skipped = divmod(offset + at, _UNIT)
            end = min(at + _UNIT - skipped, len(data))
            cipher = Cipher(self._key, modes.XTS(unit.to_bytes(16, "little")))
            context = cipher.encryptor() if encrypt else cipher.decryptor()
            if skipped:
                # A block of 16 bytes depends on where in the unit it is, and not on those before it.
                padded = bytearray(skipped + end - at)
                padded[skipped:] = data[at:end]
                into[at:end] = memoryview(context.update(padded))[skipped:]
            else:
                context.update_into(data[at:end], into[at:end])
            at = end


class ManifestCipher:
    """Seals the manifest of one volume, so that only who has the key can read it, or make another one."""

    def __init__(self, key: Key, volume_id: str) -> None:
        self._key = key
        self._volume_id = volume_id
        self._cipher = AESGCM(key.for_manifest(volume_id))

    def seal(self, data: bytes) -> bytes:
        """What is to be stored."""
        nonce = secrets.token_bytes(12)
        return _HEAD.pack(SEALED, self._key.id, nonce) + self._cipher.encrypt(nonce, data, None)

    def opened(self, stored: bytes) -> bytes:
        """What was sealed.

        Raises WrongKey where this is not the key to it, or it was never sealed, CorruptData where it is damaged.
        """
        where = f'the manifest of volume "{self._volume_id}"'
        if not stored.startswith(SEALED[: len(stored)]):
            raise WrongKey(
                f"{where} is not encrypted",
                hint="if its pool had no key when it was made, say none for it; if it had, this is somebody else's",
            )
        if len(stored) < _HEAD.size:
            raise CorruptData(f"{where} is cut short: {len(stored)} bytes")
        _, key_id, nonce = _HEAD.unpack_from(stored)
        if key_id != self._key.id:
            raise WrongKey(
                f"{where} is encrypted, and {self._key.name} is not the one that opens it",
                hint="put the one that does in its place, or say in config.toml where it is",
            )
        try:
            return self._cipher.decrypt(nonce, stored[_HEAD.size :], None)
        except InvalidTag:
            raise CorruptData(f"{where} is damaged: it is not what was sealed with {self._key.name}") from None
