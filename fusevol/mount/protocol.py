"""The bytes of FUSE_INIT, and what to answer.

Layouts and numbers are those of include/uapi/linux/fuse.h: `fuse_in_header` (40 bytes) with `fuse_init_in`
(16 bytes; 64 with FUSE_INIT_EXT), `fuse_out_header` (16 bytes) with `fuse_init_out` (64 bytes), in the
machine's own byte order. The kernel names what it can do, the server answers with what it wants of that.
"""

from __future__ import annotations

import dataclasses
import enum
import mmap
import struct

from fusevol.errors import NotSupported

__all__ = ["InitFlag", "InitReply", "InitRequest", "negotiate"]

FUSE_INIT = 26
MAJOR = 7
#: Linux 3.15: the first whose fuse_init_out has all the fields used here.
OLDEST_MINOR = 23

_IN_HEADER = struct.Struct("=IIQQIIIHH")
_INIT_IN = struct.Struct("=IIII")
_INIT_IN_EXT = struct.Struct("=IIIII44x")
_OUT_HEADER = struct.Struct("=IiQ")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")


class InitFlag(enum.IntFlag):
    """What a connection can do: flags and, from bit 32, flags2 of INIT."""

    ASYNC_READ = 1 << 0
    ATOMIC_O_TRUNC = 1 << 3
    EXPORT_SUPPORT = 1 << 4
    BIG_WRITES = 1 << 5
    DONT_MASK = 1 << 6
    AUTO_INVAL_DATA = 1 << 12
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    WRITEBACK_CACHE = 1 << 16
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    HANDLE_KILLPRIV = 1 << 19
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    EXPLICIT_INVAL_DATA = 1 << 25
    HANDLE_KILLPRIV_V2 = 1 << 28
    SETXATTR_EXT = 1 << 29
    INIT_EXT = 1 << 30


#: Asked for on top of what libfuse asks for, because only one host writes a volume:
#: - HANDLE_KILLPRIV_V2: the filesystem clears setuid and setgid itself, so the kernel does not ask for
#:   security.capability before every write(2);
#: - PARALLEL_DIROPS, ASYNC_DIO: requests in one directory, and of one O_DIRECT call, at once;
#: - CACHE_SYMLINKS, EXPLICIT_INVAL_DATA: the kernel keeps what it has until it is told;
#: - ABORT_ERROR: reading from the device tells an abort (ECONNABORTED) from an unmount (ENODEV).
ADDED = (
    InitFlag.HANDLE_KILLPRIV_V2
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.ASYNC_DIO
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.ABORT_ERROR
    | InitFlag.MAX_PAGES
    | InitFlag.BIG_WRITES
)

#: Never asked for, whatever libfuse says. READDIRPLUS_AUTO makes the kernel send plain READDIR now and then,
#: which pyfuse3 answers with ENOSYS. AUTO_INVAL_DATA is the opposite of EXPLICIT_INVAL_DATA.
REFUSED = InitFlag.READDIRPLUS_AUTO | InitFlag.AUTO_INVAL_DATA


@dataclasses.dataclass(frozen=True)
class InitRequest:
    """INIT as the kernel sends it."""

    unique: int
    major: int
    minor: int
    max_readahead: int
    flags: InitFlag

    @classmethod
    def parse(cls, message: bytes) -> InitRequest:
        """Read the first request of a connection; NotSupported where it is not an INIT of major version 7."""
        if len(message) < _IN_HEADER.size + _INIT_IN.size:
            raise NotSupported(f"the kernel's first FUSE request has {len(message)} bytes, too few for INIT")
        _length, opcode, unique, *_rest = _IN_HEADER.unpack_from(message)
        major, minor, max_readahead, flags = _INIT_IN.unpack_from(message, _IN_HEADER.size)
        if opcode != FUSE_INIT or major != MAJOR or minor < OLDEST_MINOR:
            raise NotSupported(
                f"the kernel speaks FUSE {major}.{minor} (request {opcode}), not {MAJOR}.{OLDEST_MINOR} or later"
            )
        if flags & InitFlag.INIT_EXT and len(message) >= _IN_HEADER.size + _INIT_IN_EXT.size:
            flags |= _INIT_IN_EXT.unpack_from(message, _IN_HEADER.size)[4] << 32
        return cls(unique, major, minor, max_readahead, InitFlag(flags))

    def pack(self) -> bytes:
        """The request as bytes, always in the long form."""
        low, high = int(self.flags) & 0xFFFFFFFF, int(self.flags) >> 32
        body = _INIT_IN_EXT.pack(self.major, self.minor, self.max_readahead, low, high)
        return _IN_HEADER.pack(_IN_HEADER.size + len(body), FUSE_INIT, self.unique, 0, 0, 0, 0, 0, 0) + body


@dataclasses.dataclass(frozen=True)
class InitReply:
    """The server's answer to INIT."""

    minor: int
    max_readahead: int
    flags: InitFlag
    max_background: int
    congestion_threshold: int
    max_write: int
    time_gran: int
    max_pages: int

    @classmethod
    def parse(cls, message: bytes) -> InitReply:
        """Read an answer; NotSupported where it is an error."""
        if len(message) >= _OUT_HEADER.size:
            _length, error, _unique = _OUT_HEADER.unpack_from(message)
            if error:
                raise NotSupported(f"libfuse refuses the INIT request with errno {-error}")
        if len(message) < _OUT_HEADER.size + _INIT_OUT.size:
            raise NotSupported(f"libfuse's answer to INIT has {len(message)} bytes, too few")
        fields = _INIT_OUT.unpack_from(message, _OUT_HEADER.size)
        major, minor, max_readahead, low, max_background, congestion, max_write, time_gran, max_pages, _, high = fields
        if major != MAJOR:
            raise NotSupported(f"libfuse speaks FUSE {major}.{minor}, not {MAJOR}.x")
        flags = InitFlag(low | (high << 32 if low & InitFlag.INIT_EXT else 0))
        return cls(minor, max_readahead, flags, max_background, congestion, max_write, time_gran, max_pages)

    def pack(self, unique: int) -> bytes:
        """The answer as bytes, to the request numbered `unique`."""
        low, high = int(self.flags) & 0xFFFFFFFF, int(self.flags) >> 32
        body = _INIT_OUT.pack(
            MAJOR,
            self.minor,
            self.max_readahead,
            low,
            self.max_background,
            self.congestion_threshold,
            self.max_write,
            self.time_gran,
            self.max_pages,
            0,
            high,
        )
        return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body


def negotiate(
    kernel: InitRequest,
    library: InitReply,
    *,
    max_request: int,
    max_readahead: int,
    max_background: int,
    congestion_threshold: int,
    dont_mask: bool = False,
) -> InitReply:
    """What to answer `kernel`, when libfuse would have answered `library`.

    Never more than the kernel offers, and never larger requests than libfuse has room for. Flags whose
    requests libfuse has to understand come from its own answer (which follows the Operations' attributes);
    those that only concern the kernel are added.
    """
    flags = (library.flags | ADDED) & ~REFUSED
    if dont_mask:
        flags |= InitFlag.DONT_MASK
    flags &= kernel.flags
    page = mmap.PAGESIZE
    largest = min(max_request, library.max_write)
    if InitFlag.MAX_PAGES not in flags:
        largest = min(largest, 32 * page)
    pages = max(largest // page, 1)
    return InitReply(
        minor=min(kernel.minor, library.minor),
        max_readahead=min(kernel.max_readahead, max_readahead),
        flags=flags,
        max_background=max_background,
        congestion_threshold=min(congestion_threshold, max_background),
        max_write=pages * page,
        time_gran=1,
        max_pages=pages if InitFlag.MAX_PAGES in flags else 0,
    )
