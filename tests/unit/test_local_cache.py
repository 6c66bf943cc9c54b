"""The cache before a remote store: what it has is what was written, whatever becomes of its file."""

import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend
from fusevol.backends.cache import LocalCache
from fusevol.backends.cache.slots import BLOCK, Slots
from fusevol.backends.object import ObjectBackend
from fusevol.backends.wrappers.counting import CountingBackend
from fusevol.errors import BackendError, VolumeNotFound
from fusevol.fs import open_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.log import create_volume, open_volume

CHUNK = 16 * BLOCK
Step = tuple[str, str, int, int, bool]

steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "find", "drop", "forget", "reopen"]), st.sampled_from(["a", "b"]),
        st.integers(0, 80), st.integers(1, 40), st.booleans(),
    ),
    max_size=40,
)  # fmt: skip


def _bytes(space: str, block: int) -> bytes:
    return random.Random(f"{space} {block}").randbytes(BLOCK)


@settings(deadline=None, max_examples=60)
@given(steps)
def test_what_is_found_is_what_was_put(tmp_path_factory: pytest.TempPathFactory, steps: list[Step]) -> None:
    directory = tmp_path_factory.mktemp("cache")
    slots, there = Slots(directory, 6 * CHUNK), set()
    for what, space, first, count, keep in steps:
        blocks = {(space, block) for block in range(first, first + count)}
        size, offset = count * BLOCK, first * BLOCK
        if what == "put":
            slots.put(space, b"".join(_bytes(space, block) for block in range(first, first + count)), offset, keep=keep)
            there |= blocks
        elif what == "drop":
            slots.drop(space, size, offset)
            there -= blocks
        elif what == "forget":
            slots.forget(space)
            there = {each for each in there if each[0] != space}
        elif what == "reopen":
            slots.close()
            slots = Slots(directory, 6 * CHUNK)
        places = slots.find(space, size, offset, keep=keep)
        if places is not None:
            assert blocks <= there
            assert bytes(slots.read(places, wait=True) or b"") == b"".join(_bytes(*block) for block in sorted(blocks))
        assert len(slots) <= 6
        assert os.stat(directory / "blocks").st_size <= 6 * CHUNK
    slots.close()


def test_what_is_to_be_kept_stays_while_others_come_and_go(tmp_path: Path) -> None:
    slots = Slots(tmp_path, 10 * CHUNK)
    for chunk in range(4):
        slots.put("kept", _bytes("kept", chunk), chunk * CHUNK, keep=True)
    for chunk in range(100):
        slots.put("data", _bytes("data", chunk), chunk * CHUNK)
    assert all(slots.find("kept", BLOCK, chunk * CHUNK) for chunk in range(4))
    assert slots.find("data", BLOCK, 99 * CHUNK)
    assert slots.find("data", BLOCK, 0) is None
    slots.close()


async def test_what_is_asked_for_as_to_be_kept_stays_while_much_else_is_read(tmp_path: Path) -> None:
    cache = _cached(tmp_path, 10 * CHUNK)
    await cache.create("v")
    await cache.write("v", random.Random(6).randbytes(50 * CHUNK), 0)
    for chunk in (3, 30):
        await cache.read("v", BLOCK, chunk * CHUNK)
    assert cache.read_kept("v", BLOCK, 3 * CHUNK)
    assert cache.read_nowait("v", BLOCK, 30 * CHUNK)
    for chunk in range(49, 30, -1):
        await cache.read("v", BLOCK, chunk * CHUNK)
    assert cache.read_nowait("v", BLOCK, 3 * CHUNK)
    assert cache.read_nowait("v", BLOCK, 30 * CHUNK) is None
    await cache.aclose()


def test_after_a_crash_it_begins_with_nothing(tmp_path: Path) -> None:
    slots = Slots(tmp_path, 10 * CHUNK)
    slots.put("a", _bytes("a", 0), 0)
    slots.close()
    # Not closed.
    assert len(Slots(tmp_path, 10 * CHUNK)) == 1
    assert len(Slots(tmp_path, 10 * CHUNK)) == 0


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\x92\x91\x93\xa1a\x00\x92\xce\xff\xff\xff\xff\x01\x90"])
def test_a_damaged_index_is_not_used(tmp_path: Path, damage: bytes) -> None:
    slots = Slots(tmp_path, 10 * CHUNK)
    slots.put("a", _bytes("a", 0), 0)
    slots.close()
    (tmp_path / "index").write_bytes(damage)
    slots = Slots(tmp_path, 10 * CHUNK)
    assert len(slots) == 0
    slots.close()


def _cached(tmp_path: Path, size: int = 1 << 26) -> LocalCache:
    return LocalCache(lambda: CountingBackend(ObjectBackend(f"file://{tmp_path}/store")), tmp_path / "cache", size)


def _reads(cache: LocalCache) -> int:
    assert isinstance(cache.inner, CountingBackend)
    return cache.inner["read"].calls


async def test_what_was_written_or_read_once_is_not_asked_for_again(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(40 * BLOCK)
    cache = _cached(tmp_path)
    await cache.create("v")
    await cache.write("v", data, 0)
    assert bytes(await cache.read("v", len(data), 0)) == data
    assert cache.read_nowait("v", BLOCK, BLOCK) == data[BLOCK : 2 * BLOCK]
    assert _reads(cache) == 0
    await cache.aclose()
    cache = _cached(tmp_path)
    assert bytes(await cache.read("v", len(data), 0)) == data
    assert _reads(cache) == 0
    await cache.aclose()
    (tmp_path / "cache" / "index").unlink()
    cache = _cached(tmp_path)
    for _ in range(2):
        assert bytes(await cache.read("v", len(data), 0)) == data
    assert _reads(cache) == 1
    await cache.aclose()


@pytest.mark.parametrize("without_a_loop", [False, True])
@pytest.mark.parametrize(
    ("order", "fetched"),
    [
        # By chunks of 16 blocks, from the last one down to where it begins.
        (range(104, 4, -1), [9, 16, 16, 16, 16, 16, 11]),
        # More at once, the more there is of what comes before.
        (range(5, 105), [11, 16, 32, 41]),
        # To and fro: there is nothing before them, or one chunk.
        ([20, 90, 21, 60, 33], [16, 16, 16, 16]),
    ],
    ids=["down", "up", "to and fro"],
)
async def test_what_was_written_together_is_fetched_together_by_whoever_reads_a_little_of_it(
    tmp_path: Path, order: Sequence[int], fetched: list[int], without_a_loop: bool
) -> None:
    data = random.Random(4).randbytes(100 * BLOCK)
    asked: list[int] = []

    class Store(ObjectBackend):
        async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
            asked.append(size // BLOCK)
            return await super().read(volume_id, size, offset)

    store = ObjectBackend(f"file://{tmp_path}/store")
    await store.create("v")
    await store.write("v", data, 5 * BLOCK)
    cache = LocalCache(lambda: Store(f"file://{tmp_path}/store"), None, 1 << 24)
    for block in order:
        read = cache.read_blocking("v", BLOCK, block * BLOCK) if without_a_loop else None
        assert bytes(read or await cache.read("v", BLOCK, block * BLOCK)) == data[(block - 5) * BLOCK :][:BLOCK]
    # Whoever blocks a thread for it is not to do so for long.
    assert asked == ([11, 16, 16, 16, 16, 16, 9] if without_a_loop and order == range(5, 105) else fetched)
    await cache.aclose()
    await store.aclose()


class Slow(ObjectBackend):
    """A store whose reads wait until they are let go; the first `failures` of them fail then."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked: list[tuple[int, int]] = []
        self.gate = trio.Event()
        self.failures = 0

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        self.asked.append((offset // BLOCK, size // BLOCK))
        await self.gate.wait()
        if self.failures:
            self.failures -= 1
            raise BackendError("the store is away")
        return await super().read(volume_id, size, offset)


@asynccontextmanager
async def slow(tmp_path: Path) -> AsyncIterator[tuple[LocalCache, Slow, bytes]]:
    """A cache with nothing in it, before a store with 32 blocks: of each chunk, 8 and 8 were written together."""
    data = random.Random(5).randbytes(32 * BLOCK)
    store = Slow(f"file://{tmp_path}/store")
    await store.create("v")
    for first in range(0, 32, 8):
        await store.write("v", data[first * BLOCK :][: 8 * BLOCK], first * BLOCK)
    cache = LocalCache(lambda: store, None, 1 << 24)
    yield cache, store, data
    await cache.aclose()


async def test_what_others_are_fetching_is_not_fetched_once_more(tmp_path: Path) -> None:
    async with slow(tmp_path) as (cache, store, data):

        async def read(block: int) -> None:
            assert bytes(await cache.read("v", BLOCK, block * BLOCK)) == data[block * BLOCK :][:BLOCK]

        async with trio.open_nursery() as nursery:
            for block in (0, 1, 2, 7, 8, 9, 20):
                nursery.start_soon(read, block)
                await trio.testing.wait_all_tasks_blocked()
            assert store.asked == [(0, 8), (16, 8)], "one of each chunk"
            store.gate.set()
        # 8 and 9 were not written together with 0: they are fetched after that, and by both who wait for them.
        assert sorted(store.asked[2:]) == [(8, 8), (8, 8)]


async def test_who_waited_for_others_that_failed_or_went_away_asks_the_store_itself(tmp_path: Path) -> None:
    async with slow(tmp_path) as (cache, store, data):
        scope, outcomes = trio.CancelScope(), list[bytes | str]()

        async def goes_away() -> None:
            with scope:
                await cache.read("v", BLOCK, 0)

        async def read() -> None:
            try:
                outcomes.append(bytes(await cache.read("v", BLOCK, 0)))
            except BackendError as error:
                outcomes.append(str(error))

        async with trio.open_nursery() as nursery:
            for reader in (goes_away, read, read):
                nursery.start_soon(reader)
                await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(store.asked) == 3
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            store.failures = 2
            store.gate.set()
        assert outcomes == ["the store is away", "the store is away", data[:BLOCK]]


async def test_the_store_can_be_read_without_a_loop(tmp_path: Path) -> None:
    store = ObjectBackend(f"file://{tmp_path}/store")
    data = random.Random(2).randbytes(10 * BLOCK)
    await store.create("v")
    await store.write("v", data, 0)
    cache = _cached(tmp_path)
    assert bytes(cache.read_blocking("v", len(data), 0)) == data
    assert bytes(cache.read_blocking("v", 100, 1000)) == data[1000:1100]
    # Written by others since.
    await store.write("v", data, len(data))
    assert bytes(cache.read_blocking("v", len(data), len(data))) == data
    with pytest.raises(VolumeNotFound):
        cache.read_blocking("nope", BLOCK, 0)
    await cache.aclose()
    await store.aclose()


async def test_a_store_that_cannot_be_opened_is_told_to_whoever_reads(tmp_path: Path) -> None:
    opened: list[Backend] = []

    def open_backend() -> Backend:
        if opened:
            raise BackendError("the store is gone")
        opened.append(ObjectBackend(f"file://{tmp_path}/store"))
        return opened[0]

    cache = LocalCache(open_backend, None, 1 << 20)
    for _ in range(2):
        with pytest.raises(BackendError, match="the store is gone"):
            cache.read_blocking("v", BLOCK, 0)
    await cache.aclose()


async def _filled(tmp_path: Path, content: bytes) -> None:
    cache = _cached(tmp_path)
    await create_volume(cache, "v")
    async with open_volume(cache, "v") as volume, open_filesystem(volume) as filesystem:
        await volume.write(content, 1 << 51)
        await filesystem.sync()
    await cache.aclose()


@pytest.mark.parametrize("seed", range(5))
async def test_a_cache_that_rots_makes_for_another_read_and_never_for_wrong_bytes(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = rng.randbytes(300 * BLOCK)
    await _filled(tmp_path, content)
    blocks = tmp_path / "cache" / "blocks"
    rotten = bytearray(blocks.read_bytes())
    for _ in range(rng.choice([1, 20, 400])):
        rotten[rng.randrange(len(rotten))] ^= 1 << rng.randrange(8)
    blocks.write_bytes(rotten if seed else b"")
    cache = _cached(tmp_path)
    async with open_volume(cache, "v") as volume:
        assert bytes(await volume.read(len(content), 1 << 51)) == content
        assert [str(finding) for finding in (await check_filesystem(volume)).errors] == []
    await cache.aclose()


async def test_a_disk_that_is_full_makes_for_a_smaller_cache(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(300 * BLOCK)
    cache = LocalCache(lambda: ObjectBackend(f"file://{tmp_path}/store"), tmp_path / "cache", 1 << 26)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, cache._slots._fd)
    os.close(full)
    await create_volume(cache, "v")
    async with open_volume(cache, "v") as volume, open_filesystem(volume) as filesystem:
        await volume.write(content, 1 << 51)
        await filesystem.sync()
        assert bytes(await volume.read(len(content), 1 << 51)) == content
    await cache.aclose()


async def test_reads_of_many_at_once_while_it_is_too_small_are_right(tmp_path: Path) -> None:
    content = random.Random(4).randbytes(600 * BLOCK)
    await _filled(tmp_path, content)
    cache = _cached(tmp_path, 8 * CHUNK)
    async with open_volume(cache, "v", read_only=True) as volume:

        async def read(seed: int) -> None:
            rng = random.Random(seed)
            for _ in range(20):
                first = rng.randrange(600)
                count = rng.randrange(1, 601 - first)
                got = await volume.read(count * BLOCK, (1 << 51) + first * BLOCK)
                assert bytes(got) == content[first * BLOCK : (first + count) * BLOCK]

        async with trio.open_nursery() as nursery:
            for seed in range(8):
                nursery.start_soon(read, seed)
    await cache.aclose()
