"""Recovery where little fits into memory, and next to a writer that is at work."""

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import trio
import trio.testing

from fusevol.api.io import Buffer
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, delay
from fusevol.backends.wrappers.recording import RecordingBackend
from fusevol.backends.wrappers.wrapper import Wrapper
from fusevol.errors import CorruptData
from fusevol.log import LogOptions, clone_volume, create_volume, open_volume

LEAF = 4 << 20
BLOCK = 4096


class NeverAtOnce(Wrapper):
    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        return None


class BeforeRead(Wrapper):
    """Runs something once, before the n-th read."""

    def __init__(self, inner: MemoryBackend, nth: int, action: Callable[[], Awaitable[None]]) -> None:
        super().__init__(inner)
        self.left = nth
        self.action = action

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        self.left -= 1
        if self.left == 0:
            await self.action()
        return await self.inner.read(volume_id, size, offset)

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        return None


@pytest.mark.parametrize("cached_nodes", [2, 3, 4, 5])
async def test_recovery_needs_no_more_nodes_in_memory_than_may_be_cached(cached_nodes: int) -> None:
    backend = NeverAtOnce(MemoryBackend())
    places = [inner * 1024 * LEAF + leaf * LEAF for inner in range(3) for leaf in range(3)]
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        for place in places:
            await volume.write(b"a" * BLOCK, place)
        await volume.checkpoint()
        for place in places:
            await volume.write(b"b" * BLOCK, place + BLOCK)
        await volume.flush()
        volume.abandon()
    async with open_volume(backend, "v", options=LogOptions(cached_nodes=cached_nodes)) as volume:
        for place in places:
            assert bytes(await volume.read(2 * BLOCK, place)) == b"a" * BLOCK + b"b" * BLOCK


@pytest.mark.parametrize("nth", range(1, 8))
async def test_a_reader_never_misses_a_flush_that_returned_before_it_came(nth: int) -> None:
    backend = MemoryBackend()
    gated, go_on = FaultyBackend(backend), trio.Event()
    await create_volume(backend, "v")
    options = LogOptions(dirty_leaves=1, slack_bytes=0)
    async with open_volume(gated, "v", options=options) as writer:
        await writer.write(b"a" * BLOCK, 0)
        await writer.checkpoint()
        await writer.write(b"b" * BLOCK, 0)
        gated.add(delay("discard", until=go_on), delay("put_manifest", until=go_on))
        await writer.flush()  # and a checkpoint goes on in the background

        async def finish_the_checkpoint() -> None:
            go_on.set()
            await trio.testing.wait_all_tasks_blocked()

        async with open_volume(BeforeRead(backend, nth, finish_the_checkpoint), "v", read_only=True) as reader:
            assert bytes(await reader.read(BLOCK, 0)) == b"b" * BLOCK
        go_on.set()


async def test_a_clone_that_was_not_finished_is_not_opened_not_even_to_read() -> None:
    recording = RecordingBackend(MemoryBackend())
    await create_volume(recording, "v")
    async with open_volume(recording, "v") as volume:
        await volume.write(b"a" * BLOCK, 0)
        await volume.snapshot("s")
    start = len(recording.journal)
    await clone_volume(recording, "v", "s", "c")
    refused = 0
    for cut in range(start, len(recording.journal) + 1):
        store = recording.journal.materialise(cut, random.Random(cut))
        if "c" not in await store.list():
            continue
        opened = []
        for read_only in (True, False):
            with suppress(CorruptData):
                async with open_volume(store, "c", read_only=read_only):
                    opened.append(read_only)
        assert opened in ([True, False], [])
        refused += not opened
    assert refused
