"""Several at once, in one process and in many: what one of them does at the worst moment of another."""

import mmap
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fusevol.backends.base import NO_VERSION
from fusevol.backends.device import DeviceBackend
from fusevol.backends.device.catalog import Catalog
from fusevol.backends.device.disk import Disk
from fusevol.backends.device.writer import Writer
from fusevol.errors import FusevolError, ManifestConflict, VolumeNotFound
from tests.device.contents import fill, noise
from tests.device.tables import BLOCK, MIB, verify


@pytest.fixture
async def backend(device: Path) -> AsyncIterator[DeviceBackend]:
    """One with a volume `v`."""
    made = DeviceBackend(device)
    await made.create("v")
    yield made
    await made.aclose()


def catalog_of(backend: DeviceBackend) -> Catalog:
    assert backend._device
    return backend._device.catalog


@contextmanager
def paused(
    monkeypatch: pytest.MonkeyPatch, where: type, name: str, word: str = ""
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The first call of a method, with that word in it, waits once it has begun: (it has, it may go on)."""
    reached, released, original = threading.Event(), threading.Event(), getattr(where, name)
    first = [True]

    def slow(*args: Any, **kwargs: Any) -> Any:
        if first[0] and word in str(args):
            first[0] = False
            reached.set()
            assert released.wait(20)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(where, name, slow)
        try:
            yield reached, released
        finally:
            released.set()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - threads do it
            await trio.sleep(0.001)


async def test_of_two_manifests_in_one_transaction_one_wins(backend: DeviceBackend) -> None:
    version = await backend.put_manifest("v", b"first", NO_VERSION)
    outcomes: list[str] = []

    async def put(data: bytes) -> None:
        try:
            outcomes.append(await backend.put_manifest("v", data, version))
        except ManifestConflict:
            outcomes.append("conflict")

    catalog = catalog_of(backend)
    async with trio.open_nursery() as nursery:
        with catalog._guard:
            nursery.start_soon(put, b"one")
            nursery.start_soon(put, b"two")
            await until(lambda: len(catalog._waiting) == 2)
    assert outcomes.count("conflict") == 1
    assert (await backend.get_manifest("v")).version == next(word for word in outcomes if word != "conflict")


async def test_what_fails_for_one_is_no_matter_of_others_in_the_same_transaction(backend: DeviceBackend) -> None:
    outcomes: list[object] = []

    async def create(name: str) -> None:
        try:
            await backend.create(name)
            outcomes.append(name)
        except FusevolError as error:
            outcomes.append(type(error).__name__)

    async def delete() -> None:
        with pytest.raises(VolumeNotFound):
            await backend.delete("nowhere")

    catalog = catalog_of(backend)
    async with trio.open_nursery() as nursery:
        with catalog._guard:
            for name in ("v", "w", "x"):
                nursery.start_soon(create, name)
            await until(lambda: len(catalog._waiting) == 3)
    assert sorted(map(str, outcomes)) == ["AlreadyExists", "w", "x"]
    await delete()
    assert await backend.list() == ["v", "w", "x"]


@pytest.mark.parametrize("number", range(1, 14))
async def test_a_read_that_fails_while_the_tables_are_opened_leaves_nothing_half_open(
    device: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = DeviceBackend(device)
    await first.create("v")
    await first.aclose()
    count, read = [0], Disk.read

    def failing(self: Disk, size: int, offset: int) -> bytes:
        count[0] += 1
        if count[0] == number:
            raise OSError(5, "Input/output error")
        return read(self, size, offset)

    backend = DeviceBackend(device)
    with monkeypatch.context() as patch:
        patch.setattr(Disk, "read", failing)
        try:
            await backend.list()
        except FusevolError as error:
            assert "Input/output error" in str(error)  # noqa: PT017
    assert await backend.list() == ["v"]
    connection = catalog_of(backend)._open()
    for pragma, value in (("journal_mode", "persist"), ("synchronous", 2), ("temp_store", 2)):
        assert connection.execute(f"PRAGMA {pragma}").fetchall() == [(value,)]
    await backend.aclose()


async def test_a_write_waits_for_a_discard_of_the_same_range_that_is_under_way(
    backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.write("v", noise(40), 0)
    await backend.discard("v", 40 * BLOCK, 0)
    with paused(monkeypatch, Catalog, "unmap") as (reached, released):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.flush, "v")
            await until(reached.is_set)
            nursery.start_soon(backend.write, "v", noise(40, 1), 0)
            await trio.sleep(0.05)
            released.set()
    await backend.flush("v")
    assert bytes(await backend.read("v", 40 * BLOCK, 0)) == noise(40, 1)


@pytest.mark.parametrize("seed", range(6))
async def test_writes_discards_and_flushes_at_once_lose_nothing(
    backend: DeviceBackend, device: Path, seed: int
) -> None:
    """As a log makes them: several writes on their way, each to the next place, with jumps; now and then a flush."""
    choose, head, written = random.Random(seed), 0, dict[int, bytes]()
    for _ in range(25):
        async with trio.open_nursery() as nursery:
            for _ in range(choose.randrange(1, 7)):
                count = choose.choice([1, 1, 2, 5, 20])
                data = noise(count, choose.randrange(1 << 30))
                nursery.start_soon(backend.write, "v", data, head * BLOCK)
                written |= {head + n: data[n * BLOCK : (n + 1) * BLOCK] for n in range(count)}
                head += count + (choose.choice([0, 300]) if choose.random() < 0.05 else 0)
                if choose.random() < 0.2:
                    nursery.start_soon(backend.flush, "v")
                if choose.random() < 0.1:
                    backend.release("v")
        if choose.random() < 0.3:
            await backend.flush("v")
    await backend.flush("v")
    for block, data in written.items():
        assert bytes(await backend.read_stored("v", BLOCK, block * BLOCK)) == data, f"block {block}"
    await backend.aclose()
    assert verify(device) == {"v": len(written)}


async def test_closing_waits_for_a_write_that_is_under_way(
    backend: DeviceBackend, device: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with paused(monkeypatch, Disk, "write") as (reached, released):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.write, "v", noise(40), 0)
            await until(reached.is_set)
            nursery.start_soon(backend.aclose)
            await trio.sleep(0.05)
            fds = [os.open(tmp_path / f"file{n}", os.O_RDWR | os.O_CREAT) for n in range(10)]
            released.set()
    assert [os.fstat(fd).st_size for fd in fds] == [0] * 10
    for fd in fds:
        os.close(fd)
    again = DeviceBackend(device)
    assert bytes(await again.read("v", 40 * BLOCK, 0)) == noise(40)
    await again.aclose()


async def test_who_comes_first_to_a_volume_in_two_threads_is_one_writer(
    device: Path, backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.write("v", noise(40), 0)
    again = DeviceBackend(device)
    with paused(monkeypatch, Writer, "__init__") as (reached, released):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.discard, "v", 40 * BLOCK, 0)
            await until(reached.is_set)
            nursery.start_soon(again.used_size, "v")
            await trio.sleep(0.05)
            released.set()
    await again.flush("v")
    assert await again.used_size("v") == 0
    await again.aclose()


async def test_the_loop_does_not_wait_for_those_who_wait_for_the_tables(backend: DeviceBackend, device: Path) -> None:
    for block in range(8):
        await backend.write("v", noise(1, block), block * BLOCK)
    assert backend._device
    writer = backend._device._writers["v"]
    assert writer.prepared_blocks
    assert bytes(await backend.read("v", BLOCK, 0)) == noise(1, 0)
    other = Disk(os.fspath(device))
    async with trio.open_nursery() as nursery:
        with other.locked():
            nursery.start_soon(backend.write, "v", noise(200), MIB)
            nursery.start_soon(backend.write, "v", noise(5000), 10 * MIB)
            await trio.sleep(0.1)
            before = time.monotonic()
            backend.release("v")
            backend.read_nowait("v", BLOCK, 0)
            backend.capacity("v")
            backend.start_write("v", noise(1), 8 * BLOCK, alone=True)
            backend.doubt("v", BLOCK, 0)
            assert bytes(backend.read_blocking("v", BLOCK, 0)) == noise(1, 0)
            # That of the tables is kept for as long as this takes; nothing here may wait for it.
            assert time.monotonic() - before < 30
    other.close()


async def test_reading_what_is_known_does_not_wait_for_those_who_wait_for_the_tables(
    backend: DeviceBackend, device: Path
) -> None:
    await backend.create("w")
    await backend.write("w", noise(40), 0)
    assert bytes(await backend.read("w", 40 * BLOCK, 0)) == noise(40)
    stopped = Disk(os.fspath(device))
    async with trio.open_nursery() as nursery:
        with stopped.locked():
            for number in range(40):
                nursery.start_soon(backend.write, "v", noise(1), number * MIB)
            await trio.sleep(0.1)
            with trio.fail_after(20):
                assert bytes(await backend.read("w", 40 * BLOCK, 0)) == noise(40)
                assert bytes(await backend.read_stored("w", 40 * BLOCK, 0)) == noise(40)
    stopped.close()


async def test_who_takes_a_volume_over_again_makes_durable_what_others_wrote(
    backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [0], Disk.sync

    def counting(self: Disk) -> None:
        synced[0] += 1
        sync(self)

    monkeypatch.setattr(Disk, "sync", counting)
    for expected in (1, 1, 2):
        if expected == 2:
            backend.release("v")
        await backend.flush("v")
        assert synced[0] == expected


async def test_others_that_write_elsewhere_on_the_device_leave_a_volume_known(
    backend: DeviceBackend, device: Path
) -> None:
    await backend.write("v", noise(40), 0)
    assert bytes(await backend.read("v", 40 * BLOCK, 0)) == noise(40)
    other = DeviceBackend(device)
    await other.create("w")
    for at in range(10):
        await other.write("w", noise(40, at), at * 40 * BLOCK)
    assert backend.read_nowait("v", 40 * BLOCK, 0) == noise(40)
    holder = Disk(os.fspath(device))
    with holder.locked():
        assert bytes(await backend.read("v", 40 * BLOCK, 0)) == noise(40)
        assert (await backend.get_manifest("v")).data == b""
    await other.write("v", noise(40, 1), 0)
    assert backend.read_nowait("v", 40 * BLOCK, 0) is None
    assert bytes(await backend.read("v", 40 * BLOCK, 0)) == noise(40, 1)
    holder.close()
    await other.aclose()


async def test_a_read_that_fails_while_others_changes_are_learned_leaves_nothing_half_known(
    backend: DeviceBackend, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = DeviceBackend(device)
    version, read, failures = NO_VERSION, Disk.read, 0
    for number in range(1, 40):
        await backend.get_manifest("v")
        version = await other.put_manifest("v", b"%d" % number, version)
        await other.write("v", noise(4, number), number * 10 * BLOCK)
        # One that learns all of it anew, and one that knows it from the last time.
        fresh, count = DeviceBackend(device), 0

        def failing(self: Disk, size: int, offset: int, number: int = number) -> bytes:
            nonlocal count
            count += 1
            if count == number:
                raise OSError(5, "Input/output error")
            return read(self, size, offset)

        for reader in (fresh, backend):
            count = 0
            with monkeypatch.context() as patch:
                patch.setattr(Disk, "read", failing)
                try:
                    await reader.get_manifest("v")
                except FusevolError as error:
                    assert "Input/output error" in str(error)  # noqa: PT017
                    failures += 1
            assert (await reader.get_manifest("v")).data == b"%d" % number
            assert bytes(await reader.read("v", 4 * BLOCK, number * 10 * BLOCK)) == noise(4, number)
        await fresh.aclose()
    assert failures > 10
    await other.aclose()


async def test_what_others_have_changed_is_known_whole_or_not_at_all(
    backend: DeviceBackend, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = DeviceBackend(device)
    await backend.get_manifest("v")
    await other.put_manifest("v", b"new", NO_VERSION)
    with paused(monkeypatch, Catalog, "_one", "SELECT manifest") as (reached, released):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.create, "w")
            await until(reached.is_set)
            for _ in range(8):
                nursery.start_soon(_expect, backend, b"new")
            await trio.sleep(0.05)
            released.set()
    await other.aclose()


async def _expect(backend: DeviceBackend, data: bytes) -> None:
    assert (await backend.get_manifest("v")).data == data


async def test_reading_does_not_wait_for_a_transaction_of_the_same_instance(
    backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    await backend.write("v", noise(40), 0)
    assert bytes(await backend.read("v", 40 * BLOCK, 0)) == noise(40)
    with paused(monkeypatch, Disk, "sync") as (reached, released):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.write, "v", noise(40, 1), MIB)
            await until(reached.is_set)
            assert bytes(backend.read_blocking("v", 40 * BLOCK, 0)) == noise(40)
            assert backend.read_nowait("v", 40 * BLOCK, 0) == noise(40)
            assert (await backend.get_manifest("v")).data == b""
            released.set()
    assert bytes(await backend.read("v", 40 * BLOCK, MIB)) == noise(40, 1)


async def test_small_writes_that_cannot_be_made_at_once_go_to_the_zeros_all_the_same(
    backend: DeviceBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded, record = [0], Catalog.record

    def counting(*args: Any) -> None:
        recorded[0] += 1
        record(*args)

    monkeypatch.setattr(Catalog, "record", counting)
    for block in range(200):
        data = mmap.mmap(-1, BLOCK)
        data[:] = noise(1, block)
        started = backend.start_write("v", memoryview(data), block * BLOCK, alone=block % 2 == 0)
        if started is None:
            await backend.write("v", memoryview(data), block * BLOCK)
    assert recorded[0] < 10
    for block in range(200):
        assert bytes(await backend.read("v", BLOCK, block * BLOCK)) == noise(1, block)


async def test_what_is_to_be_given_back_of_another_volume_makes_room(backend: DeviceBackend, device: Path) -> None:
    await backend.create("w")
    await fill(backend, "w")
    await backend.discard("w", 200 * BLOCK, 0)
    assert await backend.write("v", noise(100), 0) == 100 * BLOCK
    await backend.aclose()
    assert verify(device)["v"] == 100


async def test_a_write_over_very_many_places_fits_the_journal(backend: DeviceBackend, device: Path) -> None:
    """Each of them on a page of the tables of its own."""
    await backend.create("w")
    for block in range(0, 1600, 2):
        await backend.write("v" if block % 4 else "w", noise(1, block), block * BLOCK)
    assert await backend.write("v", noise(1600, 1), 0) == 1600 * BLOCK
    assert bytes(await backend.read("v", 1600 * BLOCK, 0)) == noise(1600, 1)
    await backend.aclose()
    assert verify(device) == {"v": 1600, "w": 400}


@pytest.mark.parametrize("known", [True, False])
async def test_while_a_stopped_process_keeps_the_tables_a_flush_waits_and_the_volume_goes_on(
    backend: DeviceBackend, device: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    await backend.write("v", noise(40), 0)
    await backend.discard("v", 20 * BLOCK, 0)
    if not known:
        other = DeviceBackend(device)
        await other.put_manifest("v", b"changed", NO_VERSION)
        await other.aclose()
    monkeypatch.setattr("fusevol.backends.device.disk._PATIENCE", 0.02)
    stopped = Disk(os.fspath(device))
    async with trio.open_nursery() as nursery:
        with stopped.locked():
            nursery.start_soon(backend.flush, "v")
            await trio.sleep(0.1)
            assert nursery.child_tasks
    stopped.close()
    assert await backend.used_size("v") == 20 * BLOCK
