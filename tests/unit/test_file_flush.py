"""Flushes of the file backend that overlap: none returns before what it was called for is durable."""

import errno
import os
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from fusevol.backends.file import FileBackend
from fusevol.errors import BackendError


@pytest.mark.parametrize("fails", [False, True], ids=["it is stored", "the disk fails"])
async def test_a_flush_waits_for_the_one_that_is_under_way(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = FileBackend(tmp_path)
    await backend.create("v")
    await backend.flush("v")
    await backend.write("v", bytes(1 << 20), 0)  # too large to be durable at once
    began, go_on, fdatasync = trio.Event(), threading.Event(), os.fdatasync
    events: list[str] = []

    def slow(fd: int) -> None:
        trio.from_thread.run_sync(began.set)
        assert go_on.wait(60)
        if fails:
            raise OSError(errno.EIO, "failed")
        fdatasync(fd)
        events.append("stored")

    async def flush() -> None:
        try:
            await backend.flush("v")
        except BackendError:
            events.append("refused")
        else:
            events.append("flushed")

    monkeypatch.setattr(os, "fdatasync", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        await began.wait()
        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        early = [*events]
        go_on.set()
    assert early == []
    assert events == (["refused"] * 2 if fails else ["stored", "flushed", "flushed"])
    await backend.aclose()
