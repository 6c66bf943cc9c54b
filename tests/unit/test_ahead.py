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

from fusevol.api.io import Buffer
from fusevol.backends import overwriter
from fusevol.backends.ahead import AHEAD_BYTES, SMALL_BYTES, Ahead
from fusevol.backends.base import Started
from fusevol.backends.file import FileBackend
from fusevol.backends.file.segments import SEGMENT_BYTES, StartedWrite
from fusevol.backends.memory import MemoryBackend
from fusevol.errors import BackendError
from fusevol.log import create_volume, open_volume
from fusevol.log.format import BLOCK
from tests.unit.volumes import QUIET, block_bytes

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


async def test_zeros_do_not_come_over_what_somebody_else_has_written(backend: FileBackend, tmp_path: Path) -> None:
    other = FileBackend(tmp_path)
    await other.write("v", aligned(SMALL_BYTES, 1), 8 * PAGE)
    await small_writes(backend, 8)
    assert bytes(await backend.read("v", SMALL_BYTES, 8 * PAGE)) == bytes(aligned(SMALL_BYTES, 1))
    await other.aclose()


async def test_zeros_are_given_back_with_the_files_that_nobody_has_open(backend: FileBackend, tmp_path: Path) -> None:
    end = await prepared(backend)
    assert blocks(tmp_path) > AHEAD_BYTES
    backend.release("v")
    assert blocks(tmp_path) == end
    assert backend.start_write("v", aligned(PAGE), end) is None
    assert await small_writes(backend, 8, end)
    assert bytes(await backend.read("v", PAGE, end)) == bytes(aligned(PAGE, 0))


async def test_while_holes_are_punched_the_loop_is_not_made_to_wait_for_that(backend: FileBackend) -> None:
    end = await prepared(backend)
    with backend._volume("v")._discarding():
        assert backend.start_write("v", aligned(PAGE), end) is None
    assert backend.start_write("v", aligned(PAGE), end)


async def test_a_write_that_cannot_be_waited_for_on_the_loop_is_waited_for_in_a_thread(
    backend: FileBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: object) -> None:
        raise OSError(28, "too many watches")

    end = await prepared(backend)
    started = backend.start_write("v", aligned(PAGE, 5), end)
    assert started
    with monkeypatch.context() as patch:
        patch.setattr(trio.lowlevel, "wait_readable", refuse)
        assert await started.finished() == PAGE
    assert bytes(await backend.read("v", PAGE, end)) == bytes(aligned(PAGE, 5))


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


class Gated:
    """A write that a store has been handed, and that ends when the store says so."""

    def __init__(self, store: "HandedStore", data: bytes, offset: int) -> None:
        self.store, self.data, self.offset = store, data, offset

    async def finished(self) -> int:
        await self.store.gate.wait()
        if self.store.failures:
            raise self.store.failures.pop()
        return await self.store.write("v", self.data[: self.store.short], self.offset)


class HandedStore(MemoryBackend):
    """A store that is handed what it can be, and goes on by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()
        self.failures: list[BackendError] = []
        self.refusals: list[BackendError] = []
        self.short: int | None = None
        self.handed = 0
        self.alone = False

    def start_write(self, volume_id: str, data: Buffer, offset: int, *, alone: bool = False) -> Started | None:
        if self.refusals:
            raise self.refusals.pop()
        self.handed += 1
        self.alone = alone
        return Gated(self, bytes(data), offset)


async def found(store: MemoryBackend) -> bytes:
    async with open_volume(store, "v", options=QUIET) as volume:
        return bytes(await volume.read(BLOCK, 0))


async def test_who_serves_others_says_whether_the_loop_may_be_held_up() -> None:
    store = HandedStore()
    await create_volume(store, "v")
    async with open_volume(store, "v", options=QUIET) as volume:
        answers = [False, True, False, True]
        for number, answer in enumerate(answers):
            await volume.write(block_bytes(number), 0)
            await volume.flush()
            assert store.alone == (answers[number - 1] if number else False)
            volume.hold_up_while(lambda answer=answer: answer)  # type: ignore[misc]


async def test_a_flush_whose_caller_is_cancelled_is_finished_by_the_volume() -> None:
    store = HandedStore()
    await create_volume(store, "v")
    with trio.fail_after(10):
        async with open_volume(store, "v", options=QUIET) as volume:
            for number in range(3):
                store.gate = trio.Event()
                await volume.write(block_bytes(number), 0)
                with trio.move_on_after(0) as scope:
                    await volume.flush()
                assert scope.cancelled_caught
                handed = store.handed
                store.gate.set()
                await volume.flush()
                assert store.handed == handed, "it was handed over once"
            volume.abandon()
    assert await found(store) == block_bytes(2)


@pytest.mark.parametrize("trouble", ["refused", "failed", "short"])
async def test_a_write_that_could_not_be_handed_over_or_came_to_nothing_is_made_again(trouble: str) -> None:
    store = HandedStore()
    await create_volume(store, "v")
    with trio.fail_after(10):
        async with open_volume(store, "v", options=QUIET) as volume:
            await volume.write(block_bytes(1), 0)
            error = BackendError("no luck")
            if trouble == "refused":
                store.refusals = [error]
            elif trouble == "failed":
                store.failures = [error]
            else:
                store.short = 100
            await volume.flush()
            volume.abandon()
    assert await found(store) == block_bytes(1)


async def test_a_barrier_that_was_sealed_and_not_flushed_is_stored_by_the_next_flush() -> None:
    store = MemoryBackend()
    await create_volume(store, "v")
    with trio.fail_after(10):
        async with open_volume(store, "v", options=QUIET) as volume:
            await volume.write(block_bytes(1), 0)
            volume._writable().seal(barrier=True, push=False)
            await volume.flush()
            volume.abandon()
    assert await found(store) == block_bytes(1)
