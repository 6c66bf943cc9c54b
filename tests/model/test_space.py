"""Space comes back: overwritten for ever, snapshots deleted in any order, everything discarded."""

import random
from itertools import permutations

import pytest

from fusevol.backends.base import Backend
from fusevol.backends.memory import MemoryBackend
from fusevol.log import LogOptions, LogVolume, create_volume, open_volume
from fusevol.testing.determinism import Dawdling, GoingOn, run
from fusevol.testing.model import BLOCK, LAST_BLOCK, ZONES, State, VolumeModel
from fusevol.testing.small import random_options
from fusevol.testing.timeline import verify, verify_space

#: Batch headers, the record, the table: what a volume without data still takes.
EMPTY = 12 * BLOCK


@pytest.mark.parametrize("dawdling", [False, True])
@pytest.mark.parametrize("slack", [0, 64 << 10, 256 << 10])
def test_a_volume_overwritten_for_ever_stays_within_its_bounds(slack: int, dawdling: bool) -> None:
    async def overwrite() -> None:
        backend: Backend = GoingOn(Dawdling(MemoryBackend(), slack), slack) if dawdling else MemoryBackend()
        options = LogOptions(checkpoint_bytes=256 << 10, slack_bytes=slack)
        choose = random.Random(slack)
        live = 64 * BLOCK
        await create_volume(backend, "v")
        async with open_volume(backend, "v", options=options) as volume:
            await volume.write(bytes(live), 0)
            most = 0
            for _ in range(800):
                for _ in range(choose.randint(1, 6)):
                    await volume.write(choose.randbytes(8) * (BLOCK // 8), choose.randrange(64) * BLOCK)
                await volume.flush()
                most = max(most, await backend.used_size("v"))
            # A checkpoint that takes its time lets the log grow towards the next, and so does giving back.
            log = options.checkpoint_bytes * (3 if dawdling else 1)
            assert most <= live + max(slack, live // 8) + log + (96 << 10)
            assert volume.background_error is None
            await verify_space(backend, volume)
            assert await backend.used_size("v") <= live + EMPTY

    run(overwrite, seed=slack)


class Life:
    """A volume with its model, on which the same thing is done."""

    def __init__(self, volume: LogVolume, model: VolumeModel) -> None:
        self.volume = volume
        self.model = model

    async def write(self, seed: int) -> None:
        choose = random.Random(seed)
        for _ in range(8):
            start, count = choose.choice(ZONES)
            at = (start + choose.randrange(count)) * BLOCK
            if choose.random() < 0.2:
                self.model.discard(BLOCK, at)
                await self.volume.discard(BLOCK, at)
            else:
                data = choose.randbytes(8) * (BLOCK // 8)
                self.model.write(data, at)
                await self.volume.write(data, at)

    async def snapshot(self, name: str) -> None:
        await self.volume.snapshot(name)
        self.model.snapshots = {**self.model.snapshots, name: dict(self.model.live)}

    async def restore(self, name: str) -> str:
        safety = (await self.volume.restore(name)).name
        snapshots = {**self.model.snapshots, safety: dict(self.model.live)}
        self.model.adopt(State(snapshots[name], snapshots))
        return safety

    async def delete(self, name: str) -> None:
        exclusive = (await self.volume.snapshot_usage(name)).exclusive
        before = (await self.volume.usage()).data
        await self.volume.delete_snapshot(name)
        assert before - (await self.volume.usage()).data == exclusive == self.model.exclusive(name) * BLOCK
        self.model.snapshots = {other: tree for other, tree in self.model.snapshots.items() if other != name}


async def branching(backend: Backend, options: LogOptions) -> tuple[VolumeModel, list[str]]:
    """A volume with two restores in its past: snapshots on three branches, the live tree on a fourth place."""
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=options) as volume:
        life = Life(volume, VolumeModel("v"))
        await life.write(1)
        await life.snapshot("trunk")
        await life.write(2)
        await life.snapshot("fork")
        await life.write(3)
        one = await life.restore("trunk")
        await life.write(4)
        await life.snapshot("branch")
        await life.write(5)
        two = await life.restore("fork")
        await life.write(6)
        await verify(volume, life.model)
        return life.model, ["trunk", "fork", one, "branch", two]


@pytest.mark.slow
def test_snapshots_on_branches_give_everything_back_in_whatever_order_they_are_deleted() -> None:
    async def delete_in_all_orders() -> None:
        original = MemoryBackend()
        options = random_options(random.Random(0))
        model, names = await branching(original, options)
        for number, order in enumerate(permutations(names)):
            backend = MemoryBackend()
            backend.spaces = {"v": original.spaces["v"].copy()}
            async with open_volume(backend, "v", options=options) as volume:
                life = Life(volume, VolumeModel("v", dict(model.live), model.snapshots))
                for name in order:
                    await life.delete(name)
                    await life.write(number)
                    if number % 5 == 0:
                        await verify(volume, life.model)
                await verify_space(backend, volume)
                assert (await volume.usage()).data == len(life.model.live) * BLOCK
                await volume.discard(LAST_BLOCK * BLOCK, 0)
                await volume.reclaim()
                assert await backend.used_size("v") <= EMPTY

    run(delete_in_all_orders, seed=0)


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_write_larger_than_several_batches_arrives_whole(in_flight: int) -> None:
    async def write() -> None:
        backend = GoingOn(Dawdling(MemoryBackend(), in_flight), in_flight)
        options = LogOptions(in_flight=in_flight, cached_nodes=4, dirty_leaves=4)
        choose = random.Random(in_flight)
        data = choose.randbytes(1 << 20) * 21 + b"end"
        offset = (4 << 30) - (9 << 20) - 1234
        await create_volume(backend, "v")
        async with open_volume(backend, "v", options=options) as volume:
            for version in (data, data[::-1]):
                assert await volume.write(version, offset) == len(version)
                assert bytes(await volume.read(len(version) + 2, offset - 1)) == b"\0" + version + b"\0"
                await volume.flush()
            volume.abandon()
        async with open_volume(backend, "v", options=options) as volume:
            assert bytes(await volume.read(len(data), offset)) == data[::-1]
            await verify_space(backend, volume)

    run(write, seed=in_flight)
