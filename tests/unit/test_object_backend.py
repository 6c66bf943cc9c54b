"""What the object backend does beyond the contract: rewriting, recovery, other processes, local files."""

import json
import multiprocessing
import os
import random
from pathlib import Path
from typing import Any

import obstore
import pytest
import trio
from obstore.store import MemoryStore

from fusevol.api.io import Buffer
from fusevol.backends import open_backend
from fusevol.backends.base import NO_VERSION
from fusevol.backends.object import ObjectBackend
from fusevol.backends.object.client import Client
from fusevol.backends.object.index import MAX_OBJECT
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    InvalidArgument,
    ManifestConflict,
    NoSpace,
    VolumeNotFound,
)

K = 4096


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def backend(store: MemoryStore) -> ObjectBackend:
    backend = ObjectBackend(store=store)
    await backend.create("v")
    return backend


def names(store: MemoryStore) -> list[str]:
    return [meta["path"] for meta in obstore.list(store).collect()]


def name(offset: int, length: int) -> str:
    return f"v/data/{offset:016x}-{length:08x}"


async def test_every_write_is_one_object_named_for_its_range(backend: ObjectBackend, store: MemoryStore) -> None:
    await backend.write("v", b"x" * K, 0)
    await backend.write("v", b"y" * 10, 2**62)
    assert names(store) == [".volumes/v", name(0, K), name(2**62, 10)]


async def test_with_a_little_of_an_object_comes_what_is_around_it_and_nothing_of_others(backend: ObjectBackend) -> None:
    data = os.urandom(40 * K)
    await backend.write("v", data, 3 * K)
    await backend.write("v", b"x" * K, 43 * K)
    for offset, size, start, stop in (
        (4 * K, K, 3 * K, 16 * K),
        (20 * K, K, 16 * K, 32 * K),
        (31 * K, 2 * K, 16 * K, 43 * K),
        (42 * K, K, 32 * K, 43 * K),
        (42 * K, 2 * K, 42 * K, 44 * K),
        (5 * K, 16 * K, 5 * K, 21 * K),
    ):
        begin, around = await backend.read_around("v", size, offset, 16 * K)
        assert (begin, bytes(around)) == (start, (data + b"x" * K)[start - 3 * K : stop - 3 * K])


async def test_an_object_mostly_dead_is_rewritten_as_its_live_runs(backend: ObjectBackend, store: MemoryStore) -> None:
    data = os.urandom(10 * K)
    await backend.write("v", data, 0)
    await backend.discard("v", 3 * K, K)
    assert await backend.used_size("v") == 10 * K
    await backend.discard("v", 3 * K, 5 * K)
    assert names(store) == [".volumes/v", name(0, K), name(4 * K, K), name(8 * K, 2 * K)]
    assert await backend.used_size("v") == 4 * K
    assert bytes(await backend.read("v", 2 * K, 8 * K)) == data[8 * K :]
    assert bytes(await backend.read("v", K, 4 * K)) == data[4 * K : 5 * K]


async def test_discards_are_remembered_over_a_restart_once_flushed(backend: ObjectBackend, store: MemoryStore) -> None:
    await backend.write("v", b"x" * 4 * K, 0)
    await backend.discard("v", 2 * K, 0)
    await backend.flush("v")
    assert json.loads(bytes(obstore.get(store, "v/dead").bytes())) == {name(0, 4 * K)[7:]: [[0, 2 * K]]}
    again = ObjectBackend(store=store)
    await again.discard("v", 2 * K, 2 * K)
    assert await again.used_size("v") == 0
    # A new object of the same name has nothing to do with that record, even if nothing is flushed any more.
    await again.write("v", b"y" * 4 * K, 0)
    third = ObjectBackend(store=store)
    await third.discard("v", K, 2 * K)
    assert await third.used_size("v") == 4 * K
    assert bytes(await third.read("v", K, 3 * K)) == b"y" * K


async def test_an_object_and_its_pieces_may_coexist_after_a_crash(store: MemoryStore) -> None:
    backend = ObjectBackend(store=store)
    await backend.create("v")
    data = os.urandom(10 * K)
    for start, stop in ((0, 10 * K), (0, K), (4 * K, 6 * K)):
        obstore.put(store, name(start, stop - start), data[start:stop])
    assert bytes(await backend.read("v", 10 * K, 0)) == data
    assert bytes(await backend.read("v", 3 * K, 5 * K)) == data[5 * K : 8 * K]
    assert await backend.used_size("v") == 13 * K
    await backend.discard("v", 9 * K, K)
    assert bytes(await backend.read("v", K, 0)) == data[:K]
    assert await backend.used_size("v") == K


async def test_the_remains_of_a_torn_write_are_a_hole_that_can_be_written(store: MemoryStore) -> None:
    backend = ObjectBackend(store=store)
    await backend.create("v")
    obstore.put(store, name(0, K), b"")
    assert await backend.read("v", K, 0) == b""
    assert await backend.write("v", b"x" * K, 0) == K
    assert bytes(await backend.read("v", K, 0)) == b"x" * K


async def test_a_read_finds_what_another_process_rewrote(backend: ObjectBackend, store: MemoryStore) -> None:
    data = os.urandom(10 * K)
    await backend.write("v", data, 0)
    other = ObjectBackend(store=store)
    assert await other.read("v", K, 9 * K) == data[9 * K :]
    await backend.discard("v", 8 * K, 0)
    assert await other.read("v", K, 9 * K) == data[9 * K :]
    assert await other.used_size("v") == 2 * K


async def test_reads_of_known_bytes_list_nothing(backend: ObjectBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    await backend.write("v", b"x" * K, 0)
    listed: list[str] = []

    def spy(store: MemoryStore, prefix: str, **options: object) -> list[object]:
        listed.append(prefix)
        return []

    monkeypatch.setattr(obstore, "list", spy)
    assert bytes(await backend.read("v", K, 0)) == b"x" * K
    assert listed == []
    await backend.read("v", K, K)
    assert listed == ["v/data/"]


async def test_another_writers_bytes_of_the_same_name_are_not_overwritten(store: MemoryStore) -> None:
    one, two = ObjectBackend(store=store), ObjectBackend(store=store)
    await one.create("v")
    await two.read("v", 1, 0)
    await one.write("v", b"a" * K, 0)
    with pytest.raises(InvalidArgument, match="other bytes"):
        await two.write("v", b"b" * K, 0)
    assert await two.write("v", b"a" * K, 0) == K


async def test_a_write_longer_than_the_longest_object_is_short(backend: ObjectBackend) -> None:
    assert await backend.write("v", bytes(MAX_OBJECT + 1), 0) == MAX_OBJECT


async def test_a_put_whose_answer_was_lost_and_that_was_tried_again_has_won(store: MemoryStore) -> None:
    class Forgetful(Client):
        """Puts twice, as a client does that got no answer the first time."""

        async def _run(self, what, call, **how):  # type: ignore[no-untyped-def]
            result = await super()._run(what, call, **how)
            return await super()._run(what, call, **how) if self.twice else result

        twice = False

    backend = ObjectBackend(store=store)
    backend._client = client = Forgetful(store)
    await backend.create("v")
    first = await backend.put_manifest("v", b"one", NO_VERSION)
    client.twice = True
    second = await backend.put_manifest("v", b"two", first)
    client.twice = False
    assert (await backend.get_manifest("v")).data == b"two"
    assert (await backend.get_manifest("v")).version == second


@pytest.mark.parametrize("url", ["memory://", "file://{}"])
async def test_a_damaged_manifest_is_reported(url: str, tmp_path: Path) -> None:
    backend = ObjectBackend(url.format(tmp_path))
    await backend.create("v")
    version = await backend.put_manifest("v", b"some bytes", NO_VERSION)
    stored = bytearray(obstore.get(backend._client.store, "v/manifest").bytes())
    for at in (0, 5, 22, len(stored) - 1):
        damaged = bytearray(stored)
        damaged[at] ^= 1
        obstore.put(backend._client.store, "v/manifest", bytes(damaged))
        with pytest.raises(CorruptData):
            await backend.get_manifest("v")
    assert version


def _contend(url: str, turns: int, wins: "multiprocessing.Queue[int]") -> None:
    async def main() -> int:
        backend, won = ObjectBackend(url), 0
        while won < turns:
            manifest = await backend.get_manifest("v")
            try:
                await backend.put_manifest("v", b"%d" % (int(manifest.data or b"0") + 1), manifest.version)
            except ManifestConflict:
                continue
            won += 1
        return won

    wins.put(trio.run(main))


async def test_processes_that_count_in_one_manifest_lose_no_count(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    backend = ObjectBackend(url)
    await backend.create("v")
    context = multiprocessing.get_context("spawn")
    wins: multiprocessing.Queue[int] = context.Queue()
    workers = [context.Process(target=_contend, args=(url, 30, wins)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        await trio.to_thread.run_sync(worker.join)
    wins.close()
    wins.join_thread()
    assert (await backend.get_manifest("v")).data == b"90"


async def test_flush_syncs_the_files_written_and_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    backend = ObjectBackend(f"file://{tmp_path}")
    await backend.create("v")
    assert synced == [".volumes/v", ".volumes", "."]
    synced.clear()
    await backend.write("v", b"x" * K, 0)
    assert synced == []
    await backend.flush("v")
    assert synced == [name(0, K), "v/data", "v", "."]
    synced.clear()
    await backend.flush("v")
    assert synced == []
    await backend.put_manifest("v", b"m", NO_VERSION)
    assert synced[:2] == ["v/manifest#0", "v/manifest"]


async def test_a_deleted_volume_leaves_no_folder_behind(tmp_path: Path) -> None:
    backend = ObjectBackend(f"file://{tmp_path}")
    await backend.create("v")
    await backend.write("v", b"x", 0)
    await backend.put_manifest("v", b"m", NO_VERSION)
    await backend.delete("v")
    assert sorted(os.listdir(tmp_path)) == [".lock", ".volumes"]


async def test_errors_of_the_store_surface_as_one_line(tmp_path: Path) -> None:
    backend = ObjectBackend(f"file://{tmp_path}")
    await backend.create("v")
    (tmp_path / "v").write_text("in the way")
    with pytest.raises(BackendError) as caught:
        await backend.write("v", b"x", 0)
    assert "\n" not in str(caught.value)


def test_traits_say_what_the_store_can_do(tmp_path: Path) -> None:
    memory, local = ObjectBackend("memory://").traits, ObjectBackend(f"file://{tmp_path}").traits
    assert (memory.durable, memory.rewritable, memory.atomic_writes) == (False, False, True)
    assert (local.durable, local.rewritable, local.atomic_writes) == (True, False, False)


def test_parameters_that_make_no_sense_are_refused() -> None:
    for url in ("nonsense", "tape://a"):
        with pytest.raises(InvalidArgument, match=url):
            open_backend("object", url=url)
    with pytest.raises(InvalidArgument, match=r"(?i)bogus"):
        open_backend("object", url="s3://bucket/prefix", config={"bogus": 1})
    with pytest.raises(InvalidArgument, match="either a url or a store"):
        open_backend("object")
    with pytest.raises(InvalidArgument, match="'bucket'; known: url, store"):
        open_backend("object", bucket="b")


@pytest.mark.parametrize("seed", range(8))
async def test_random_writes_discards_and_reads_agree_with_a_model(seed: int, tmp_path: Path) -> None:
    backend = ObjectBackend(f"file://{tmp_path}" if seed % 2 else "memory://")
    await backend.create("v")
    unit, area = 512, 1 << 20
    alive: dict[int, bytes] = {}

    async def work(number: int) -> None:
        rng, base, end = random.Random(seed * 100 + number), number * area // unit, 0
        for _ in range(60):
            size = rng.randrange(1, 40)
            start = rng.randrange(end) if end else 0
            stop = min(start + size, end)
            match rng.choices(["write", "discard", "read", "flush"], [8, 7, 4, 1])[0]:
                case "write":
                    data = rng.randbytes(size * unit)
                    await backend.write("v", data, (base + end) * unit)
                    for i in range(size):
                        alive[base + end + i] = data[i * unit : (i + 1) * unit]
                    end += size
                case "discard":
                    for i in range(start, stop):
                        alive.pop(base + i, None)
                    await backend.discard("v", (stop - start) * unit, (base + start) * unit)
                case "read":
                    got = bytes(await backend.read("v", (stop - start) * unit, (base + start) * unit))
                    assert len(got) == (stop - start) * unit
                    for i in range(start, stop):
                        block = got[(i - start) * unit : (i - start + 1) * unit]
                        assert alive.get(base + i, block) == block
                case _:
                    await backend.flush("v")

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(work, number)
    # No more is stored than twice what is alive, and exactly what is said to be.
    used = await backend.used_size("v")
    stored = obstore.list(backend._client.store, "v/data/").collect()
    assert used == sum(meta["size"] for meta in stored)
    assert len(alive) * unit <= used <= 2 * len(alive) * unit
    await backend.flush("v")
    again = ObjectBackend(store=backend._client.store)
    for number, block in alive.items():
        assert bytes(await again.read("v", unit, number * unit)) == block
    for number in range(4):
        await again.discard("v", area, number * area)
    assert await again.used_size("v") == 0


async def test_a_discard_whose_delete_failed_gives_the_space_back_when_it_is_done_again(
    backend: ObjectBackend, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(client: Client, paths: list[str]) -> None:
        raise BackendError("timed out")

    await backend.write("v", b"a" * 2 * K, 0)
    await backend.write("v", b"b" * 4 * K, 2 * K)
    with monkeypatch.context() as patch:
        patch.setattr(Client, "delete", fail)
        for start, length in ((0, 2 * K), (2 * K, 3 * K)):
            with pytest.raises(BackendError):
                await backend.discard("v", length, start)
        assert bytes(await backend.read("v", K, 5 * K)) == b"b" * K
    await backend.discard("v", 5 * K, 0)
    assert bytes(await backend.read("v", K, 5 * K)) == b"b" * K
    assert [found for found in names(store) if "/data/" in found] == [name(5 * K, K)]
    assert await backend.used_size("v") == K


@pytest.mark.parametrize("error", [NoSpace("full"), InvalidArgument("no")])
async def test_an_upload_that_cannot_succeed_is_not_tried_again(
    backend: ObjectBackend, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tried = []

    async def refuse(client: Client, path: str, data: Buffer) -> bool:
        tried.append(path)
        raise error

    monkeypatch.setattr(Client, "create", refuse)
    with pytest.raises(type(error)):
        await backend.write("v", bytes(K), 0)
    assert len(tried) == 1


async def test_an_upload_that_broke_off_is_tried_again_be_it_of_a_write_or_of_what_is_left_of_an_object(
    store: MemoryStore, backend: ObjectBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Client.create
    tried: list[str] = []

    async def break_off_once(client: Client, path: str, data: Buffer) -> bool:
        tried.append(path)
        if tried.count(path) == 1:
            raise BackendError("connection reset by peer")
        return await create(client, path, data)

    monkeypatch.setattr(Client, "create", break_off_once)
    await backend.write("v", b"a" * 4 * K, 0)
    await backend.discard("v", 3 * K, 0)
    assert bytes(await backend.read("v", K, 3 * K)) == b"a" * K
    assert tried == [name(0, 4 * K)] * 2 + [name(3 * K, K)] * 2


async def test_a_volume_whose_making_was_answered_to_nobody_is_made(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Client.create

    async def create_twice(client: Client, path: str, data: Buffer) -> bool:
        return await create(client, path, data) and await create(client, path, data)

    backend = ObjectBackend(store=store)
    with monkeypatch.context() as patch:
        patch.setattr(Client, "create", create_twice)
        await backend.create("v")
    assert await backend.list() == ["v"]
    with pytest.raises(AlreadyExists):
        await backend.create("v")


async def test_a_bucket_that_is_not_there_is_not_taken_for_a_volume_that_is_not(
    backend: ObjectBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def head(store: object, path: str) -> None:
        raise FileNotFoundError("404: <Error><Code>NoSuchBucket</Code></Error>")

    monkeypatch.setattr(obstore, "head", head)
    with pytest.raises(BackendError, match="no such bucket"):
        await backend.delete("v")


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"url": 12}, "no store can be opened at 12: it is no text"),
        ({"url": "s3://b", "config": "x"}, "config must be a table"),
        ({"url": "s3://b", "config": {"endpoint": "x"}}, "its endpoint 'x' is no http or https URL"),
        ({"url": "s3://b", "name": "x"}, "has no parameter 'name'"),
    ],
)
def test_parameters_that_cannot_be_are_refused(parameters: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidArgument, match=error):
        open_backend("object", **parameters)


async def test_to_read_the_manifest_of_a_volume_nobody_has_to_list_all_its_objects(
    backend: ObjectBackend, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = await backend.put_manifest("v", b"manifest", NO_VERSION)
    await backend.create("new")

    async def listed(*_: object) -> list[str]:
        raise AssertionError("objects are listed")

    other = ObjectBackend(store=store)
    monkeypatch.setattr(other._client, "names", listed)
    assert await other.get_manifest("v") == (b"manifest", version)
    assert await other.get_manifest("new") == (b"", NO_VERSION)
    for missing in ("gone", "vv"):
        with pytest.raises(VolumeNotFound):
            await other.get_manifest(missing)
    # Its deletion has begun.
    obstore.delete(store, ".volumes/v")
    with pytest.raises(VolumeNotFound):
        await other.get_manifest("v")
