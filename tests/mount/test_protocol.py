"""INIT: its bytes, and what is agreed with kernels and libraries that can less."""

from __future__ import annotations

import struct

import pytest

from fusevol.errors import NotSupported
from fusevol.mount.protocol import InitFlag, InitReply, InitRequest, negotiate

ALL = InitFlag((1 << 31) - 1)
MIB = 1 << 20

KERNEL = InitRequest(unique=2, major=7, minor=45, max_readahead=131072, flags=ALL)
LIBRARY = InitReply(
    minor=38,
    max_readahead=131072,
    flags=InitFlag.ASYNC_READ | InitFlag.ATOMIC_O_TRUNC | InitFlag.AUTO_INVAL_DATA | InitFlag.DO_READDIRPLUS,
    max_background=0,
    congestion_threshold=0,
    max_write=MIB,
    time_gran=1,
    max_pages=256,
)


def agreed(kernel: InitRequest = KERNEL, library: InitReply = LIBRARY, *, dont_mask: bool = False) -> InitReply:
    return negotiate(
        kernel, library, max_request=MIB, max_readahead=4 * MIB, max_background=64, congestion_threshold=48,
        dont_mask=dont_mask,
    )  # fmt: skip


def with_flags(flags: InitFlag) -> InitRequest:
    return InitRequest(KERNEL.unique, 7, 45, 131072, flags)


def test_the_bytes_are_those_of_the_kernel_header() -> None:
    header = struct.pack("=IIQQIIIHH", 104, 26, 2, 0, 0, 0, 0, 0, 0)
    body = struct.pack("=IIIII11I", 7, 38, 4096, 1 << 30 | 1 << 16, 1 << 3, *[0] * 11)
    request = InitRequest.parse(header + body)
    assert request == InitRequest(2, 7, 38, 4096, InitFlag.INIT_EXT | InitFlag.WRITEBACK_CACHE | (1 << 35))
    assert request.pack() == header + body
    reply = struct.pack("=IiQ", 80, 0, 2)
    reply += struct.pack("=IIIIHHIIHHI7I", 7, 38, 131072, 1, 0, 0, MIB, 1, 256, 0, 0, *[0] * 7)
    assert InitReply.parse(reply).max_pages == 256
    assert InitReply.parse(reply).pack(2) == reply


def test_the_request_of_a_kernel_without_the_long_form_is_read() -> None:
    message = struct.pack("=IIQQIIIHH", 56, 26, 2, 0, 0, 0, 0, 0, 0) + struct.pack("=IIII", 7, 31, 4096, 1)
    assert InitRequest.parse(message) == InitRequest(2, 7, 31, 4096, InitFlag.ASYNC_READ)


@pytest.mark.parametrize(("major", "minor"), [(8, 0), (7, 12), (6, 99)])
def test_a_kernel_of_another_age_is_refused(major: int, minor: int) -> None:
    with pytest.raises(NotSupported, match=f"FUSE {major}.{minor} "):
        InitRequest.parse(InitRequest(2, major, minor, 0, InitFlag(0)).pack())


@pytest.mark.parametrize("message", [b"", bytes(16), bytes(56)])
def test_what_is_no_init_request_is_refused(message: bytes) -> None:
    with pytest.raises(NotSupported):
        InitRequest.parse(message)


def test_a_library_that_answers_with_an_error_is_not_used() -> None:
    with pytest.raises(NotSupported, match="errno 71"):
        InitReply.parse(struct.pack("=IiQ", 16, -71, 2))
    with pytest.raises(NotSupported):
        InitReply.parse(b"short")


def test_flags_of_the_library_are_kept_and_ours_added() -> None:
    flags = agreed().flags
    for flag in (
        InitFlag.ASYNC_READ,
        InitFlag.ATOMIC_O_TRUNC,
        InitFlag.DO_READDIRPLUS,
        InitFlag.HANDLE_KILLPRIV_V2,
        InitFlag.PARALLEL_DIROPS,
        InitFlag.ASYNC_DIO,
        InitFlag.CACHE_SYMLINKS,
        InitFlag.EXPLICIT_INVAL_DATA,
    ):
        assert flag in flags
    # What depends on the operations comes from the library, which asked them.
    assert not flags & (InitFlag.WRITEBACK_CACHE | InitFlag.POSIX_ACL | InitFlag.DONT_MASK)


def test_flags_that_pyfuse3_cannot_serve_are_never_agreed_on() -> None:
    assert not agreed().flags & (InitFlag.READDIRPLUS_AUTO | InitFlag.AUTO_INVAL_DATA | InitFlag.SETXATTR_EXT)


def test_operations_that_apply_the_umask_get_it() -> None:
    assert InitFlag.DONT_MASK in agreed(dont_mask=True).flags


@pytest.mark.parametrize("missing", [flag for flag in InitFlag if flag & agreed().flags])
def test_nothing_is_agreed_on_that_the_kernel_does_not_offer(missing: InitFlag) -> None:
    assert agreed(with_flags(ALL & ~missing)).flags == agreed().flags & ~missing


def test_a_kernel_that_counts_no_pages_gets_requests_of_32() -> None:
    reply = agreed(with_flags(ALL & ~InitFlag.MAX_PAGES))
    assert (reply.max_write, reply.max_pages) == (131072, 0)


def test_requests_fit_the_buffer_of_the_library() -> None:
    import dataclasses

    reply = agreed(library=dataclasses.replace(LIBRARY, max_write=132 * 1024 + 5))
    assert (reply.max_write, reply.max_pages) == (132 * 1024, 33)


def test_the_older_of_both_minor_versions_counts() -> None:
    assert agreed().minor == 38
    assert agreed(InitRequest(2, 7, 31, 0, ALL)).minor == 31
