"""Devices: which are taken, which refused, and what becomes of one that is damaged, grown, full or shared."""

import os
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest
import trio

from fusevol.backends.base import NO_VERSION
from fusevol.backends.device import DeviceBackend
from fusevol.backends.device.catalog import Catalog
from fusevol.backends.device.disk import Disk, TablesBusy
from fusevol.errors import (
    BackendError,
    CorruptData,
    FusevolError,
    InvalidArgument,
    NoSpace,
    NotSupported,
    VolumeNotFound,
)
from tests.device.tables import BLOCK, MIB, rows, verify

Make = Callable[[int], Path]


def noise(blocks: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(blocks * BLOCK)


def poke(device: Path, offset: int, data: bytes) -> None:
    with open(device, "r+b") as file:
        file.seek(offset)
        file.write(data)


def peek(device: Path, offset: int, size: int) -> bytes:
    with open(device, "rb") as file:
        file.seek(offset)
        return file.read(size)


def flip(device: Path, offset: int) -> None:
    poke(device, offset, bytes([peek(device, offset, 1)[0] ^ 4]))


async def fill(backend: DeviceBackend, name: str) -> int:
    """Write to a volume until the device is full; return how many bytes."""
    written = 0
    while True:
        try:
            written += await backend.write(name, noise(64), written)
        except NoSpace as error:
            assert "is full" in str(error)  # noqa: PT017
            return written


async def with_volume(device: Path, data: bytes = b"") -> None:
    backend = DeviceBackend(device)
    await backend.create("v")
    await backend.write("v", data, 0)
    await backend.aclose()


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
    with pytest.raises(NotSupported, match="version 2"):
        await DeviceBackend(device).list()


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [3, 8, 20, 40, 71, 75])
async def test_the_first_block_has_a_copy_that_stands_in_for_it(device: Path, offset: int) -> None:
    await with_volume(device, noise(3))
    flip(device, offset)
    backend = DeviceBackend(device)
    assert await backend.list() == ["v"]
    assert bytes(await backend.read("v", 3 * BLOCK, 0)) == noise(3)
    await backend.aclose()
    flip(device, MIB // 2 + 40)
    with pytest.raises(FusevolError, match="first block" if offset > 7 else "is not empty"):
        await DeviceBackend(device).list()


async def test_what_somebody_else_has_written_over_a_device_is_theirs(device: Path) -> None:
    await with_volume(device)
    poke(device, 0, bytes(1024) + noise(3))
    with pytest.raises(InvalidArgument, match="is not empty"):
        await DeviceBackend(device).list()


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


# -- a full device --------------------------------------------------------------------------------


async def test_a_full_device_says_so_and_has_room_again_once_something_is_given_back(device: Path) -> None:
    backend = DeviceBackend(device)
    await backend.create("v")
    written = await fill(backend, "v")
    capacity = backend.capacity("v")
    assert capacity
    assert capacity.free == 0
    assert written == capacity.total
    await backend.discard("v", 64 * BLOCK, 0)
    after = backend.capacity("v")
    assert after
    assert after.free == 64 * BLOCK
    # What was asked to be given back is, where it is needed.
    assert await backend.write("v", noise(64, 1), written) == 64 * BLOCK
    assert bytes(await backend.read("v", 64 * BLOCK, written)) == noise(64, 1)
    await backend.aclose()
    verify(device)


async def test_a_write_may_go_to_very_many_free_places(device: Path) -> None:
    backend = DeviceBackend(device)
    await backend.create("v")
    await fill(backend, "v")
    for block in range(0, 1000, 2):
        await backend.discard("v", BLOCK, block * BLOCK)
    await backend.flush("v")
    data, done, steps = noise(500, 2), 0, 0
    while done < len(data):
        done += await backend.write("v", data[done:], (1 << 30) + done)
        steps += 1
    assert steps == 1
    assert bytes(await backend.read("v", len(data), 1 << 30)) == data
    for block in range(1, 1000, 2):
        assert bytes(await backend.read("v", BLOCK, block * BLOCK)) == noise(64)[block % 64 * BLOCK :][:BLOCK]
    await backend.aclose()
    verify(device)


async def test_a_range_of_very_many_pieces_is_given_back_whole(device: Path) -> None:
    backend = DeviceBackend(device)
    await backend.create("v")
    for block in range(0, 1800, 2):
        await backend.write("v", noise(1, block), block * BLOCK)
    await backend.discard("v", 1 << 40, 7 * BLOCK)
    await backend.flush("v")
    assert await backend.used_size("v") == 4 * BLOCK
    await backend.aclose()
    assert verify(device) == {"v": 4}


async def test_a_volume_of_very_many_pieces_is_deleted_whole_even_if_that_is_interrupted(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = DeviceBackend(device)
    for name in ("v", "w"):
        await backend.create(name)
    for block in range(0, 1200, 2):
        await backend.write("v", noise(1, block), block * BLOCK)
    assert backend._device
    catalog, wiped = backend._device.catalog, [0]
    wipe = catalog._wipe

    def failing(number: int) -> Callable[[], bool]:
        wiped[0] += 1
        if wiped[0] > 1:
            raise BackendError("the disk is away")
        return wipe(number)

    with monkeypatch.context() as patch:
        patch.setattr(catalog, "_wipe", failing)
        with pytest.raises(BackendError, match="away"):
            await backend.delete("v")
    assert await backend.list() == ["w"]
    assert set(verify(device)) == {"None", "w"}
    await backend.sweep()
    assert verify(device) == {"w": 0}
    await backend.aclose()


async def test_sweeping_tells_the_device_what_is_free_and_takes_nothing_from_anybody(device: Path) -> None:
    backend, other = DeviceBackend(device), DeviceBackend(device)
    for name in ("v", "w"):
        await backend.create(name)
        await backend.write(name, noise(2048, len(name)), 0)
    await other.write("w", noise(500, 7), 2048 * BLOCK)
    await backend.delete("v")
    before = os.stat(device).st_blocks * 512
    await backend.sweep()
    assert os.stat(device).st_blocks * 512 <= before - 2000 * BLOCK
    assert bytes(await backend.read("w", 2048 * BLOCK, 0)) == noise(2048, 1)
    assert bytes(await other.read_stored("w", 500 * BLOCK, 2048 * BLOCK)) == noise(500, 7)
    assert await backend.write("w", noise(3000, 8), 3000 * BLOCK)
    assert await other.write("w", noise(300, 9), 7000 * BLOCK) == 300 * BLOCK
    assert bytes(await other.read_stored("w", 300 * BLOCK, 7000 * BLOCK)) == noise(300, 9)
    for backend_ in (backend, other):
        await backend_.aclose()
    assert verify(device).keys() == {"w"}


# -- others on the same device --------------------------------------------------------------------


async def test_what_a_writer_that_lost_its_volume_still_writes_harms_nobody(device: Path) -> None:
    """It has prepared blocks that it writes to without looking at the tables."""
    zombie, other = DeviceBackend(device), DeviceBackend(device)
    await zombie.create("v")
    for block in range(8):
        await zombie.write("v", noise(1, block), block * BLOCK)
    assert zombie._device
    assert zombie._device._writers["v"].prepared_blocks
    await other.delete("v")
    await other.create("w")
    written = await fill(other, "w")
    writer = zombie._device._writers["v"]
    await trio.to_thread.run_sync(writer.write, memoryview(noise(1, 99)), 8 * BLOCK)
    with pytest.raises(VolumeNotFound):
        await zombie.write("v", noise(1, 99), 8 * BLOCK)
    for at in range(0, written, 64 * BLOCK):
        assert bytes(await other.read_stored("w", 64 * BLOCK, at)) == noise(64)[: written - at]
    await zombie.aclose()
    # Its blocks can be had now.
    assert await other.write("w", noise(1), written)
    await other.aclose()
    verify(device)


async def test_a_volume_made_again_under_its_name_is_another_one(device: Path) -> None:
    old, new = DeviceBackend(device), DeviceBackend(device)
    await old.create("v")
    version = await old.put_manifest("v", b"old", NO_VERSION)
    await old.write("v", noise(4), 0)
    await new.delete("v")
    await new.create("v")
    await new.write("v", noise(2, 1), 0)
    assert bytes(await old.read("v", 4 * BLOCK, 0)) == noise(2, 1)
    assert (await old.get_manifest("v")).data == b""
    with pytest.raises(FusevolError, match="manifest"):
        await old.put_manifest("v", b"newer", version)
    for backend in (old, new):
        await backend.aclose()
    assert verify(device) == {"v": 2}


async def test_who_keeps_the_tables_is_waited_for(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await with_volume(device)
    holder, backend = Disk(os.fspath(device)), DeviceBackend(device)
    with holder.locked():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.list)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert nursery.child_tasks
            monkeypatch.setattr("fusevol.backends.device.disk._PATIENCE", 0.0)
            other = DeviceBackend(device)
            with pytest.raises(TablesBusy, match="has kept the tables"):
                await other.list()
            await other.aclose()
            monkeypatch.undo()
            holder._set(2, 1 << 62, 1)
    holder.close()
    await backend.aclose()


async def test_several_threads_and_instances_write_at_once(device: Path) -> None:
    backends = [DeviceBackend(device) for _ in range(3)]
    for number, backend in enumerate(backends):
        await backend.create(f"v{number}")

    async def write(backend: DeviceBackend, name: str, part: int) -> None:
        for step in range(20):
            at = (part * 100 + step * 5) * BLOCK
            assert await backend.write(name, noise(5, at), at) == 5 * BLOCK
            if step % 4 == 3:
                await backend.discard(name, 5 * BLOCK, at)
            if step % 5 == 4:
                await backend.flush(name)

    async with trio.open_nursery() as nursery:
        for number, backend in enumerate(backends):
            for part in range(4):
                nursery.start_soon(write, backend, f"v{number}", part)
    for number in range(3):
        other = backends[number - 1]
        for part in range(4):
            for step in range(20):
                at = (part * 100 + step * 5) * BLOCK
                if step % 4 != 3:
                    assert bytes(await other.read(f"v{number}", 5 * BLOCK, at)) == noise(5, at)
    for backend in backends:
        await backend.aclose()
    assert verify(device) == {f"v{number}": 4 * 15 * 5 for number in range(3)}


# -- errors ---------------------------------------------------------------------------------------


class Broken(Disk):
    """A disk that fails when it is told to."""

    what: ClassVar[set[str]] = set()

    def write(self, data: memoryview, offset: int, *, durable: bool = False) -> None:
        if "write" in self.what:
            raise OSError(5, "Input/output error")
        super().write(data, offset, durable=durable)

    def write_table(self, data: bytes, offset: int) -> None:
        if "table" in self.what:
            raise OSError(5, "Input/output error")
        super().write_table(data, offset)

    def read(self, size: int, offset: int) -> bytes:
        if "read" in self.what:
            raise OSError(5, "Input/output error")
        return super().read(size, offset)


@pytest.mark.parametrize("what", ["write", "table"])
async def test_a_write_that_fails_says_so_and_leaves_all_as_it_was(
    device: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusevol.backends.device.backend.Disk", Broken)
    monkeypatch.setattr(Broken, "what", set[str]())
    backend = DeviceBackend(device)
    await backend.create("v")
    await backend.write("v", noise(20), 0)
    Broken.what.add(what)
    with pytest.raises(BackendError, match="Input/output error"):
        await backend.write("v", noise(20, 1), 0)
    Broken.what.clear()
    assert bytes(await backend.read("v", 20 * BLOCK, 0)) == noise(20)
    assert await backend.write("v", noise(20, 2), 0)
    assert bytes(await backend.read("v", 20 * BLOCK, 0)) == noise(20, 2)
    await backend.aclose()
    assert verify(device) == {"v": 20}


async def test_a_discard_that_failed_is_made_up_for_by_the_next_flush(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusevol.backends.device.backend.Disk", Broken)
    monkeypatch.setattr(Broken, "what", set[str]())
    backend = DeviceBackend(device)
    await backend.create("v")
    await backend.write("v", noise(20), 0)
    await backend.flush("v")
    await backend.discard("v", 5 * BLOCK, 0)
    Broken.what.add("table")
    for _ in range(2):
        with pytest.raises(BackendError, match="Input/output error"):
            await backend.flush("v")
    Broken.what.clear()
    await backend.flush("v")
    assert await backend.used_size("v") == 15 * BLOCK
    await backend.aclose()
    assert verify(device) == {"v": 15}


async def test_a_flush_of_the_device_that_failed_fails_for_good(device: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = DeviceBackend(device)
    await backend.create("v")
    await backend.write("v", noise(20), 0)

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(BackendError, match="Input/output error"):
            await backend.write("v", noise(20, 1), 0)
    with pytest.raises(BackendError, match="make writes durable"):
        await backend.flush("v")
    with pytest.raises(BackendError, match="make writes durable"):
        await backend.write("v", noise(20, 1), 0)
    await backend.aclose()
    backend = DeviceBackend(device)
    assert bytes(await backend.read("v", 20 * BLOCK, 0)) in (noise(20), noise(20, 1))
    await backend.aclose()
    assert verify(device) == {"v": 20}


async def test_the_cache_of_the_kernel_can_be_passed_by(device: Path) -> None:
    await with_volume(device, noise(20))
    backend = DeviceBackend(device)
    assert bytes(await backend.read("v", 20 * BLOCK, 0)) == noise(20)
    assert backend.read_nowait("v", 20 * BLOCK, 0) == noise(20)
    assert backend._device
    pieces = backend._device.catalog.find("v").pieces(0, 20)
    assert pieces
    assert len(pieces[0]) == 3
    poke_direct(device, pieces[0][2] * BLOCK, noise(1, 5))
    assert bytes(await backend.read_stored("v", BLOCK, 0)) == noise(1, 5)
    backend.doubt("v", 20 * BLOCK, 0)
    assert bytes(await backend.read("v", BLOCK, 0)) == noise(1, 5)
    await backend.aclose()


def poke_direct(device: Path, offset: int, data: bytes) -> None:
    import mmap

    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    os.pwritev(fd, [buffer], offset)
    os.close(fd)
