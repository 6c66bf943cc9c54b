"""Many tasks on one volume: nobody sees half a block, an old one, or somebody else's."""

import random
from dataclasses import dataclass, field

import pytest
import trio

from fusevol.backends.memory import MemoryBackend
from fusevol.log import LogVolume, create_volume, open_volume
from fusevol.testing.determinism import Dawdling, GoingOn, run
from fusevol.testing.small import random_options
from fusevol.testing.timeline import verify_space

BLOCK = 4096
SECTOR = 512
WRITERS = 4
#: First blocks: two writers in one leaf, one across a border of leaves, one across a border of inner nodes.
STARTS = (0, 500, 1024 - 12, (1 << 20) - 12)
COUNT = 24
SHARED = 7000
STEPS = 120


@dataclass(slots=True)
class Versions:
    """By block: the number of the last version written, and of the last one begun. 0 is a hole, as is each tenth."""

    done: dict[int, int] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)


def is_hole(version: int) -> bool:
    return version % 10 == 0


def version_of(block: bytes) -> int | None:
    """The version that a block shows; None if it is not of one piece."""
    return int.from_bytes(block[:8], "big") if block == block[:8] * (BLOCK // 8) else None


def check_blocks(data: bytes, first: int, oldest: dict[int, int], newest: dict[int, int]) -> None:
    for at in range(len(data) // BLOCK):
        block = first + at
        found = version_of(data[at * BLOCK : (at + 1) * BLOCK])
        low, high = oldest.get(block, 0), newest.get(block, 0)
        allowed = {0 if is_hole(version) else version for version in range(low, high + 1)}
        assert found in allowed, f"block {block:#x} shows {found}, not one of {sorted(allowed)}"


class Crowd:
    """The tasks. Each block of a writer's range has one version after the other."""

    def __init__(self, volume: LogVolume, seed: int) -> None:
        self.volume = volume
        self.seed = seed
        self.versions = Versions()
        self.sectors: dict[tuple[int, int], bytes] = {}
        self.busy = True

    def chance(self, who: str) -> random.Random:
        return random.Random(f"{self.seed}:{who}")

    def run_of(self, choose: random.Random, writer: int) -> tuple[int, int]:
        size = choose.choice((1, 1, 3, COUNT))
        return STARTS[writer] + choose.randrange(COUNT - size + 1), size

    async def write(self, writer: int) -> None:
        choose = self.chance(f"writer {writer}")
        for version in range(1, STEPS):
            first, size = self.run_of(choose, writer)
            for block in range(first, first + size):
                self.versions.begun[block] = version
            if is_hole(version):
                await self.volume.discard(size * BLOCK, first * BLOCK)
            else:
                await self.volume.write(version.to_bytes(8, "big") * (BLOCK // 8 * size), first * BLOCK)
            for block in range(first, first + size):
                self.versions.done[block] = version

    async def read(self, reader: int) -> None:
        choose = self.chance(f"reader {reader}")
        while self.busy:
            first, size = self.run_of(choose, choose.randrange(WRITERS))
            oldest = dict(self.versions.done)
            data = bytes(await self.volume.read(size * BLOCK, first * BLOCK))
            check_blocks(data, first, oldest, self.versions.begun)
            await trio.lowlevel.checkpoint()

    async def share(self, writer: int) -> None:
        """Write one's own sector of blocks that all write to."""
        choose = self.chance(f"sharer {writer}")
        for _ in range(STEPS):
            block = SHARED + choose.randrange(3)
            data = self.sectors[block, writer] = choose.randbytes(SECTOR)
            await self.volume.write(data, block * BLOCK + writer * SECTOR)
            found = bytes(await self.volume.read(SECTOR, block * BLOCK + writer * SECTOR))
            assert found == data, "a write to a neighbouring sector undid this one"

    async def flush(self, flusher: int) -> None:
        choose = self.chance(f"flusher {flusher}")
        while self.busy:
            await (self.volume.flush if choose.random() < 0.8 else self.volume.checkpoint)()
            for _ in range(choose.randrange(30)):
                await trio.lowlevel.checkpoint()

    async def snapshot(self, number: int) -> None:
        """Take a snapshot: it has what was written before, and stays as it is."""
        choose = self.chance(f"snapshots {number}")
        count = 0
        while self.busy:
            count += 1
            name = f"s{number}-{count}"
            oldest = dict(self.versions.done)
            await self.volume.snapshot(name)
            newest = dict(self.versions.begun)
            async with self.volume.view(name) as view:
                seen = []
                for _ in range(2):
                    zones = [bytes(await view.read(COUNT * BLOCK, start * BLOCK)) for start in STARTS]
                    seen.append(zones)
                    for start, zone in zip(STARTS, zones, strict=True):
                        check_blocks(zone, start, oldest, newest)
                    for _ in range(choose.randrange(100)):
                        await trio.lowlevel.checkpoint()
            assert seen[0] == seen[1]
            await self.volume.snapshot_usage(name)
            await self.volume.delete_snapshot(name)

    async def reclaim(self) -> None:
        while self.busy:
            await self.volume.reclaim()
            usage = await self.volume.usage()
            assert min(usage) >= 0
            for _ in range(100):
                await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(self.read, number)
            for number in range(2):
                nursery.start_soon(self.flush, number)
                nursery.start_soon(self.snapshot, number)
            nursery.start_soon(self.reclaim)
            async with trio.open_nursery() as writers:
                for number in range(WRITERS):
                    writers.start_soon(self.write, number)
                    writers.start_soon(self.share, number)
            self.busy = False


async def check_final(volume: LogVolume, crowd: Crowd) -> None:
    for start in STARTS:
        data = bytes(await volume.read(COUNT * BLOCK, start * BLOCK))
        check_blocks(data, start, crowd.versions.done, crowd.versions.done)
    for (block, writer), data in crowd.sectors.items():
        assert bytes(await volume.read(SECTOR, block * BLOCK + writer * SECTOR)) == data
    assert volume.snapshots() == []


@pytest.mark.parametrize("seed", range(8))
def test_many_tasks_at_once_see_whole_blocks_in_the_order_in_which_they_were_written(seed: int) -> None:
    async def crowd_on_a_volume() -> None:
        backend = GoingOn(Dawdling(MemoryBackend(), seed), seed)
        options = random_options(random.Random(seed))
        await create_volume(backend, "v")
        async with open_volume(backend, "v", options=options) as volume:
            crowd = Crowd(volume, seed)
            await crowd.run()
            await check_final(volume, crowd)
            assert volume.background_error is None
            await verify_space(backend, volume)
            await volume.flush()
            volume.abandon()
        async with open_volume(backend, "v", options=options) as volume:
            await check_final(volume, crowd)
            await verify_space(backend, volume)

    run(crowd_on_a_volume, seed=seed)
