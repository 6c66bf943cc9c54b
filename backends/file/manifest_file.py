"""A manifest in a file of its own: read, and replaced whole."""

import os
import secrets
import struct
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_64_intdigest

from fusevol.backends.base import NO_VERSION, Manifest
from fusevol.backends.systemcalls import fsync_directory, overwrites_in_place
from fusevol.errors import CorruptData, ManifestConflict, VolumeNotFound

__all__ = ["ManifestFile"]

_ENVELOPE = struct.Struct("<QQ")


class ManifestFile:
    """The manifest in a volume's directory, which may be replaced by others at any time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = f"{directory}/manifest"
        # Only a local file system is sure to show at once that another file is there now.
        self._keeps = overwrites_in_place(directory)
        self._kept: tuple[int, tuple[int, ...], Manifest] | None = None

    def read(self) -> Manifest:
        """What is there now. Raises VolumeNotFound, CorruptData, OSError.

        Every flush asks, so the file is kept open: as long as it is the one under its name, which no other can be
        taken for while this one exists, it need not be read again.
        """
        if self._kept is not None:
            _, identity, manifest = self._kept
            with suppress(OSError):  # `_load` comes upon the same
                if _identity(os.stat(self._path)) == identity:
                    return manifest
            self.close()
        return self._load(keep=self._keeps)

    def _load(self, *, keep: bool) -> Manifest:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not self._directory.is_dir():
                name, where = self._directory.name, self._directory.parent
                raise VolumeNotFound(f'volume "{name}" does not exist in {where}') from None
            return Manifest(b"", NO_VERSION)
        try:
            # Before it is read: what is written over meanwhile looks like another file then.
            status = os.fstat(fd)
            manifest = self._parsed(os.read(fd, status.st_size))
        except BaseException:
            os.close(fd)
            raise
        if keep:
            self._kept = fd, _identity(status), manifest
        else:
            os.close(fd)
        return manifest

    def _parsed(self, stored: bytes) -> Manifest:
        if len(stored) < _ENVELOPE.size:
            raise CorruptData(f"{self._path} is cut short: {len(stored)} bytes")
        version, checksum = _ENVELOPE.unpack_from(stored)
        body = stored[_ENVELOPE.size :]
        if checksum != xxh3_64_intdigest(body, version):
            raise CorruptData(f"{self._path} does not match its checksum")
        return Manifest(body, str(version))

    def replace(self, body: bytes, if_version: str) -> str:
        """Compare and swap, under the caller's lock; return the new version. Blocks.

        Raises ManifestConflict, and as `read`.
        """
        found = self._load(keep=False).version
        if found != if_version:
            raise ManifestConflict(
                f'the manifest of volume "{self._directory.name}" is at version {found or "none"}, '
                f"not {if_version or 'none'}"
            )
        # Drawn, not counted: a volume deleted and made again must not come upon the versions of the old one.
        version = secrets.randbits(64)
        temporary = f"{self._path}.new"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            whole = memoryview(_ENVELOPE.pack(version, xxh3_64_intdigest(body, version)) + body)
            while whole:
                whole = whole[os.write(fd, whole) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, self._path)
        fsync_directory(self._directory)
        return str(version)

    def close(self) -> None:
        """Let go of the file; `read` opens it again."""
        if self._kept is not None:
            os.close(self._kept[0])
            self._kept = None


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
