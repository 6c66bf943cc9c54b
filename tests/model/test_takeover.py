"""A volume taken over while its writer is at work: the newcomer has it, and the old writer acknowledges nothing."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from fusevol.backends.base import Backend
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, delay, fail
from fusevol.errors import Fenced, NoSpace
from fusevol.log import LogVolume, create_volume, open_volume
from fusevol.testing.determinism import Dawdling, GoingOn, run
from fusevol.testing.model import BLOCK
from fusevol.testing.small import random_options
from fusevol.testing.timeline import verify_space

BLOCKS = 40


async def writes(volume: LogVolume, acknowledged: list[int]) -> None:
    """Write one number after the other everywhere, flush each, and note those whose flush returned."""
    for number in range(1, 10_000):
        await volume.write(number.to_bytes(8, "big") * (BLOCKS * BLOCK // 8), 0)
        await volume.flush()
        acknowledged.append(number)


async def number_in(volume: LogVolume) -> int:
    data = bytes(await volume.read(BLOCKS * BLOCK, 0))
    assert data == data[:8] * (len(data) // 8), "a mixture of two writes"
    return int.from_bytes(data[:8], "big")


@pytest.mark.parametrize("seed", range(30))
def test_what_the_old_writer_acknowledged_is_there_and_what_it_does_later_never_shows(seed: int) -> None:
    async def take_over() -> None:
        backend = GoingOn(Dawdling(MemoryBackend(), seed), seed)
        choose = random.Random(seed)
        options = random_options(choose)
        acknowledged: list[int] = []
        await create_volume(backend, "v")

        async def old_writer() -> None:
            with suppress(Fenced):  # if it was taken over before it was there
                async with open_volume(backend, "v", options=options) as volume:
                    with pytest.raises(Fenced):
                        await writes(volume, acknowledged)
                    volume.abandon()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(old_writer)
            for _ in range(choose.randrange(50, 1500)):
                await trio.lowlevel.checkpoint()
            async with open_volume(backend, "v", options=options) as volume:
                found = await number_in(volume)
                assert found in ((acknowledged or [0])[-1], (acknowledged or [0])[-1] + 1)
                await volume.write(b"new" + bytes(5), BLOCKS * BLOCK)
                await volume.flush()
        async with open_volume(backend, "v", options=options) as volume:
            assert await number_in(volume) == found
            assert bytes(await volume.read(3, BLOCKS * BLOCK)) == b"new"
            await verify_space(backend, volume)

    run(take_over, seed=seed)


@asynccontextmanager
async def write_on_its_way(store: Backend, number: int) -> AsyncIterator[trio.Event]:
    """Of a writer that is fenced; it arrives when the event is set."""
    old, arrives = FaultyBackend(store), trio.Event()
    async with open_volume(old, "v") as volume, trio.open_nursery() as nursery:

        async def flush() -> None:
            with pytest.raises(Fenced):
                await volume.flush()

        await volume.write(number.to_bytes(8, "big") * (BLOCK // 8), 0)
        old.add(delay("write", until=arrives))
        nursery.start_soon(flush)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield arrives
        finally:
            arrives.set()
            volume.abandon()


@pytest.mark.parametrize("others", [1, 7])
async def test_what_the_old_writer_stores_after_it_was_swept_does_not_take_up_space_for_ever(others: int) -> None:
    store = MemoryBackend()
    await create_volume(store, "v")
    async with write_on_its_way(store, 1) as arrives:
        for _ in range(others):
            async with open_volume(store, "v"):
                pass
        arrives.set()
        await trio.testing.wait_all_tasks_blocked()
    async with open_volume(store, "v") as volume:
        await verify_space(store, volume)


@pytest.mark.parametrize("full", [False, True], ids=["room", "no room for a checkpoint"])
async def test_what_is_swept_late_is_nothing_that_whoever_has_the_volume_then_has_found(full: bool) -> None:
    store = MemoryBackend()
    slow, sweep = FaultyBackend(store), trio.Event()
    slow.add(delay("discard", until=sweep))
    if full:
        slow.add(fail("write", error=NoSpace, times=1))
    await create_volume(store, "v")
    async with write_on_its_way(store, 2) as arrives, trio.open_nursery() as nursery:

        async def attach() -> None:
            with suppress(Fenced):
                async with open_volume(slow, "v"):
                    pass

        nursery.start_soon(attach)
        await trio.testing.wait_all_tasks_blocked()
        arrives.set()
        await trio.testing.wait_all_tasks_blocked()
        async with open_volume(store, "v") as volume:
            found = bytes(await volume.read(BLOCK, 0))
            await volume.write(b"new" + bytes(5), BLOCKS * BLOCK)
            await volume.flush()
            sweep.set()
            await trio.testing.wait_all_tasks_blocked()
    async with open_volume(store, "v") as volume:
        assert bytes(await volume.read(BLOCK, 0)) == found
        assert bytes(await volume.read(3, BLOCKS * BLOCK)) == b"new"
