"""The handlers that pyfuse3 does not know of: how libfuse comes to know them, and what holds where it does not."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

import pyfuse3
import pytest

from fusevol.mount import extra
from fusevol.mount.extra import ExtraHandlers, calls_of
from tests.mount.servers import LIMIT, ROOT, needs_fuse, serving
from tests.mount.worlds import fallocate

#: Makes a page unwritable, as the dynamic linker leaves it where everything is bound at once (RELRO), and adds to it.
PROTECTED = """
import ctypes, mmap
import pyfuse3
from fusevol.mount import extra

place = extra.calls_of(ctypes.CDLL(pyfuse3.__file__), extra._NEW_SESSION)
address, before = ctypes.addressof(place), place.value
page = ctypes.c_void_p(address - address % mmap.PAGESIZE)
extra._protect(page, mmap.PROT_READ)


class Handlers(pyfuse3.Operations):
    async def fallocate(self, node, mode, offset, length): ...


with extra.ExtraHandlers(Handlers())._adding():
    assert place.value != before, "ours is in its place"
    assert extra._protection(address) == mmap.PROT_READ, "and protected again"
assert place.value == before
print("done")
"""


class Handlers(pyfuse3.Operations):
    async def fallocate(self, node: int, mode: int, offset: int, length: int) -> None:
        """Nothing to be done."""


def test_the_place_is_found_where_pyfuse3_keeps_the_address_of_the_function_that_makes_sessions() -> None:
    place = calls_of(ctypes.CDLL(pyfuse3.__file__), extra._NEW_SESSION)
    before = place.value
    with ExtraHandlers(Handlers())._adding():
        assert place.value != before
    assert place.value == before


def test_a_library_that_does_not_call_it_is_said_to_do_so() -> None:
    with pytest.raises(ValueError, match="does not call fuse_session_new or fuse_session_new_versioned"):
        calls_of(ctypes.CDLL(None), extra._NEW_SESSION)


def test_memory_that_is_protected_is_so_afterwards() -> None:
    said = subprocess.run(
        [sys.executable, "-c", PROTECTED],
        env=os.environ | {"LD_BIND_NOW": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert (said.stdout, said.stderr) == ("done\n", "")


def test_where_there_is_no_such_place_sessions_are_made_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[tuple[object, ...]] = []

    def nowhere(*_: object) -> None:
        raise ValueError("it is another one")

    monkeypatch.setattr(extra, "calls_of", nowhere)
    monkeypatch.setattr(pyfuse3, "init", lambda *arguments: made.append(arguments))
    operations = Handlers()
    handlers = ExtraHandlers(operations)
    with caplog.at_level(logging.WARNING):
        handlers.init("/mnt", {"ro"})
    assert made == [(operations, "/mnt", {"ro"})]
    assert "fallocate and holes are not offered: it is another one" in caplog.text


async def test_a_request_that_nobody_can_handle_any_more_is_an_error_for_whoever_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handlers, answers = ExtraHandlers(Handlers()), []

    class Library:
        def fuse_reply_err(self, request: int, error: int) -> None:
            answers.append((request, error))

    monkeypatch.setattr(handlers, "_library", Library())
    handlers._fallocate(7, 1, 0, 0, 1, 0)
    assert answers == [(7, errno.EIO)]
    async with handlers.answering(None):
        handlers._fallocate(8, 1, 0, 0, 1, 0)
    assert answers[1:] == [(8, 0)]


@needs_fuse
def test_without_them_the_kernel_takes_all_for_data_and_nothing_can_be_set_aside(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        fd = os.open(server.mountpoint / "file", os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, 1 << 20)
        with pytest.raises(OSError, match="fallocate") as raised:
            fallocate(fd, 0, 0, 4096)
        assert raised.value.errno == errno.EOPNOTSUPP
        assert os.lseek(fd, 5, os.SEEK_DATA) == 5
        assert os.lseek(fd, 5, os.SEEK_HOLE) == 1 << 20
        os.close(fd)
