"""Damage: flip bits of a stored volume one at a time, and see that nothing wrong is ever returned."""

import random
from collections.abc import Iterator

import trio

from fusevol.backends.base import Backend
from fusevol.backends.memory import MemoryBackend
from fusevol.errors import FusevolError
from fusevol.log import LogOptions, LogVolume, clone_volume, create_volume, open_volume

__all__ = ["BLOCKS", "Contents", "bits_to_flip", "flip", "make_volume", "read_all", "stored_blocks"]

_BLOCK = 4096
#: Logical blocks that are looked at.
BLOCKS = 8
#: What is in a volume: "live" and snapshots by name, each all of its BLOCKS.
Contents = dict[str, bytes]


async def make_volume(backend: Backend, volume_id: str, *, clean: bool, seed: int = 0) -> Contents:
    """A small volume with two snapshots and a clone of one; not clean: its writer died after a flush and a while."""
    rng = random.Random(seed)
    live = bytearray(BLOCKS * _BLOCK)
    contents: Contents = {}

    async def write(volume: LogVolume, block: int) -> None:
        data = rng.randbytes(_BLOCK)
        live[block * _BLOCK : (block + 1) * _BLOCK] = data
        await volume.write(data, block * _BLOCK)

    await create_volume(backend, volume_id)
    async with open_volume(backend, volume_id) as volume:
        for block in range(3):
            await write(volume, block)
        await volume.snapshot("first")
        contents["first"] = bytes(live)
        await write(volume, 1)
        await volume.snapshot("second")
        contents["second"] = bytes(live)
    await clone_volume(backend, volume_id, "first", f"{volume_id}-clone")
    async with open_volume(backend, volume_id, options=LogOptions(idle_seconds=0.01)) as volume:
        await write(volume, 2)
        await volume.flush()
        await write(volume, 5)
        await volume.discard(_BLOCK, 0)
        live[:_BLOCK] = bytes(_BLOCK)
        await volume.flush()
        if not clean:
            await trio.sleep(1)
            volume.abandon()
    contents["live"] = bytes(live)
    return contents


async def read_all(backend: Backend, volume_id: str) -> Contents | FusevolError:
    """Everything in the volume, without changing it; or the error that opening or reading it raised."""
    try:
        async with open_volume(backend, volume_id, read_only=True) as volume:
            found = {"live": bytes(await volume.read(BLOCKS * _BLOCK, 0))}
            for snapshot in volume.snapshots():
                async with volume.view(snapshot.name) as view:
                    found[snapshot.name] = bytes(await view.read(BLOCKS * _BLOCK, 0))
            return found
    except FusevolError as error:
        return error


async def stored_blocks(backend: MemoryBackend, volume_id: str, start: int, end: int) -> list[int]:
    """Offsets of the blocks of the space in the range that are not all zeros."""
    data = bytes(await backend.read(volume_id, end - start, start))
    return [start + at for at in range(0, len(data), _BLOCK) if any(data[at : at + _BLOCK])]


async def flip(backend: MemoryBackend, volume_id: str, bit: int) -> None:
    """Flip one bit of the space; the same again flips it back."""
    offset = bit >> 3
    byte = bytes(await backend.read(volume_id, 1, offset))[0]
    await backend.write(volume_id, bytes([byte ^ (1 << (bit & 7))]), offset)


def bits_to_flip(blocks: list[int], sample: int | None, seed: int) -> Iterator[int]:
    """Bits of these blocks: all of them, or of each block those of its head and tail and `sample` others."""
    rng = random.Random(seed)
    for offset in blocks:
        if sample is None:
            yield from range(offset * 8, (offset + _BLOCK) * 8)
            continue
        # Heads and tails of blocks have the headers, checksums, bitmaps and the beginning of every record.
        edges = [*range(0, 96 * 8, 5), *range((_BLOCK - 8) * 8, _BLOCK * 8, 3)]
        yield from (offset * 8 + bit for bit in sorted({*edges, *rng.sample(range(_BLOCK * 8), sample)}))
