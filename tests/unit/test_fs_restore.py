"""Restores of a mounted volume: what was waiting meanwhile, and what becomes of the mount when one goes wrong."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from fusevol.api.io import Buffer
from fusevol.backends.memory import MemoryBackend
from fusevol.errors import BackendError, CorruptData, SnapshotNotFound, VolumeBusy
from fusevol.fs import Changes, leave_filesystem, load_filesystem, open_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import BLOCK, ROOT
from fusevol.log import LogVolume, create_volume, open_volume
from fusevol.mount.nodes import Nodes
from fusevol.mount.quiesce import Quiesce
from fusevol.mount.requests import Requests
from fusevol.mount.served import Served
from fusevol.mount.settings import Outside
from tests.unit.test_damaged_metadata import Damaged, metadata_blocks
from tests.unit.test_fs_edges import make, new_volume


@pytest.mark.parametrize("change", ["write", "write at the end", "truncate"])
async def test_a_change_that_waited_while_the_volume_was_restored_does_not_reach_the_restored_tree(change: str) -> None:
    async with open_volume(await new_volume(), "v") as volume:
        old = await load_filesystem(volume)
        ino = make(old, b"file")
        await old.write(ino, b"before" * 2000, 0)
        await old.snapshot("before")
        await old.write(ino, b"after!" * 2000, 0)
        go_on = trio.Event()
        read, throttle = volume.read, volume.throttle

        async def waiting_read(size: int, offset: int) -> Buffer:
            await go_on.wait()
            return await read(size, offset)

        async def waiting_throttle() -> None:
            await go_on.wait()
            await throttle()

        async def make_change() -> None:
            if change == "truncate":
                await old.setattr(ino, Changes(size=5000))
            else:
                await old.write(ino, b"late" * 100, 100 if change == "write" else 12_000)

        async def changed() -> None:
            with pytest.raises(VolumeBusy, match="restored"):
                await make_change()

        async with trio.open_nursery() as nursery:
            volume.read, volume.throttle = waiting_read, waiting_throttle
            nursery.start_soon(changed)
            await trio.testing.wait_all_tasks_blocked()
            volume.read, volume.throttle = read, throttle
            await old.restore("before")
            restored = await load_filesystem(volume)
            go_on.set()
        assert bytes(await restored.read(ino, 20_000, 0)) == b"before" * 2000
        await restored.sync()
        restored.close()
        assert (await check_filesystem(volume, deep=True)).findings == []


async def test_a_sync_that_waited_for_a_restore_says_that_it_came_too_late() -> None:
    async with open_volume(await new_volume(), "v") as volume:
        old = await load_filesystem(volume)
        make(old, b"file")
        await old.snapshot("before")

        async def sync() -> None:
            with pytest.raises(VolumeBusy, match="restored"):
                await old.sync()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(old.restore, "before")
            await trio.lowlevel.checkpoint()
            nursery.start_soon(sync)
        restored = await load_filesystem(volume)
        assert restored.find(ROOT, b"file")
        restored.close()


class Holding(MemoryBackend):
    """Holds the next read back, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.hold = False
        self.go_on = trio.Event()

    def read_nowait(self, volume_id: str, size: int, offset: int) -> bytes:
        return None if self.hold else super().read_nowait(volume_id, size, offset)  # type: ignore[return-value]

    async def read(self, volume_id: str, size: int, offset: int) -> bytes:
        if self.hold:
            self.hold = False
            await self.go_on.wait()
        return await super().read(volume_id, size, offset)


@pytest.mark.parametrize("what", ["write", "read"])
async def test_what_waits_for_a_block_while_the_volume_is_restored_has_nothing_to_do_with_the_restored_tree(
    what: str,
) -> None:
    backend = Holding()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        ino = make(fs, b"file")
        for block in range(0, 20, 2):
            await fs.write(ino, b"before" * 600, block * BLOCK)
        await fs.snapshot("before")
    async with open_volume(backend, "v") as volume:
        old = await load_filesystem(volume)
        assert old.get(ino).extents is None
        assert old.listxattr(ino) == []
        assert len(old.located(ino).extents or []) == 10

        async def use() -> None:
            await (old.write(ino, b"LATE", 100) if what == "write" else old.read(ino, 20 * BLOCK, 0))

        async def late() -> None:
            with pytest.raises(VolumeBusy, match="restored"):
                await use()

        async with trio.open_nursery() as nursery:
            backend.hold = True
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
            assert not backend.hold
            await old.restore("before")
            restored = await load_filesystem(volume)
            backend.go_on.set()
        assert bytes(await restored.read(ino, 3600, 0)) == b"before" * 600
        await restored.sync()
        restored.close()


@asynccontextmanager
async def served(backend: MemoryBackend) -> AsyncIterator[tuple[Served, list[set[bytes]]]]:
    """A volume as a mount has it, without the kernel, which would forget these names."""
    forgotten: list[set[bytes]] = []

    async def nothing(*_: object) -> None:
        pass

    async def forget(names: set[bytes]) -> None:
        forgotten.append(names)

    async with open_volume(backend, "v") as volume:
        nodes = Nodes(await load_filesystem(volume))
        quiesce = Quiesce(lambda: False, nothing, 1)
        yield Served(volume, nodes, Requests(), quiesce, "v", nothing, forget, Outside()), forgotten
        await leave_filesystem(nodes.filesystem)


async def many_files_and_an_early_snapshot() -> tuple[Damaged, int]:
    """A snapshot of one file, and a live tree of very many more; where the first page of the snapshot's metadata is."""
    backend = Damaged()
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        make(fs, b"first")
        await fs.snapshot("early")
        first = (await metadata_blocks(volume))[0]
        for number in range(3000):  # until a page is added
            make(fs, b"%d" % number)
        await fs.sync()
        assert (await metadata_blocks(volume))[0] != first
    return backend, first


async def test_a_snapshot_that_could_not_be_mounted_is_not_restored() -> None:
    backend, first = await many_files_and_an_early_snapshot()
    backend.bad = first
    async with served(backend) as (mount, forgotten):
        fs = mount.nodes.filesystem
        with pytest.raises(CorruptData):
            await mount.restore("early")
        with pytest.raises(SnapshotNotFound):
            await mount.restore("none")
        assert mount.nodes.filesystem is fs
        assert (mount.nodes.generation, mount.last_restore, forgotten) == (0, None, [])
        assert [snapshot.name for snapshot in mount.volume.snapshots()] == ["early"]
        assert fs.find(ROOT, b"2999")


async def test_a_live_tree_that_is_damaged_can_be_restored() -> None:
    backend, _ = await many_files_and_an_early_snapshot()
    async with served(backend) as (mount, _):
        fs = mount.nodes.filesystem
        page = fs._database.one("SELECT rootpage FROM sqlite_schema WHERE name = 'listing'")
        backend.bad = (await metadata_blocks(mount.volume))[int(page[0]) - 1]  # type: ignore[arg-type,index]
        with pytest.raises(CorruptData):
            fs.entries(ROOT, most=10_000)
        await mount.restore("early")
        assert [entry.name for entry in mount.nodes.filesystem.entries(ROOT)] == [b"first"]


async def test_a_mount_whose_restored_tree_cannot_be_opened_says_so_to_everybody_and_the_next_one_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = await new_volume()

    async def use_it_up() -> None:
        async with served(backend) as (mount, forgotten):
            old = mount.nodes.filesystem
            ino = make(old, b"file")
            await old.snapshot("before")
            await old.write(ino, b"after", 0)
            old.unlink(ROOT, b"file")  # the kernel knows it still

            async def away(_: LogVolume) -> None:
                raise BackendError("the store is away")

            monkeypatch.setattr("fusevol.mount.served.load_filesystem", away)
            with pytest.raises(BackendError, match="unmount the volume") as raised:
                await mount.restore("before")
            assert mount.status()["error"] == str(raised.value)
            assert mount.status()["state"] == "error"
            assert forgotten == [set()]
            # The kernel goes on asking, and forgetting.
            mount.nodes.forget(ino)
            with pytest.raises(OSError, match="replaced by a restore"):
                mount.nodes.find(ino)
            _, tree = mount.nodes.find(ROOT)
            assert tree.statfs().blocks
            for use in (tree.get, tree.entries, tree.listxattr):
                with pytest.raises(BackendError, match="the store is away"):
                    use(ROOT)

    with pytest.raises(BackendError, match="could not be opened: the store is away"):
        await use_it_up()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        assert fs.lookup(ROOT, b"file").size == 0
        assert [snapshot.name for snapshot in volume.snapshots()] == ["before", "before-restore-2"]
