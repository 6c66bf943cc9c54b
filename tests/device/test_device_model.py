"""Whatever is done to the volumes of a device, by two instances at once, they hold what was written to them."""

import random
from pathlib import Path

import pytest

from fusevol.backends.device import DeviceBackend
from fusevol.errors import NoSpace
from tests.device.tables import BLOCK, verify

SPAN = 2000


class World:
    """Two instances, each with a volume of its own, that the other only reads; and what must be in them."""

    def __init__(self, device: Path, seed: int) -> None:
        self.device = device
        self.choose = random.Random(seed)
        self.backends = [DeviceBackend(device), DeviceBackend(device)]
        self.volumes: list[dict[int, bytes]] = [{}, {}]
        self.streak = [0, 0]

    async def begin(self) -> None:
        for index, backend in enumerate(self.backends):
            await backend.create(f"v{index}")

    async def step(self, index: int) -> None:
        choose, backend, volume, name = self.choose, self.backends[index], self.volumes[index], f"v{index}"
        kind = choose.choices(
            ["write", "append", "discard", "flush", "read", "sizes", "reopen", "release", "recreate", "sweep"],
            [10, 20, 10, 6, 10, 4, 1, 2, 0.3, 1],
        )[0]
        if kind in ("write", "append"):
            start = choose.randrange(SPAN) if kind == "write" else self.streak[index]
            count = choose.choice([1, 1, 2, 5, 16, 17, 100]) if kind == "write" else choose.choice([1, 1, 3])
            data = b"".join(choose.randbytes(BLOCK // 16) * 16 for _ in range(count))
            done = 0
            try:
                while done < len(data):
                    done += await backend.write(name, data[done:], start * BLOCK + done)
            except NoSpace:
                await backend.flush(name)
            volume |= {start + at // BLOCK: data[at : at + BLOCK] for at in range(0, done, BLOCK)}
            self.streak[index] = start + done // BLOCK
        elif kind == "discard":
            start, count = choose.choice([(choose.randrange(SPAN), choose.choice([1, 3, 50, 400])), (1000, 1 << 40)])
            await backend.discard(name, count * BLOCK, start * BLOCK)
            for block in [block for block in volume if start <= block < start + count]:
                del volume[block]
        elif kind == "flush":
            await backend.flush(name)
        elif kind == "read":
            await self.compare(choose.randrange(SPAN), choose.choice([1, 7, 300]), index, choose.choice(self.backends))
        elif kind == "sizes":
            assert await backend.used_size(name) == len(volume) * BLOCK
        elif kind == "reopen":
            await backend.aclose()
            self.backends[index] = DeviceBackend(self.device)
        elif kind == "release":
            backend.release(name)
        elif kind == "recreate":
            await choose.choice(self.backends).delete(name)
            await backend.create(name)
            volume.clear()
        else:
            await backend.sweep()

    async def compare(self, start: int, count: int, index: int, backend: DeviceBackend) -> None:
        how = self.choose.choice([backend.read, backend.read_stored])
        data = bytes(await how(f"v{index}", count * BLOCK, start * BLOCK))
        now = backend.read_nowait(f"v{index}", count * BLOCK, start * BLOCK)
        assert now is None or bytes(now) == data
        for block, written in self.volumes[index].items():
            if start <= block < start + count:
                assert data[(block - start) * BLOCK :][:BLOCK] == written, f"block {block} of v{index}"


@pytest.mark.parametrize("seed", range(12))
async def test_volumes_hold_what_was_written_to_them(device: Path, seed: int) -> None:
    world = World(device, seed)
    await world.begin()
    for _ in range(600):
        await world.step(world.choose.randrange(2))
    for index, backend in enumerate(world.backends):
        await world.compare(0, SPAN + 100, index, world.backends[1 - index])
        await backend.flush(f"v{index}")
        assert await backend.used_size(f"v{index}") == len(world.volumes[index]) * BLOCK
    for backend in world.backends:
        await backend.aclose()
    assert verify(device) == {f"v{index}": len(volume) for index, volume in enumerate(world.volumes)}
