"""Wherever the power is cut: what was acknowledged is there, other writes are whole or not there, the tables fit."""

import random
from pathlib import Path

import pytest
import trio

from fusevol.backends.base import NO_VERSION
from fusevol.backends.device import DeviceBackend
from fusevol.backends.device import backend as module
from fusevol.errors import NoSpace
from tests.device.powercut import Journal, RecordedDisk
from tests.device.tables import BLOCK, MIB, verify

SIZE = 32 * MIB


class Story:
    """What was done, and by how many entries of the journal it had been acknowledged."""

    def __init__(self, journal: Journal, seed: int) -> None:
        self.journal = journal
        self.choose = random.Random(seed)
        #: Per block: (entries when it began, entries when it returned, its bytes; None for a discard).
        self.blocks: dict[int, list[tuple[int, int, bytes | None]]] = {}
        self.manifests: list[tuple[int, int, bytes]] = [(0, 0, b"")]
        self.flushes: list[tuple[int, int]] = []
        self.created = 0

    @property
    def now(self) -> int:
        return len(self.journal.entries)

    async def tell(self, backend: DeviceBackend) -> None:
        choose = self.choose
        await backend.create("v")
        self.created = self.now
        head, version = 0, NO_VERSION
        for _ in range(60):
            began = self.now
            kind = choose.choices(["small", "large", "discard", "flush", "manifest"], [12, 3, 4, 3, 1])[0]
            if kind in ("small", "large"):
                count = choose.choice([1, 2, 5]) if kind == "small" else choose.choice([20, 200])
                start = head if choose.random() < 0.8 else choose.randrange(head + 1)
                data = choose.randbytes(BLOCK) * count
                data = b"".join(bytes([n % 256]) + data[n * BLOCK + 1 : (n + 1) * BLOCK] for n in range(count))
                try:
                    assert await backend.write("v", data, start * BLOCK) == len(data)
                except NoSpace:
                    break
                for n in range(count):
                    row = (began, self.now, data[n * BLOCK : (n + 1) * BLOCK])
                    self.blocks.setdefault(start + n, []).append(row)
                head = max(head, start + count)
            elif kind == "discard":
                start, count = choose.randrange(head + 1), choose.choice([1, 10, 300])
                await backend.discard("v", count * BLOCK, start * BLOCK)
                for block in range(start, start + count):
                    if block in self.blocks:
                        self.blocks[block].append((began, self.now, None))
            elif kind == "flush":
                await backend.flush("v")
                self.flushes.append((began, self.now))
            else:
                body = choose.randbytes(choose.choice([10, 9000]))
                version = await backend.put_manifest("v", body, version)
                self.manifests.append((began, self.now, body))
        await backend.flush("v")
        self.flushes.append((began, self.now))

    async def verify(self, backend: DeviceBackend, cut: int) -> None:
        if cut < self.created:
            assert await backend.list() in ([], ["v"])
            if not await backend.list():
                return
        found = (await backend.get_manifest("v")).data
        done = [body for _, returned, body in self.manifests if returned <= cut]
        assert found in [done[-1], *(body for began, returned, body in self.manifests if began <= cut < returned)]
        there = bytes(await backend.read_stored("v", (max(self.blocks, default=0) + 1) * BLOCK, 0))
        for block, rows in self.blocks.items():
            data = there[block * BLOCK :][:BLOCK] or bytes(BLOCK)
            certain = [row for row in rows if row[1] <= cut]
            if certain and certain[-1][2] is None:
                continue  # discarded: it may be anything
            possible = [certain[-1][2] if certain else bytes(BLOCK)]
            under_way = [row for row in rows if row[0] <= cut < row[1]]
            possible += [row[2] for row in under_way]
            if any(row[2] is None for row in under_way):
                continue
            if data not in possible:
                # Only a small write to blocks that were prepared for it can be torn, before anybody is told of it.
                assert under_way, f"block {block} has other bytes"
                new, old = under_way[-1][2] or b"", possible[0] or b""
                for at in range(0, BLOCK, 512):
                    assert data[at : at + 512] in (new[at : at + 512], old[at : at + 512]), f"block {block} at {at}"


@pytest.mark.parametrize("seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 30))])
def test_a_cut_anywhere_loses_nothing_that_was_acknowledged(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, image = tmp_path / "device", tmp_path / "image"
    device.touch()
    with open(device, "r+b") as file:
        file.truncate(SIZE)
    journal = Journal()
    monkeypatch.setattr(RecordedDisk, "journal", journal)
    story = Story(journal, seed)

    async def tell() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "Disk", RecordedDisk)
            backend = DeviceBackend(device)
            await story.tell(backend)
            await backend.aclose()

    trio.run(tell)
    assert verify(device).keys() == {"v"}

    async def recover(cut: int) -> None:
        backend = DeviceBackend(image)
        await story.verify(backend, cut)
        # And it goes on from there.
        if not await backend.list():
            await backend.create("v")
        await backend.write("v", b"x" * BLOCK, 1 << 40)
        await backend.flush("v")
        assert bytes(await backend.read_stored("v", BLOCK, 1 << 40)) == b"x" * BLOCK
        await story.verify(backend, cut)
        await backend.aclose()

    choose = random.Random(seed)
    entries = len(journal.entries)
    for cut in sorted({*choose.sample(range(entries), 40), *range(0, min(entries, 12), 3), entries - 1}):
        journal.materialise(cut, choose, image, SIZE)
        try:
            trio.run(recover, cut)
            verify(image)
        except BaseException:
            print(f"seed {seed}, cut {cut} of {entries}")
            raise
