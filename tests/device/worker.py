"""A process that does everything with a volume on a device, and knows what must be there should it be killed.

A program: `python -m tests.device.worker DEVICE VOLUME JOURNAL SEED`. The journal says what it is about to do, and
what was acknowledged; the next worker of the volume reads it, and finds in the volume what that allows. It ends with
status 1, and says so, where it finds anything else.
"""

import json
import mmap
import os
import random
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import trio

from fusevol.backends.device import DeviceBackend
from fusevol.errors import NoSpace, VolumeNotFound
from tests.device.tables import BLOCK

#: Of each block that is written: the volume's generation, the block's number, and that of the write; 0 is a hole.
_HEAD = struct.Struct("<QQQ")
#: Where large writes go, anywhere; and small ones, one behind the other.
_ANYWHERE, _STREAK = 3000, 1 << 20


def _block(generation: int, block: int, number: int) -> bytes:
    return (_HEAD.pack(generation, block, number) * (BLOCK // _HEAD.size + 1))[:BLOCK]


class Worker:
    """One volume."""

    def __init__(self, device: str, volume: str, journal: Path, seed: int) -> None:
        self._backend = DeviceBackend(device)
        self._volume = volume
        self._choose = random.Random(seed)
        self._generation = self._number = 0
        self._manifests: set[str] = set()
        #: By block, the writes that it may have come from: all that were begun, until one is acknowledged.
        self._allowed: defaultdict[int, set[int]] = defaultdict(lambda: {0})
        self._ever: defaultdict[int, set[int]] = defaultdict(lambda: {0})
        self._end = _STREAK
        for line in journal.read_text().splitlines() if journal.exists() else ():
            self._apply(*json.loads(line))
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def _note(self, what: str, *arguments: object) -> None:
        os.write(self._journal, json.dumps([what, *arguments]).encode() + b"\n")
        self._apply(what, *arguments)

    def _apply(self, what: str, *arguments: object) -> None:
        getattr(self, f"_on_{what}")(*arguments)

    def _on_generation(self, generation: int) -> None:
        self._generation, self._end, self._manifests = generation, _STREAK, {""}
        self._allowed.clear()
        self._ever.clear()

    def _on_write(self, number: int, start: int, count: int) -> None:
        self._number = max(self._number, number)
        for block in range(start, start + count):
            self._allowed[block] = self._allowed[block] | {number}
            self._ever[block] = self._ever[block] | {number}
        if start >= _STREAK:
            self._end = max(self._end, start + count)

    def _on_written(self, number: int, start: int, count: int) -> None:
        for block in range(start, start + count):
            self._allowed[block] = {number}

    def _on_discard(self, start: int, count: int) -> None:
        for block in [block for block in self._ever if start <= block < start + count]:
            self._allowed[block] = self._ever[block]

    def _on_put(self, manifest: str) -> None:
        self._manifests = self._manifests | {manifest}

    def _on_stored(self, manifest: str) -> None:
        self._manifests = {manifest}

    # -- what is done -----------------------------------------------------------------------------

    async def _write(self, start: int, count: int, *, small: bool = False) -> None:
        number = self._number + 1
        self._note("write", number, start, count)
        data = mmap.mmap(-1, count * BLOCK)
        data[:] = b"".join(_block(self._generation, block, number) for block in range(start, start + count))
        started = (
            self._backend.start_write(self._volume, memoryview(data), start * BLOCK, alone=True) if small else None
        )
        if started is None:
            await self._backend.write(self._volume, memoryview(data), start * BLOCK)
        else:
            await started.finished()
        self._note("written", number, start, count)

    async def _discard(self, start: int, count: int) -> None:
        self._note("discard", start, count)
        await self._backend.discard(self._volume, count * BLOCK, start * BLOCK)

    async def _check(self, start: int, count: int) -> None:
        read = self._choose.choice([self._backend.read, self._backend.read_stored])
        data = bytes(await read(self._volume, count * BLOCK, start * BLOCK)).ljust(count * BLOCK, b"\0")
        for block in range(start, start + count):
            found = data[(block - start) * BLOCK :][:BLOCK]
            number = _HEAD.unpack_from(found)[2]
            there = found == (_block(self._generation, block, number) if number else bytes(BLOCK))
            if not there or number not in self._allowed.get(block, {0}):
                raise AssertionError(f"block {block} has {found[:24]!r}, not one of {self._allowed.get(block)}")

    def _ranges(self) -> Iterator[tuple[int, int]]:
        for low, high in ((0, _ANYWHERE + 1000), (_STREAK, self._end)):
            yield from ((start, min(500, high - start)) for start in range(low, high, 500))

    async def _anywhere(self) -> None:
        for _ in range(self._choose.randrange(20, 80)):
            start, many = self._choose.randrange(_ANYWHERE), self._choose.choice([1, 2, 16, 40, 200, 700])
            kind = self._choose.choices(["write", "discard", "check", "flush", "sweep"], [10, 5, 8, 3, 0.2])[0]
            if kind == "write":
                await self._write(start, many)
            elif kind == "discard":
                await self._discard(start, many)
            elif kind == "check":
                await self._check(start, many)
            elif kind == "flush":
                await self._backend.flush(self._volume)
            else:
                await self._backend.sweep()

    async def _streaks(self) -> None:
        for _ in range(self._choose.randrange(10, 40)):
            for _ in range(self._choose.randrange(1, 40)):
                await self._write(self._end, self._choose.choice([1, 1, 1, 2, 4]), small=True)
            kind = self._choose.choice(["skip", "large", "discard", "flush", "release", "manifest"])
            if kind == "skip":
                await self._write(self._end + self._choose.choice([1, 5, 300]), 1, small=True)
            elif kind == "large":
                await self._write(self._end, self._choose.choice([17, 100, 300]))
            elif kind == "discard":
                await self._discard(max(_STREAK, self._end - self._choose.choice([50, 500, 5000])), 3000)
            elif kind == "flush":
                await self._backend.flush(self._volume)
            elif kind == "release":
                self._backend.release(self._volume)
            else:
                await self._replace_manifest()

    async def _replace_manifest(self) -> None:
        stored = await self._backend.get_manifest(self._volume)
        if stored.data.decode() not in self._manifests:
            raise AssertionError(f"the manifest is {stored}, not one of {self._manifests}")
        self._note("put", new := f"{self._generation} {self._choose.random()}")
        await self._backend.put_manifest(self._volume, new.encode(), stored.version)
        self._note("stored", new)

    async def live(self) -> None:
        """Check what there is, and do everything, until killed."""
        while True:
            try:
                for start, count in self._ranges():
                    await self._check(start, count)
            except VolumeNotFound:
                # It was about to be made, or had been deleted.
                self._note("generation", self._generation + 1)
                await self._backend.create(self._volume)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._anywhere)
                    nursery.start_soon(self._streaks)
            except* NoSpace:
                await self._discard(0, 1 << 40)
            if self._choose.random() < 0.2 or self._end - _STREAK > 20000:
                # From here on it may be there, or not; where it is, what was in it is.
                await self._backend.delete(self._volume)
            elif self._choose.random() < 0.3:
                await self._discard(0, 1 << 40)
                await self._backend.flush(self._volume)


if __name__ == "__main__":
    device, volume, journal, seed = sys.argv[1:]
    trio.run(Worker(device, volume, Path(journal), int(seed)).live)
