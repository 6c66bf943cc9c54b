"""Devices: which are taken, which refused, and what becomes of one that is damaged, grown or shrunk."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from fusevol.backends.device import DeviceBackend
from fusevol.backends.device.catalog import Catalog
from fusevol.backends.device.disk import Disk
from fusevol.errors import (
    BackendError,
    CorruptData,
    FusevolError,
    InvalidArgument,
    NotSupported,
    VolumeNotFound,
)
from tests.device.contents import flip, noise, peek, poke, with_volume
from tests.device.tables import BLOCK, MIB, rows, verify

Make = Callable[[int], Path]

# -- which devices are taken ----------------------------------------------------------------------


async def test_an_empty_device_stays_empty_until_there_is_a_volume(device: Path) -> None:
    backend = DeviceBackend(device)
    assert await backend.list() == []
    await backend.sweep()
    with pytest.raises(VolumeNotFound):
        await backend.read("v", BLOCK, 0)
    assert backend.capacity("v") is None
    await backend.aclose()
    assert not any(peek(device, 0, 64 * MIB))


@pytest.mark.parametrize("offset", [0, 1080, 64 * 1024, MIB - 1, 63 * MIB, 64 * MIB - 1])
async def test_a_device_that_holds_something_is_refused_and_left_alone(device: Path, offset: int) -> None:
    poke(device, offset, b"\x53")
    before = peek(device, 0, 64 * MIB)
    backend = DeviceBackend(device)
    with pytest.raises(InvalidArgument, match="is not empty"):
        await backend.list()
    with pytest.raises(InvalidArgument, match="is not empty"):
        await backend.create("v")
    await backend.aclose()
    assert peek(device, 0, 64 * MIB) == before


@pytest.mark.parametrize(("size", "words"), [(0, "has 0 bytes"), (31, "at least 32 MiB")])
async def test_a_device_that_is_too_small_is_refused(make_device: Make, size: int, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        await DeviceBackend(make_device(size)).create("v")


async def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="neither a block device nor a file"):
        await DeviceBackend(tmp_path).list()
    with pytest.raises(InvalidArgument, match="neither a block device nor a file"):
        await DeviceBackend("/dev/null").list()
    with pytest.raises(BackendError, match="No such file"):
        await DeviceBackend(tmp_path / "nowhere").list()


async def test_a_device_that_was_being_made_one_for_volumes_when_all_ended_is_empty_still(device: Path) -> None:
    await with_volume(device, noise(3))
    poke(device, 0, bytes(MIB))
    await with_volume(device)
    assert verify(device) == {"v": 0}


async def test_several_who_make_it_one_for_volumes_at_once_do_it_once(device: Path) -> None:
    backends = [DeviceBackend(device) for _ in range(5)]
    async with trio.open_nursery() as nursery:
        for number, backend in enumerate(backends):
            nursery.start_soon(backend.create, f"v{number}")
    for backend in backends:
        assert await backend.list() == [f"v{number}" for number in range(5)]
        await backend.aclose()


async def test_a_later_version_is_not_supported(device: Path) -> None:
    from xxhash import xxh3_64_intdigest

    await with_volume(device)
    head = bytearray(peek(device, 0, 72))
    head[8] = 2
    for offset in (0, MIB // 2):
        poke(device, offset, bytes(head) + xxh3_64_intdigest(bytes(head)).to_bytes(8, "little"))
    # It may have something else where the copy was.
    flip(device, MIB // 2 + 40)
    before = peek(device, 0, MIB)
    with pytest.raises(NotSupported, match="version 2"):
        await DeviceBackend(device).list()
    assert peek(device, 0, MIB) == before


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [3, 8, 20, 40, 71, 75])
async def test_the_first_block_has_a_copy_that_stands_in_for_it(device: Path, offset: int) -> None:
    await with_volume(device, noise(3))
    flip(device, offset)
    backend = DeviceBackend(device)
    assert await backend.list() == ["v"]
    assert bytes(await backend.read("v", 3 * BLOCK, 0)) == noise(3)
    await backend.aclose()
    assert peek(device, 0, 80) == peek(device, MIB // 2, 80)
    flip(device, offset)
    flip(device, MIB // 2 + 40)
    with pytest.raises(FusevolError, match="first block" if offset > 7 else "is not empty"):
        await DeviceBackend(device).list()


async def test_the_copy_of_the_first_block_is_made_again(device: Path) -> None:
    await with_volume(device)
    flip(device, MIB // 2 + 40)
    assert await DeviceBackend(device).list() == ["v"]
    assert peek(device, 0, 80) == peek(device, MIB // 2, 80)


async def test_what_somebody_else_may_have_written_over_a_device_stays_and_how_to_undo_it_is_said(device: Path) -> None:
    await with_volume(device)
    poke(device, 0, bytes(1024) + noise(3))
    before = peek(device, 0, MIB)
    for attempt in ("list", "create"):
        with pytest.raises(CorruptData, match="begins with something else") as raised:
            await (DeviceBackend(device).list() if attempt == "list" else DeviceBackend(device).create("w"))
    assert peek(device, 0, MIB) == before
    assert raised.value.hint
    await trio.run_process(raised.value.hint.partition(": ")[2].split(), capture_stderr=True)
    assert await DeviceBackend(device).list() == ["v"]


async def test_a_first_block_that_never_got_to_the_device_is_not_taken_for_there(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kernel could not write it has in its cache all the same."""
    cache, written, read = dict[int, bytes](), Disk.write_table, Disk.read

    def lost(self: Disk, data: bytes, offset: int) -> None:
        if offset in (0, MIB // 2):
            cache[offset] = data
            raise OSError(5, "Input/output error")
        written(self, data, offset)

    monkeypatch.setattr(Disk, "read", lambda self, size, at: cache[at][:size] if at in cache else read(self, size, at))
    with monkeypatch.context() as patch:
        patch.setattr(Disk, "write_table", lost)
        with pytest.raises(BackendError, match="Input/output"):
            await DeviceBackend(device).create("v")
    assert cache
    await with_volume(device)
    assert verify(device) == {"v": 0}


@pytest.mark.parametrize("offset", [0, 15, 20, 30])
async def test_tables_whose_beginning_is_damaged_are_not_taken_for_empty(device: Path, offset: int) -> None:
    await with_volume(device, noise(3))
    flip(device, 9 * MIB + offset)
    before = peek(device, MIB, 9 * MIB)
    with pytest.raises(CorruptData, match="of the tables"):
        await DeviceBackend(device).list()
    assert peek(device, MIB, 9 * MIB) == before


async def test_a_flipped_bit_anywhere_in_the_tables_is_noticed_and_nothing_is_written(device: Path) -> None:
    await with_volume(device, noise(100))
    [(pages,)] = rows(device, "PRAGMA page_count")
    choose, noticed = random.Random(1), 0
    for page in range(pages):
        at = 9 * MIB + page * BLOCK + choose.randrange(100 if page == 0 else 0, BLOCK)
        good = peek(device, at, 1)
        poke(device, at, bytes([good[0] ^ 1 << choose.randrange(8)]))
        before = peek(device, 9 * MIB, MIB)
        backend = DeviceBackend(device)
        # Not every page is needed for this.
        with suppress(CorruptData):
            await backend.write("v", noise(1), 200 * BLOCK)
            poke(device, at, good)
            await backend.aclose()
            continue
        await backend.aclose()
        noticed += 1
        assert peek(device, 9 * MIB, MIB) == before
        poke(device, at, good)
    assert noticed > 3


async def test_pages_that_changed_places_are_noticed(device: Path) -> None:
    await with_volume(device, noise(100))
    places = [9 * MIB + page * BLOCK for page in (2, 3)]
    one, other = (peek(device, place, BLOCK) for place in places)
    poke(device, places[0], other)
    poke(device, places[1], one)
    with pytest.raises(CorruptData, match="of the tables"):
        await DeviceBackend(device).write("v", noise(1), 200 * BLOCK)


async def test_free_blocks_that_belong_to_somebody_are_not_written_to(device: Path) -> None:
    await with_volume(device, noise(100))
    backend = DeviceBackend(device)
    await backend.list()
    assert backend._device
    catalog = backend._device.catalog
    with catalog.disk.locked():
        catalog._execute("UPDATE extent SET address = address + 1000")
    await backend.discard("v", 100 * BLOCK, 0)
    for _ in range(2):
        with pytest.raises(CorruptData, match="contradict themselves"):
            await backend.flush("v")
    await backend.aclose()


# -- growing and shrinking ------------------------------------------------------------------------


async def test_a_device_that_grew_has_more_room(device: Path) -> None:
    await with_volume(device, noise(10))
    os.truncate(device, 100 * MIB)
    backend = DeviceBackend(device)
    await backend.write("v", noise(10, 1), 10 * BLOCK)
    capacity = backend.capacity("v")
    assert capacity
    assert capacity.total == 90 * MIB
    assert capacity.free == 90 * MIB - 20 * BLOCK
    await backend.aclose()
    assert verify(device) == {"v": 20}


async def test_growing_that_failed_is_made_up_for(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_volume(device, noise(40))
    os.truncate(device, 80 * MIB)
    backend = DeviceBackend(device)
    for name in ("_give", "_grow"):
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, name, _broken)
            with pytest.raises(BackendError, match="broken"):
                await backend.list()
    assert await backend.list() == ["v"]
    capacity = backend.capacity("")
    assert capacity is not None
    assert capacity.total > 64 * MIB
    await backend.aclose()
    assert verify(device) == {"v": 40}


def _broken(*_: object) -> None:
    raise BackendError("broken")


async def test_a_device_that_shrank_is_refused(device: Path) -> None:
    await with_volume(device, noise(10))
    os.truncate(device, 40 * MIB)
    with pytest.raises(BackendError, match="it had"):
        await DeviceBackend(device).list()
    os.truncate(device, 64 * MIB)
    backend = DeviceBackend(device)
    assert bytes(await backend.read("v", 10 * BLOCK, 0)) == noise(10)
    await backend.aclose()
