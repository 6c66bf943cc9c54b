"""A flipped bit is an error, or nothing at all; never other bytes."""

import pytest
import trio
from trio.testing import MockClock

from fusevol.backends.memory import MemoryBackend
from fusevol.errors import CorruptData, FusevolError
from fusevol.log import open_volume
from fusevol.testing.damage import BLOCKS, Contents, bits_to_flip, flip, make_volume, read_all, stored_blocks

BLOCK = 4096
EPOCH = 1 << 39


async def space(backend: MemoryBackend) -> list[int]:
    """Offsets of all blocks stored: every attach has an epoch of its own to write in."""
    found = []
    for epoch in range(1, 4):
        found += await stored_blocks(backend, "web", epoch * EPOCH, epoch * EPOCH + 64 * BLOCK)
    return found


def acceptable(found: Contents | FusevolError, wanted: Contents) -> bool:
    return found == wanted if isinstance(found, dict) else '"web"' in str(found)


@pytest.mark.parametrize("clean", [True, False], ids=["closed", "writer died"])
async def test_any_bit_flipped_in_the_space_is_an_error_that_names_the_volume_or_does_no_harm(
    clean: bool, autojump_clock: MockClock
) -> None:
    backend = MemoryBackend()
    wanted = await make_volume(backend, "web", clean=clean)
    assert await read_all(backend, "web") == wanted
    blocks = await space(backend)
    assert len(blocks) > 10
    errors = 0
    for bit in bits_to_flip(blocks, sample=16, seed=1):
        await flip(backend, "web", bit)
        found = await read_all(backend, "web")
        assert acceptable(found, wanted), f"bit {bit & 7} of byte {bit >> 3:#x}: {found!r}"[:300]
        errors += not isinstance(found, dict)
        await flip(backend, "web", bit)
    assert errors > 100, "damage that nobody notices proves nothing"
    assert await read_all(backend, "web") == wanted


async def test_any_bit_flipped_in_the_manifest_is_an_error() -> None:
    backend = MemoryBackend()
    await make_volume(backend, "web", clean=True)
    data, version = await backend.get_manifest("web")
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        version = await backend.put_manifest("web", damaged, version)
        assert isinstance(await read_all(backend, "web"), FusevolError)


async def test_a_manifest_cut_short_anywhere_is_an_error() -> None:
    backend = MemoryBackend()
    wanted = await make_volume(backend, "web", clean=True)
    data, version = await backend.get_manifest("web")
    for size in range(len(data)):
        version = await backend.put_manifest("web", data[:size], version)
        assert isinstance(await read_all(backend, "web"), CorruptData)
    await backend.put_manifest("web", data, version)
    assert await read_all(backend, "web") == wanted


async def test_damage_is_found_when_attaching_for_writing_too_and_changes_nothing_that_was_readable() -> None:
    backend = MemoryBackend()
    wanted = await make_volume(backend, "web", clean=True)
    blocks = await space(backend)
    for number, bit in enumerate(bits_to_flip(blocks, sample=1, seed=2)):
        if number % 40:
            continue
        copy = MemoryBackend()
        await make_volume(copy, "web", clean=True)
        await flip(copy, "web", bit)
        found: bytes | FusevolError
        with trio.fail_after(10):
            try:
                async with open_volume(copy, "web") as volume:
                    found = bytes(await volume.read(BLOCKS * BLOCK, 0))
            except FusevolError as error:
                found = error
        assert found == wanted["live"] or '"web"' in str(found)


async def test_scrub_finds_a_damaged_block_and_names_who_has_it() -> None:
    backend = MemoryBackend()
    wanted = await make_volume(backend, "web", clean=True)
    shared = wanted["first"][BLOCK * 0 : BLOCK]
    for offset in await space(backend):
        if bytes(await backend.read("web", BLOCK, offset)) == shared:
            await flip(backend, "web", offset * 8 + 12345)
    async with open_volume(backend, "web") as volume:
        damage = (await volume.scrub()).damage
        assert [(item.block, set(item.holders)) for item in damage] == [(0, {"first", "second"})]
        assert bytes(await volume.read(BLOCKS * BLOCK, 0)) == wanted["live"]
