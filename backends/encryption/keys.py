"""Keys: one for a pool, in a file, and those of its volumes, which are derived from it (RFC 5869)."""

import errno
import os
import re
import secrets
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fusevol.backends.systemcalls import fsync_directory, translate
from fusevol.errors import AlreadyExists, InvalidArgument

__all__ = ["KEY_BYTES", "KEY_ID_BYTES", "Key", "make_key_file", "read_key_file"]

KEY_BYTES: Final = 32
KEY_ID_BYTES: Final = 8
#: XTS takes two keys of AES-256.
_SPACE_KEY_BYTES: Final = 64
_TEXT: Final = re.compile(rb"\s*([0-9A-Fa-f]{%d})\s*" % (2 * KEY_BYTES))
#: More than a key can be, with whatever white space people leave behind it.
_MOST_BYTES: Final = 4096
#: Of the bits of a file's mode, those that let others know the key, or put another in its place.
_OTHERS: Final = 0o027


class Key:
    """The key of a pool.

    name: where it is from, for errors. Never shown: the key itself.
    """

    __slots__ = ("_secret", "id", "name")

    def __init__(self, secret: bytes, name: str = "the key") -> None:
        """secret: KEY_BYTES that nobody can guess. Raises InvalidArgument for another length."""
        if len(secret) != KEY_BYTES:
            raise InvalidArgument(f"{name} has {len(secret)} bytes instead of {KEY_BYTES}")
        self._secret = secret
        self.name = name
        #: What tells it from other keys, and says nothing of it.
        self.id = self._derived(KEY_ID_BYTES, "key id")

    def for_space(self, volume_id: str) -> bytes:
        """The key that a volume's bytes are encrypted with."""
        return self._derived(_SPACE_KEY_BYTES, f"space {volume_id}")

    def for_manifest(self, volume_id: str) -> bytes:
        """The key that a volume's manifest is sealed with."""
        return self._derived(KEY_BYTES, f"manifest {volume_id}")

    def _derived(self, length: int, purpose: str) -> bytes:
        return HKDF(SHA256(), length, salt=None, info=f"fusevol {purpose}".encode()).derive(self._secret)

    def __repr__(self) -> str:
        return f"<Key {self.name}>"


def read_key_file(path: str | os.PathLike[str]) -> Key:
    """The key in a file: 64 hexadecimal digits.

    Raises InvalidArgument for something else, or a file that others may read, BackendError where it cannot be read.
    """
    path = Path(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode, text = os.fstat(fd).st_mode, os.read(fd, _MOST_BYTES)
        finally:
            os.close(fd)
    except OSError as error:
        raised = translate(error, f'the key "{path}" cannot be read')
        if error.errno == errno.ENOENT:
            raised.hint = "without it, nothing in the pool can be read; put its copy there"
        raise raised from error
    if mode & _OTHERS:
        raise InvalidArgument(f'the key "{path}" is not safe from others', hint=f"chmod 600 {path}")
    if not (match := _TEXT.fullmatch(text)):
        raise InvalidArgument(
            f'"{path}" holds no key, which is {2 * KEY_BYTES} hexadecimal digits',
            hint="put the copy of the pool's key there; for a new pool, make one in another file: fusevol pool key",
        )
    return Key(bytes.fromhex(match[1].decode()), f'the key "{path}"')


def make_key_file(path: str | os.PathLike[str]) -> None:
    """Make a new key, in a file that its owner alone can read; durable when this returns. So is its directory.

    Raises AlreadyExists where there is something, which may be the only copy of a key, BackendError.
    """
    path = Path(os.path.abspath(path))
    try:
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            fsync_directory(path.parent.parent)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(
            f'"{path}" exists already', hint="it may be the only copy of a key: choose another name"
        ) from None
    except OSError as error:
        raise translate(error, f'the key "{path}" cannot be written') from error
    try:
        with open(fd, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
            file.flush()
            os.fsync(fd)
        fsync_directory(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise translate(error, f'the key "{path}" cannot be written') from error
