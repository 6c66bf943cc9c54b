"""Handlers that pyfuse3 has no words for, given to libfuse all the same: fallocate(2), and lseek(2) for holes.

pyfuse3 fills in a table of handlers (struct fuse_lowlevel_ops of fuse_lowlevel.h, to which libfuse only ever adds at
the end) and makes a session of it with fuse_session_new(3). As everything that is linked dynamically it calls that
through a table of addresses of its own, which the dynamic linker fills in (ELF, "procedure linkage"). While pyfuse3
makes its session, our function is in that place: it calls the library's with a copy of the table of handlers to which
ours are added. All of these are documented interfaces; nothing private is read or changed.

Where something is not as expected nothing is added, and all else works: the kernel then answers these two by itself,
fallocate(2) with EOPNOTSUPP, lseek(2) by taking all of a file for data.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import mmap
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import trio
from pyfuse3 import FUSEError

from fusevol.mount.waiter import PollingWaiter

__all__ = ["ExtraHandlers", "calls_of"]

log = logging.getLogger(__name__)

#: Where the table has them.
_FALLOCATE, _LSEEK = 40, 43
#: fuse_req_t, fuse_ino_t, then as fuse_lowlevel.h says, and struct fuse_file_info last.
_Fallocate = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)
_Lseek = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p)
#: The arguments, the table, its size; then the user's data, after the library's version where it asks for that.
_New = ctypes.CFUNCTYPE(
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_void_p
)
#: How it is called by programs made with libfuse up to 3.16, and later.
_NEW_SESSION = (b"fuse_session_new", b"fuse_session_new_versioned")
_POINTER = ctypes.sizeof(ctypes.c_void_p)

#: Of dlfcn.h and elf.h: Elf64_Dyn, Elf64_Rela, the name in Elf64_Sym, and tags of the first.
_DI_LINKMAP = 2
_DYNAMIC, _RELOCATION, _NAME, _SYMBOL_SIZE = struct.Struct("=QQ"), struct.Struct("=QQq"), struct.Struct("=I"), 24
_PLTRELSZ, _STRTAB, _SYMTAB, _RELA, _RELASZ, _JMPREL = 2, 5, 6, 7, 8, 23


class _LinkMap(ctypes.Structure):
    """The beginning of struct link_map of link.h."""

    _fields_ = (("base", ctypes.c_uint64), ("name", ctypes.c_char_p), ("dynamic", ctypes.c_uint64))


class ExtraHandlers:
    """The handlers `fallocate` and `lseek` of `operations`, where it has them."""

    def __init__(self, operations: pyfuse3.Operations) -> None:
        self.operations: Any = operations
        self._tasks: trio.Nursery | None = None
        self._waiter: PollingWaiter | None = None
        #: Finds the functions of libfuse too, which it is linked with.
        self._library = ctypes.CDLL(pyfuse3.__file__)
        #: As long as the session lasts it calls these.
        self._table: dict[int, Any] = {}
        if hasattr(operations, "fallocate"):
            self._table[_FALLOCATE] = _Fallocate(self._fallocate)
        if hasattr(operations, "lseek"):
            self._table[_LSEEK] = _Lseek(self._lseek)

    def init(self, mountpoint: str, options: set[str]) -> None:
        """pyfuse3.init, with these handlers besides pyfuse3's own. Raises as that does."""
        with contextlib.ExitStack() as stack:
            try:
                if self._table:
                    stack.enter_context(self._adding())
            except (OSError, ValueError, AttributeError) as error:
                log.warning("fallocate and holes are not offered: %s", error)
            pyfuse3.init(self.operations, mountpoint, options)

    @contextlib.contextmanager
    def _adding(self) -> Iterator[None]:
        """While this lasts, sessions that are made have these handlers. Raises OSError, ValueError, AttributeError."""
        reply = self._library.fuse_reply_err, self._library.fuse_reply_lseek
        reply[0].argtypes = [ctypes.c_void_p, ctypes.c_int]
        reply[1].argtypes = [ctypes.c_void_p, ctypes.c_int64]
        place = calls_of(self._library, _NEW_SESSION)
        theirs = place.value or 0

        def new(arguments: int, table: int, size: int, fourth: int, fifth: int) -> int | None:
            handlers = (ctypes.c_void_p * (size // _POINTER)).from_buffer_copy(ctypes.string_at(table, size))
            for number, handler in self._table.items():
                if number < len(handlers):
                    handlers[number] = ctypes.cast(handler, ctypes.c_void_p)
                else:
                    log.warning("this libfuse is too old for handler %d", number)
            session: int | None = _New(theirs)(arguments, ctypes.addressof(handlers), size, fourth, fifth)
            return session

        ours = _New(new)
        with _writable(ctypes.addressof(place)):
            place.value = ctypes.cast(ours, ctypes.c_void_p).value
        try:
            yield
        finally:
            with _writable(ctypes.addressof(place)):
                place.value = theirs

    # -- requests ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def answering(self, waiter: PollingWaiter | None) -> AsyncIterator[None]:
        """While this lasts requests are answered; it ends once all are. waiter: what pyfuse3 waits with for others."""
        self._waiter = waiter
        async with trio.open_nursery() as self._tasks:
            yield

    def _fallocate(self, request: int, node: int, mode: int, offset: int, length: int, _info: int) -> None:
        self._begin(request, lambda: self.operations.fallocate(node, mode, offset, length))

    def _lseek(self, request: int, node: int, offset: int, whence: int, _info: int) -> None:
        self._begin(request, lambda: self.operations.lseek(node, offset, whence))

    def _begin(self, request: int, handler: Callable[[], Awaitable[int | None]]) -> None:
        # libfuse calls, and nothing may be raised into it.
        try:
            assert self._tasks is not None
            self._tasks.start_soon(self._carry_out, request, handler)
            if self._waiter is not None:
                self._waiter.taken_on()
        except BaseException as error:  # noqa: BLE001 -- told to whoever asked
            log.error("a request cannot be handled: %r", error)
            self._library.fuse_reply_err(request, errno.EIO)

    async def _carry_out(self, request: int, handler: Callable[[], Awaitable[int | None]]) -> None:
        """Handle and answer a request. What is no FUSEError ends the mount, as with other handlers."""
        try:
            found = await handler()
        except FUSEError as error:
            self._library.fuse_reply_err(request, error.errno)
        except BaseException:
            self._library.fuse_reply_err(request, errno.EIO)
            raise
        else:
            if found is None:
                self._library.fuse_reply_err(request, 0)
            else:
                self._library.fuse_reply_lseek(request, found)
        finally:
            if self._waiter is not None:
                self._waiter.let_go()


def calls_of(library: ctypes.CDLL, names: tuple[bytes, ...]) -> ctypes.c_void_p:
    """Where a loaded library keeps the address of a function that it calls, which has one of these names.

    It may be in memory that cannot be written. Raises ValueError where there is no such place, OSError.
    """
    if _POINTER != 8:
        raise ValueError("this is no 64-bit system")
    found = ctypes.POINTER(_LinkMap)()
    if ctypes.CDLL(None).dlinfo(ctypes.c_void_p(library._handle), _DI_LINKMAP, ctypes.byref(found)):
        raise OSError(errno.ENOSYS, "the dynamic linker does not tell what it has loaded")
    at, tags = found.contents.dynamic, dict[int, int]()
    while (entry := _DYNAMIC.unpack(ctypes.string_at(at, _DYNAMIC.size)))[0]:
        tags.setdefault(*entry)
        at += _DYNAMIC.size
    for table, size in ((_JMPREL, _PLTRELSZ), (_RELA, _RELASZ)):
        entries = ctypes.string_at(tags[table], tags[size]) if table in tags else b""
        for offset, info, _ in _RELOCATION.iter_unpack(entries):
            if symbol := info >> 32:
                (name,) = _NAME.unpack(ctypes.string_at(tags[_SYMTAB] + symbol * _SYMBOL_SIZE, _NAME.size))
                if ctypes.string_at(tags[_STRTAB] + name) in names:
                    return ctypes.c_void_p.from_address(found.contents.base + offset)
    raise ValueError(f"{library._name} does not call {b' or '.join(names).decode()}")


@contextlib.contextmanager
def _writable(address: int) -> Iterator[None]:
    """Let memory be written that the dynamic linker may have protected (RELRO). Raises OSError."""
    protection = _protection(address)
    if protection & mmap.PROT_WRITE:
        yield
        return
    page = ctypes.c_void_p(address - address % mmap.PAGESIZE)
    _protect(page, protection | mmap.PROT_WRITE)
    try:
        yield
    finally:
        _protect(page, protection)


def _protection(address: int) -> int:
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, allowed = line.split()[:2]
        low, high = (int(number, 16) for number in addresses.split("-"))
        if low <= address < high:
            bits = zip("rwx", (mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC), strict=True)
            return sum(bit for letter, bit in bits if letter in allowed)
    raise OSError(errno.EFAULT, "no memory is there")


def _protect(page: ctypes.c_void_p, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), protection):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
