"""Small writes of the file backend that follow each other: zeros ahead of them, and writes that need no thread."""

import mmap
import random
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fusevol.backends import overwriter
from fusevol.backends.ahead import AHEAD_BYTES, SMALL_BYTES, Ahead
from fusevol.backends.file import FileBackend
from fusevol.backends.segments import SEGMENT_BYTES, StartedWrite
from fusevol.errors import BackendError

PAGE = 4096


def aligned(size: int, seed: int = 0) -> memoryview:
    """Memory that O_DIRECT takes."""
    data = memoryview(mmap.mmap(-1, size))
    data[:] = random.Random(seed).randbytes(size)
    return data


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[FileBackend]:
    backend = FileBackend(tmp_path)
    await backend.create("v")
    yield backend
    await backend.aclose()


async def small_writes(backend: FileBackend, count: int, at: int = 0) -> int:
    """Write that many pages, one after the other; return where they end."""
    for number in range(count):
        await backend.write("v", aligned(PAGE, number), at + number * PAGE)
    return at + count * PAGE


async def prepared(backend: FileBackend) -> int:
    """Write until a write need not have a thread; return where that would go. Skips where none ever does."""
    end = await small_writes(backend, 8)
    started = backend.start_write("v", aligned(PAGE, 8), end)
    if started is None:
        pytest.skip("this file system, or kernel, has no asynchronous direct writes")
    assert await started.finished() == PAGE
    return end + PAGE


def blocks(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.glob("v/*.seg"))


ranges = st.tuples(st.integers(0, 64), st.sampled_from([1, 1, 1, 2, 16, 17]), st.booleans())


@given(st.lists(ranges, max_size=60))
def test_zeros_never_come_over_what_was_written(writes: list[tuple[int, int, bool]]) -> None:
    ahead, taken, end = Ahead(worthwhile=True), set[int](), 0
    for place, pages, follows in writes:
        first = end if follows else place
        end = first + pages
        worthwhile = ahead.note(first * PAGE, pages * PAGE)
        taken |= set(range(first, end))
        if worthwhile:
            ahead.prepared(end * PAGE, end * PAGE + AHEAD_BYTES)
        start, stop = ahead.unused
        assert not taken & set(range(start // PAGE, stop // PAGE))


def test_writes_that_do_not_follow_each_other_are_not_prepared_for() -> None:
    ahead = Ahead(worthwhile=True)
    assert not any(ahead.note(offset * PAGE, PAGE) for offset in range(0, 100, 2))
    assert not any(ahead.note(offset * SMALL_BYTES, SMALL_BYTES + PAGE) for offset in range(0, 100, 2))


async def test_small_writes_in_a_row_read_as_written_and_take_up_what_they_are(
    backend: FileBackend, tmp_path: Path
) -> None:
    end = await small_writes(backend, 2 * AHEAD_BYTES // PAGE)
    wanted = b"".join(bytes(aligned(PAGE, number)) for number in range(end // PAGE))
    assert bytes(await backend.read("v", end, 0)) == wanted
    assert await backend.used_size("v") == end
    await backend.aclose()
    assert blocks(tmp_path) == end, "the rest of the zeros is given back"


@pytest.mark.parametrize("seed", range(3))
async def test_writes_of_all_sizes_at_the_same_time_do_not_touch_each_other(backend: FileBackend, seed: int) -> None:
    rng, at = random.Random(seed), 0
    pieces = []
    for number in range(300):
        pages = rng.choice([1, 1, 2, 3, 16, 40])
        pieces.append((at, aligned(pages * PAGE, number)))
        at += pages * PAGE
    limit = trio.CapacityLimiter(6)

    async def write(offset: int, data: memoryview) -> None:
        async with limit:
            started = backend.start_write("v", data, offset)
            written = await (started.finished() if started else backend.write("v", data, offset))
            assert written == len(data)

    async with trio.open_nursery() as nursery:
        for offset, data in pieces:
            nursery.start_soon(write, offset, data)
            if rng.random() < 0.5:
                await trio.lowlevel.checkpoint()
    assert bytes(await backend.read("v", at, 0)) == b"".join(bytes(data) for _, data in pieces)


async def test_a_write_that_nothing_is_prepared_for_is_not_started(backend: FileBackend) -> None:
    assert backend.start_write("v", aligned(PAGE), 0) is None
    end = await prepared(backend)
    assert backend.start_write("v", aligned(PAGE), 0) is None, "it is not empty"
    assert backend.start_write("v", aligned(SMALL_BYTES + PAGE), end) is None, "it is not small"
    assert backend.start_write("v", aligned(PAGE + 1)[1:], end) is None, "it is not aligned"
    assert backend.start_write("v", aligned(PAGE), end + AHEAD_BYTES) is None, "it is too far ahead"


async def test_a_started_write_goes_on_when_who_waits_for_it_is_cancelled(backend: FileBackend) -> None:
    end = await prepared(backend)
    for number in range(20):
        started = backend.start_write("v", aligned(PAGE, number), end)
        assert started
        with trio.move_on_after(0):
            await started.finished()
            raise AssertionError("not reached")
        assert await started.finished() == PAGE
        assert await backend.read("v", PAGE, end) == bytes(aligned(PAGE, number))
        end += PAGE


async def test_more_writes_than_the_kernel_is_given_at_a_time_are_made_all_the_same(backend: FileBackend) -> None:
    end = await prepared(backend)
    held = [backend.start_write("v", aligned(PAGE, number), end + number * PAGE) for number in range(20)]
    started = [write for write in held if write]
    assert 0 < len(started) < 20
    assert [await write.finished() for write in started] == [PAGE] * len(started)
    again = backend.start_write("v", aligned(PAGE, 20), end + 20 * PAGE)
    assert again
    assert await again.finished() == PAGE


async def test_what_is_discarded_is_not_prepared_any_more(backend: FileBackend, tmp_path: Path) -> None:
    end = await prepared(backend)
    await backend.discard("v", SEGMENT_BYTES, 0)
    assert backend.start_write("v", aligned(PAGE), end) is None
    assert await backend.used_size("v") == blocks(tmp_path)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_where_there_is_no_room_for_zeros_there_is_for_data(backend: FileBackend, tmp_path: Path) -> None:
    with files_at_most(40 * PAGE):
        end = await small_writes(backend, 40)
        with pytest.raises(BackendError, match="could not be written"):
            await backend.write("v", aligned(PAGE), end)
    assert bytes(await backend.read("v", PAGE, end - PAGE)) == bytes(aligned(PAGE, 39))
    assert await backend.used_size("v") == blocks(tmp_path) == end


async def test_the_end_of_a_segment_is_written_over_into_the_next(backend: FileBackend) -> None:
    start = SEGMENT_BYTES - 20 * PAGE
    end = await small_writes(backend, 40, start)
    wanted = b"".join(bytes(aligned(PAGE, number)) for number in range(40))
    assert bytes(await backend.read("v", end - start, start)) == wanted


async def test_without_asynchronous_writes_there_are_threads(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise PermissionError(1, "forbidden here")

    monkeypatch.setattr(overwriter, "_Slot", refuse)
    end = await small_writes(backend, 100)
    assert backend.start_write("v", aligned(PAGE), end) is None
    assert bytes(await backend.read("v", PAGE, end - PAGE)) == bytes(aligned(PAGE, 99))


async def test_a_write_that_the_disk_fails_says_which_volume(backend: FileBackend) -> None:
    end = await prepared(backend)
    backend._volume("v")._ahead.prepared(end, 2**40)  # as if: the file may not become that long
    with files_at_most(end):
        started = backend.start_write("v", aligned(PAGE), end + AHEAD_BYTES)
        assert isinstance(started, StartedWrite)
        with pytest.raises(BackendError, match='volume "v" could not be written'):
            await started.finished()
