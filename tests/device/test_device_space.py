"""Devices: what becomes of one that is full, that others use as well, or that fails."""

import os
from collections.abc import Callable
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
    FusevolError,
    VolumeNotFound,
)
from tests.device.contents import fill, noise, poke_direct, with_volume
from tests.device.tables import BLOCK, MIB, verify

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


async def test_much_that_is_discarded_is_given_back_without_a_flush(device: Path) -> None:
    backend = DeviceBackend(device)
    await backend.create("v")
    await backend.write("v", noise(6000), 0)
    for at in range(0, 6000, 100):
        await backend.discard("v", 100 * BLOCK, at * BLOCK)
    assert verify(device)["v"] < 300
    await backend.aclose()
    assert verify(device) == {"v": 0}


async def test_who_does_nothing_sees_the_room_that_others_make(device: Path) -> None:
    idle, busy = DeviceBackend(device), DeviceBackend(device)
    await idle.create("v")
    await busy.create("w")
    written = await fill(busy, "w")
    full = idle.capacity("v")
    assert full is not None
    assert full.free < MIB
    await busy.discard("w", written, 0)
    await busy.flush("w")
    empty = idle.capacity("v")
    assert empty is not None
    assert empty.free >= written
    assert empty.total == full.total
    await idle.aclose()
    await busy.aclose()


async def test_what_somebody_holds_who_writes_no_more_others_can_have(
    make_device: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusevol.backends.device.space.QUIET", 0.05)
    device = make_device(256)
    idle, busy = DeviceBackend(device), DeviceBackend(device)
    await idle.create("v")
    for block in range(8):
        await idle.write("v", noise(1), block * BLOCK)
    assert idle._device
    assert idle._device._writers["v"].prepared_blocks
    await busy.create("w")
    await fill(busy, "w")
    capacity = busy.capacity("w")
    assert capacity is not None
    assert capacity.free == 0
    # And he comes to have some again.
    await busy.discard("w", 3000 * BLOCK, 0)
    await busy.flush("w")
    assert await idle.write("v", noise(1000), 1000 * BLOCK) == 1000 * BLOCK
    await idle.aclose()
    await busy.aclose()
    verify(device)


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
    assert backend._device.known_writer("v") is None
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


async def test_what_was_to_be_trimmed_when_that_failed_can_be_written_to(
    device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = DeviceBackend(device)
    await backend.create("v")

    def failing(_catalog: Catalog, _address: int, _count: int, then: Callable[[], None]) -> None:
        then()
        raise BackendError("the disk is away")

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "if_free", failing)
        for _ in range(3):
            with pytest.raises(BackendError, match="away"):
                await backend.sweep()
    capacity = backend.capacity("v")
    assert capacity is not None
    assert await fill(backend, "v") == capacity.free
    await backend.aclose()
    verify(device)


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
