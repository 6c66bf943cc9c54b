"""Small durable writes without a thread: carried out at once where nobody waits, and handed to the kernel elsewhere."""

import mmap
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from fusevol.backends import overwriter
from fusevol.backends.overwriter import Overwriter

PAGE = 4096


class Disk:
    """A file that is written to with O_DIRECT, and how long each write is taken to last, in seconds."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(64 * PAGE))
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        except OSError:
            pytest.skip("this file system has no direct writes")
        self.path = path
        self.lasts = 0.0
        self.now = 0.0
        self.at_once = 0
        self.error: OSError | None = None
        self.short: int | None = None
        self.writes = Overwriter()
        self.asynchronous = False

    def perf_counter(self) -> float:
        return self.now

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int, flags: int) -> int:
        if self.error:
            raise self.error
        assert flags == os.RWF_DSYNC, "it is to be durable"
        self.at_once += 1
        self.now += self.lasts
        written = PWRITEV(fd, buffers, offset, flags)
        return written if self.short is None else self.short

    async def write(self, *, alone: bool, number: int = 1) -> bool:
        """Write a page; whether that was done by the time it was begun."""
        data = memoryview(mmap.mmap(-1, PAGE))
        data[:] = number.to_bytes(2, "big") * (PAGE // 2)
        before = self.at_once
        started = self.writes.start(self.fd, data, number % 64 * PAGE, alone=alone)
        if started is None and not self.asynchronous:
            pytest.skip("this system has no asynchronous writes")
        assert started is not None
        assert await started.finished() == PAGE
        assert self.path.read_bytes()[number % 64 * PAGE :][:PAGE] == data
        return self.at_once > before


PWRITEV = os.pwritev


@pytest.fixture
async def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Disk]:
    disk, other = Disk(tmp_path / "disk"), Overwriter()
    if started := other.start(disk.fd, memoryview(mmap.mmap(-1, PAGE)), 0, alone=False):
        disk.asynchronous = await started.finished() == PAGE
    other.close()
    monkeypatch.setattr(overwriter, "time", SimpleNamespace(perf_counter=disk.perf_counter))
    monkeypatch.setattr(os, "pwritev", disk.pwritev)
    yield disk
    disk.writes.close()
    os.close(disk.fd)


async def test_a_write_for_which_nobody_waits_is_carried_out_at_once(disk: Disk) -> None:
    assert [await disk.write(alone=alone, number=n) for n, alone in enumerate([True, True, False, True])] == [
        True, True, False, True,
    ]  # fmt: skip


async def test_a_slow_disk_holds_up_nobody_but_now_and_then(disk: Disk) -> None:
    disk.lasts = 8e-3
    assert sum([await disk.write(alone=True, number=n) for n in range(2 * overwriter._REST)]) == 2


async def test_a_quick_disk_may_be_slow_at_times(disk: Disk) -> None:
    for number in range(600):
        disk.lasts = 8e-3 if number % 20 == 19 else 2e-4
        assert await disk.write(alone=True, number=number)


async def test_a_disk_that_becomes_slow_is_noticed_and_so_is_when_it_is_quick_again(disk: Disk) -> None:
    for number in range(100):
        assert await disk.write(alone=True, number=number)
    disk.lasts = 5e-3
    assert sum([await disk.write(alone=True, number=n) for n in range(100)]) <= 4
    disk.lasts = 1e-4
    assert sum([await disk.write(alone=True, number=n) for n in range(overwriter._REST + 100)]) >= 100


async def test_what_cannot_be_carried_out_is_left_to_who_reports_it(disk: Disk) -> None:
    disk.error = OSError(5, "as if")
    data = memoryview(mmap.mmap(-1, PAGE))
    assert disk.writes.start(disk.fd, data, 0, alone=True) is None
    disk.error = None
    disk.short = PAGE // 2
    assert disk.writes.start(disk.fd, data, 0, alone=True) is None
    disk.short = None
    assert await disk.write(alone=True)
