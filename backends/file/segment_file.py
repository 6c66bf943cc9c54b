"""One file of a volume's space, opened: the descriptors that it is read and written by."""

import errno
import os
from pathlib import Path

from fusevol.backends.systemcalls import ALIGNMENT, is_aligned

__all__ = ["Segment"]


class Segment:
    """The open descriptors of a segment: buffered for reading, and direct for writing where that exists.

    users: how many are at work with it. writable: False on a file system that is read-only, where it can be read.
    """

    __slots__ = ("buffered", "direct", "users", "writable")

    def __init__(self, buffered: int, direct: int | None, *, writable: bool) -> None:
        self.buffered = buffered
        self.direct = direct
        self.users = 0
        self.writable = writable

    @classmethod
    def open(cls, path: Path, *, create: bool) -> "Segment":
        """Open a file; create: make it, where it is not there. Raises OSError."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            buffered = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        except OSError as error:
            if error.errno != errno.EROFS or create:
                raise
            return cls(os.open(path, os.O_RDONLY | os.O_CLOEXEC), None, writable=False)
        try:
            return cls(buffered, os.open(path, flags | os.O_DIRECT), writable=True)
        except OSError as error:
            if error.errno != errno.EINVAL:
                os.close(buffered)
                raise
        return cls(buffered, None, writable=True)

    def close(self) -> None:
        """Close it."""
        os.close(self.buffered)
        if self.direct is not None:
            os.close(self.direct)

    def write(self, data: memoryview, offset: int, *, durable: bool) -> None:
        """Write all of it, around the page cache where that can be. Blocks. Raises OSError."""
        fd = self.direct if self.direct is not None and is_aligned(data, offset) else self.buffered
        while data:
            written = os.pwritev(fd, [data], offset, os.RWF_DSYNC if durable else 0)
            data, offset = data[written:], offset + written
            if written % ALIGNMENT:
                fd = self.buffered
