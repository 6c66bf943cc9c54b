"""On a store that is all but full files do not grow, and deleting some makes room at once."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio.testing

from fusevol.api.io import Buffer
from fusevol.backends.base import Capacity
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, delay, fail
from fusevol.errors import NoSpace
from fusevol.fs import Caller, Filesystem, load_filesystem, open_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import BLOCK, ROOT
from fusevol.log import Claim, LogOptions, LogVolume, create_volume, open_volume
from fusevol.log.attachment import read_manifest

MIB = 1 << 20
ME = Caller(0, 0)


class SmallStore(MemoryBackend):
    """A store with room for 64 MiB, or as many bytes as `size` says."""

    size = 64 * MIB

    def _left(self) -> int:
        return self.size - sum(space.used_size() for space in self.spaces.values())

    def capacity(self, volume_id: str) -> Capacity | None:
        return Capacity(self.size, max(0, self._left()))

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        if len(data) > self._left():
            raise NoSpace("the store is full")
        return await super().write(volume_id, data, offset)


@asynccontextmanager
async def on_a_small_store() -> AsyncIterator[tuple[Filesystem, LogVolume]]:
    backend = SmallStore()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        yield filesystem, volume
        await filesystem.sync()
        assert (await check_filesystem(volume, deep=True)).findings == []


async def fill(filesystem: Filesystem) -> dict[bytes, bytes]:
    """Files of 4 MiB until there is no room; their contents by name."""
    kept: dict[bytes, bytes] = {}

    async def add() -> None:
        while True:
            name, data = b"%d" % len(kept), os.urandom(4 * MIB)
            ino = filesystem.create(ROOT, name, stat.S_IFREG | 0o644, ME).ino
            await filesystem.write(ino, data, 0)
            await filesystem.sync()
            kept[name] = data

    with pytest.raises(NoSpace, match="reserve"):
        await add()
    assert 8 <= len(kept) <= 15
    return kept


async def test_what_is_there_stays_readable_and_what_is_deleted_makes_room_for_the_next_write() -> None:
    async with on_a_small_store() as (filesystem, volume):
        kept = await fill(filesystem)
        assert volume.room.shortage() is not None
        for name in [b"1", b"3"]:
            ino = filesystem.lookup(ROOT, name).ino
            filesystem.unlink(ROOT, name)
            filesystem.forget(ino)
            del kept[name]
        ino = filesystem.lookup(ROOT, b"0").ino
        await filesystem.write(ino, more := os.urandom(6 * MIB), 0)
        await filesystem.sync()
        kept[b"0"] = more
        for name, data in kept.items():
            assert bytes(await filesystem.read(filesystem.lookup(ROOT, name).ino, 8 * MIB, 0)) == data


async def test_overwriting_goes_on_for_ever_in_what_the_overwritten_leaves() -> None:
    async with on_a_small_store() as (filesystem, _):
        ino = filesystem.create(ROOT, b"file", stat.S_IFREG | 0o644, ME).ino
        for _turn in range(20):
            data = os.urandom(24 * MIB)
            for at in range(0, 24 * MIB, MIB):
                await filesystem.write(ino, data[at : at + MIB], at)
        assert bytes(await filesystem.read(ino, 24 * MIB, 0)) == data


async def test_overwriting_goes_on_where_many_wait_to_do_so() -> None:
    async with on_a_small_store() as (filesystem, _):
        ino = filesystem.create(ROOT, b"file", stat.S_IFREG | 0o644, ME).ino
        await filesystem.write(ino, os.urandom(24 * MIB), 0)

        async def overwrite(first: int) -> None:
            for turn in range(20):
                for at in range(first * MIB, 24 * MIB, 12 * MIB):
                    await filesystem.write(ino, bytes([turn]) * MIB, at)

        # As the kernel does.
        async with trio.open_nursery() as nursery:
            for first in range(12):
                nursery.start_soon(overwrite, first)
        assert bytes(await filesystem.read(ino, 24 * MIB, 0)) == bytes([19]) * 24 * MIB


async def test_overwriting_at_random_leaves_room_for_the_checkpoint_that_gives_space_back() -> None:
    rng = random.Random(1)
    options = LogOptions(checkpoint_bytes=64 * MIB, slack_bytes=0, reserve_bytes=MIB // 4)
    backend = SmallStore()
    backend.size = 128 * MIB
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=options) as volume:
        filesystem = await load_filesystem(volume)
        ino = filesystem.create(ROOT, b"file", stat.S_IFREG | 0o644, ME).ino
        await filesystem.write(ino, os.urandom(96 * MIB), 0)
        await filesystem.sync()
        await volume.reclaim()
        backend.size = 96 * MIB + 8 * MIB
        for turn in range(6000):
            await filesystem.write(ino, page := rng.randbytes(BLOCK), rng.randrange(96 * MIB // BLOCK) * BLOCK)
            if turn % 50 == 49:
                await filesystem.sync()
        await filesystem.write(ino, page, 0)
        await filesystem.sync()
        volume.abandon()
        filesystem.close()
    async with open_volume(backend, "v", options=options) as volume, open_filesystem(volume) as filesystem:
        assert bytes(await filesystem.read(ino, BLOCK, 0)) == page


async def test_what_is_free_already_is_room_for_a_sync_and_for_attaching_where_others_fill_the_store() -> None:
    backend = SmallStore()
    await create_volume(backend, "v")
    for kind in ("sync", "attach"):
        backend.size = 64 * MIB
        async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
            ino = filesystem.create(ROOT, kind.encode(), stat.S_IFREG | 0o644, ME).ino
            for _ in range(2):
                await filesystem.write(ino, os.urandom(8 * MIB), 0)
                await filesystem.sync()
            await volume.checkpoint()
            assert volume.state.free.blocks * BLOCK >= 8 * MIB
            await filesystem.write(ino, data := os.urandom(MIB), 0)
            if kind == "attach":
                await filesystem.sync()
                volume.abandon()
            backend.size = sum(space.used_size() for space in backend.spaces.values())
        async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
            assert bytes(await filesystem.read(ino, MIB, 0)) == data
        backend.size = 64 * MIB


async def test_what_a_crash_left_behind_the_logs_end_is_room_for_attaching_where_others_fill_the_store() -> None:
    backend = SmallStore()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        await volume.write(kept := os.urandom(BLOCK), 0)
        await volume.flush()
        for block in range(1, 6001):
            await volume.write(bytes(BLOCK), block * BLOCK)
        await trio.testing.wait_all_tasks_blocked()
        volume.abandon()
    backend.size = sum(space.used_size() for space in backend.spaces.values())
    assert backend.size > 8 * MIB
    async with open_volume(backend, "v") as volume:
        assert bytes(await volume.read(BLOCK, 0)) == kept
        assert (await read_manifest(backend, "v"))[0].end is msgspec.UNSET
    assert sum(space.used_size() for space in backend.spaces.values()) < MIB


async def test_nothing_new_is_made_and_the_filesystem_says_that_it_is_full() -> None:
    async with on_a_small_store() as (filesystem, _):
        empty = filesystem.statfs()
        assert empty.blocks == empty.free
        await fill(filesystem)
        assert filesystem.statfs().free == 0
        with pytest.raises(NoSpace):
            filesystem.create(ROOT, b"another", stat.S_IFREG | 0o644, ME)
        with pytest.raises(NoSpace):
            filesystem.symlink(ROOT, b"link", b"target", ME)
        filesystem.rename(ROOT, b"0", ROOT, b"renamed")


async def test_many_writes_at_once_leave_the_reserve() -> None:
    async with on_a_small_store() as (filesystem, volume):
        inos = [filesystem.create(ROOT, b"%d" % number, stat.S_IFREG | 0o644, ME).ino for number in range(90)]
        failed = 0

        async def write(ino: int) -> None:
            nonlocal failed
            try:
                await filesystem.write(ino, os.urandom(MIB), 0)
            except NoSpace:
                failed += 1

        async with trio.open_nursery() as nursery:
            for ino in inos:
                nursery.start_soon(write, ino)
        await filesystem.sync()
        assert 90 - 64 < failed < 40
        capacity = SmallStore.capacity(volume._backend, "v")  # type: ignore[arg-type]
        assert capacity is not None
        assert capacity.free > 3 * MIB


async def test_space_that_nobody_needs_is_given_back_once_nothing_is_written_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for busy in (True, False):
        backend = MemoryBackend()
        await create_volume(backend, "v")
        async with open_volume(backend, "v", options=LogOptions(slack_bytes=4 * MIB, settle_seconds=5)) as volume:
            for at in range(16):
                await volume.write(os.urandom(MIB), at * MIB)
            await volume.flush()
            await volume.discard(16 * MIB, 0)
            await volume.flush()
            for _ in range(10):
                await trio.sleep(2)
                if busy:
                    await volume.write(os.urandom(BLOCK), 0)
                    await volume.flush()
            assert (await backend.used_size("v") > 16 * MIB) is busy


async def test_space_that_cannot_be_given_back_is_told_of_and_tried_again_after_the_next_write(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = MemoryBackend()
    await create_volume(store, "v")
    backend = FaultyBackend(store)
    troubled, checkpoints = [], []
    async with open_volume(backend, "v", options=LogOptions(slack_bytes=4 * MIB)) as volume:
        for at in range(16):
            await volume.write(os.urandom(MIB), at * MIB)
        await volume.flush()
        await volume.discard(16 * MIB, 0)
        await volume.flush()
        backend.add(fail("discard", times=4))
        for turn in range(3):
            before = volume.state.number
            await trio.sleep(1000)
            troubled.append(volume.background_error is not None)
            checkpoints.append(volume.state.number - before)
            await volume.write(bytes([turn]) * BLOCK, 0)
            await volume.flush()
    assert troubled == [True, True, False]
    assert checkpoints == [2, 2, 2]
    assert await store.used_size("v") < 6 * MIB


@pytest.mark.parametrize("after", [4.9, 5.1, 5.6, 6.1, 6.6, 7.1])
@pytest.mark.parametrize("slow", ["put_manifest", "discard", "flush"])
async def test_a_volume_closed_while_it_gives_space_back_is_closed_and_has_given_it_back(
    after: float, slow: str, autojump_clock: trio.testing.MockClock
) -> None:
    store = MemoryBackend()
    await create_volume(store, "v")
    backend = FaultyBackend(store, [delay(slow, seconds=1)])
    options = LogOptions(slack_bytes=4 * MIB, settle_seconds=5)
    async with open_volume(backend, "v", options=options, claim=Claim("somebody", lambda _: None)) as volume:
        for at in range(16):
            await volume.write(os.urandom(MIB), at * MIB)
        await volume.discard(16 * MIB, 0)
        await volume.flush()
        await trio.sleep(after)
    assert (await read_manifest(store, "v"))[0].holder is msgspec.UNSET
    async with open_volume(store, "v") as volume:
        assert not any(await volume.read(16 * MIB, 0))
    assert await store.used_size("v") < 6 * MIB


async def test_a_quota_below_what_the_store_has_is_what_statfs_shows() -> None:
    async with on_a_small_store() as (filesystem, _):
        filesystem.resize(10 * MIB)
        assert filesystem.statfs()[:2] == (10 * MIB // BLOCK, 10 * MIB // BLOCK)


async def test_a_store_that_does_not_know_how_full_it_is_is_taken_as_endless() -> None:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        assert volume.room.capacity() is None
        assert volume.room.shortage() is None
