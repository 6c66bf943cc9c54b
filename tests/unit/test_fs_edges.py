"""Corners of the filesystem: renames, crashes between data and metadata, commits that fail, quota."""

import errno
import os
import random
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio
import trio.testing

from fusevol.api.io import Buffer
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.counting import CountingBackend
from fusevol.backends.wrappers.faults import FaultyBackend, delay, fail
from fusevol.errors import BackendError, CorruptData, NoSpace, VolumeBusy
from fusevol.fs import Caller, Changes, Filesystem, load_filesystem, open_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import BLOCK, ROOT
from fusevol.fs.names import RENAME_EXCHANGE, RENAME_NOREPLACE
from fusevol.log import LogOptions, LogVolume, create_volume, open_volume
from fusevol.log.format import BLOCK_SHIFT, FANOUT

ME = Caller(0, 0)
PUNCH_HOLE = 3


def make(filesystem: Filesystem, name: bytes, *, parent: int = ROOT, kind: int = stat.S_IFREG) -> int:
    return filesystem.create(parent, name, kind | 0o644, ME).ino


async def new_volume() -> MemoryBackend:
    backend = MemoryBackend()
    await create_volume(backend, "v")
    return backend


@asynccontextmanager
async def fresh() -> AsyncIterator[tuple[Filesystem, LogVolume]]:
    """A filesystem that is sound when it is left."""
    async with open_volume(await new_volume(), "v") as volume, open_filesystem(volume) as filesystem:
        yield filesystem, volume
        await filesystem.sync()
        assert (await check_filesystem(volume, deep=True)).findings == []


def refused(code: int, filesystem: Filesystem, *args: object) -> None:
    with pytest.raises(OSError, match=errno.errorcode[code]):
        filesystem.rename(*args)  # type: ignore[arg-type]


async def test_a_directory_and_a_file_change_places_across_parents() -> None:
    async with fresh() as (fs, _):
        left, right = make(fs, b"left", kind=stat.S_IFDIR), make(fs, b"right", kind=stat.S_IFDIR)
        directory, file = make(fs, b"d", parent=left, kind=stat.S_IFDIR), make(fs, b"f", parent=right)
        fs.rename(left, b"d", right, b"f", RENAME_EXCHANGE)
        assert (fs.lookup(left, b"d").ino, fs.lookup(right, b"f").ino) == (file, directory)
        assert (fs.get(left).nlink, fs.get(right).nlink) == (2, 3)
        assert fs.lookup(directory, b"..").ino == right


async def test_a_directory_does_not_go_below_itself_by_any_kind_of_rename() -> None:
    async with fresh() as (fs, _):
        upper = make(fs, b"upper", kind=stat.S_IFDIR)
        lower = make(fs, b"lower", parent=upper, kind=stat.S_IFDIR)
        make(fs, b"file", parent=lower)
        refused(errno.EINVAL, fs, ROOT, b"upper", upper, b"x", 0)
        refused(errno.EINVAL, fs, ROOT, b"upper", lower, b"x", 0)
        refused(errno.EINVAL, fs, ROOT, b"upper", lower, b"file", RENAME_EXCHANGE)
        refused(errno.EINVAL, fs, lower, b"file", ROOT, b"upper", RENAME_EXCHANGE)
        refused(errno.ENOTEMPTY, fs, upper, b"lower", ROOT, b"upper", 0)


async def test_names_of_the_same_file_stay_when_one_is_renamed_over_the_other() -> None:
    async with fresh() as (fs, _):
        directory, file = make(fs, b"d", kind=stat.S_IFDIR), make(fs, b"a")
        fs.link(file, directory, b"b")
        fs.rename(ROOT, b"a", directory, b"b")
        assert (fs.lookup(ROOT, b"a").ino, fs.lookup(directory, b"b").ino, fs.get(file).nlink) == (file, file, 2)
        fs.rename(ROOT, b"a", directory, b"b", RENAME_EXCHANGE)
        assert fs.get(file).nlink == 2
        refused(errno.EEXIST, fs, ROOT, b"a", directory, b"b", RENAME_NOREPLACE)
        refused(errno.EISDIR, fs, ROOT, b"a", ROOT, b"d", 0)
        refused(errno.ENOTDIR, fs, ROOT, b"d", ROOT, b"a", 0)


async def test_a_directory_replaces_an_empty_one_and_takes_its_place() -> None:
    async with fresh() as (fs, _):
        left, right = make(fs, b"left", kind=stat.S_IFDIR), make(fs, b"right", kind=stat.S_IFDIR)
        moved = make(fs, b"m", parent=left, kind=stat.S_IFDIR)
        replaced = make(fs, b"m", parent=right, kind=stat.S_IFDIR)
        fs.rename(left, b"m", right, b"m")
        assert (fs.get(left).nlink, fs.get(right).nlink, fs.get(replaced).nlink) == (2, 3, 0)
        assert fs.get(moved).parent == right
        with pytest.raises(OSError, match="ENOENT"):
            fs.create(replaced, b"late", stat.S_IFREG | 0o644, ME)
        fs.forget(replaced)


async def test_a_file_deleted_while_open_is_gone_after_a_crash_and_its_blocks_with_it() -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume:
        filesystem = await load_filesystem(volume)
        ino = make(filesystem, b"f")
        filesystem.opened(ino)
        await filesystem.write(ino, os.urandom(50 * BLOCK), 0)
        filesystem.unlink(ROOT, b"f")
        await filesystem.sync()
        assert len(await filesystem.read(ino, 50 * BLOCK, 0)) == 50 * BLOCK
        report = await check_filesystem(volume)
        assert (report.findings, report.orphans) == ([], 1)
        volume.abandon()
        filesystem.close()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        await filesystem.sync()
        report = await check_filesystem(volume)
        assert (report.findings, report.orphans, report.inodes, filesystem.used_size) == ([], 0, 1, 0)


@pytest.mark.parametrize("barrier", ["checkpoint", "flush", "delete_snapshot"])
async def test_a_barrier_of_the_volume_has_the_metadata_of_its_data(barrier: str) -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume:
        filesystem = await load_filesystem(volume)
        await filesystem.snapshot("s")
        await filesystem.write(make(filesystem, b"f"), b"x" * 3 * BLOCK, 0)
        await (volume.delete_snapshot("s") if barrier == "delete_snapshot" else getattr(volume, barrier)())
        volume.abandon()
        filesystem.close()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        assert filesystem.lookup(ROOT, b"f").size == 3 * BLOCK
        assert (await check_filesystem(volume, deep=True)).findings == []


async def test_an_address_that_is_handed_out_again_after_a_crash_holds_nothing() -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume:
        filesystem = await load_filesystem(volume)
        await filesystem.write(make(filesystem, b"lost"), b"secret" * BLOCK, 0)
        filesystem.close()  # without a sync
        volume.prepare = None  # so that the volume makes a barrier of the data alone
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        ino = make(filesystem, b"new")
        await filesystem.fallocate(ino, 0, 0, 6 * BLOCK)
        assert bytes(await filesystem.read(ino, 6 * BLOCK, 0)) == bytes(6 * BLOCK)
        await filesystem.sync()
        assert (await check_filesystem(volume, deep=True)).findings == []


async def test_a_page_of_metadata_that_cannot_be_read_does_not_undo_what_was_not_synced() -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        for number in range(3000):
            make(filesystem, b"f%d" % number)
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        make(filesystem, b"new")
        real = volume.read_nowait
        volume.read_nowait = lambda size, offset: None
        with pytest.raises(CorruptData):
            filesystem.lookup(ROOT, b"f2999")
        volume.read_nowait = real
        assert filesystem.lookup(ROOT, b"new").nlink == 1
        await filesystem.sync()
        assert (await check_filesystem(volume)).findings == []


@pytest.mark.parametrize("goes_on", [False, True])
async def test_there_is_no_barrier_without_a_commit_and_one_that_failed_is_tried_again(goes_on: bool) -> None:
    backend = await new_volume()

    async def use(volume: LogVolume) -> None:
        filesystem = await load_filesystem(volume)
        for number in range(2000):
            make(filesystem, b"f%d" % number)
        volume.write_all_nowait = lambda parts: False
        for attempt in (filesystem.sync, volume.flush, volume.checkpoint):
            with pytest.raises(CorruptData, match="map"):
                await attempt()
        assert filesystem.lookup(ROOT, b"f1999").nlink == 1
        make(filesystem, b"more")
        if goes_on:
            volume.write_all_nowait = volume.path.write_all_nowait
            await filesystem.sync()
        filesystem.close()

    async def use_all() -> None:
        async with open_volume(backend, "v") as volume:
            async with open_filesystem(volume) as filesystem:
                make(filesystem, b"kept")
            await use(volume)

    if goes_on:
        await use_all()
    else:
        with pytest.raises(VolumeBusy, match="unmounted"):
            await use_all()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        assert len(filesystem.entries(ROOT, most=3000)) == (2002 if goes_on else 1)
        assert (await check_filesystem(volume)).findings == []


async def test_what_is_freed_before_and_after_a_commit_that_failed_is_given_back_once() -> None:
    async with fresh() as (fs, volume):
        for name in (b"left", b"right"):
            await fs.write(make(fs, name), b"x" * 3 * BLOCK, 0)
        await fs.sync()
        fs.unlink(ROOT, b"right")
        volume.write_all_nowait = lambda parts: False
        with pytest.raises(CorruptData):
            await fs.sync()
        volume.write_all_nowait = volume.path.write_all_nowait
        fs.unlink(ROOT, b"left")
        await fs.sync()
        assert fs._database.all("SELECT * FROM discard") == []


async def test_a_snapshot_does_not_hold_what_was_deleted_right_before_it() -> None:
    async with fresh() as (fs, volume):
        await fs.write(make(fs, b"file"), os.urandom(64 * BLOCK), 0)
        await fs.sync()
        fs.unlink(ROOT, b"file")
        await fs.snapshot("after")
        assert (await volume.usage()).data < 64 * BLOCK


@pytest.mark.parametrize("error", [NoSpace, BackendError])
async def test_a_truncation_that_fails_leaves_the_file_as_it_was(error: type[BackendError]) -> None:
    backend, content = FaultyBackend(await new_volume()), os.urandom(64 * BLOCK)
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        ino, other = make(fs, b"file"), make(fs, b"other")
        await fs.write(ino, content, 0)
        await fs.sync()
        backend.add(fail("write", error=error))
        await fs.write(other, bytes(BLOCK), 0)
        with pytest.raises(error):
            await fs.sync()
        with pytest.raises(error):
            await fs.setattr(ino, Changes(size=1000))
        backend.clear()
        await fs.sync()
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        assert bytes(await fs.read(ino, len(content) + 1, 0)) == content


async def test_times_that_cannot_be_stored_become_the_nearest_that_can() -> None:
    async with fresh() as (fs, _):
        ino = make(fs, b"f")
        await fs.setattr(ino, Changes(atime=-(1 << 70), mtime=1 << 70))
        await fs.sync()
        assert (fs.get(ino).atime, fs.get(ino).mtime) == (-(1 << 63) + 1, (1 << 63) - 1)


async def test_what_was_written_is_kept_when_its_user_is_cancelled() -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume:
        with trio.CancelScope() as scope:
            async with open_filesystem(volume) as filesystem:
                make(filesystem, b"f")
                scope.cancel()
                await trio.sleep(1)
        async with open_filesystem(volume) as filesystem:
            assert filesystem.lookup(ROOT, b"f").nlink == 1


async def test_quota_counts_what_files_hold_and_nothing_twice() -> None:
    async with fresh() as (fs, _):
        fs.resize(10 * BLOCK)
        ino = make(fs, b"f")
        await fs.write(ino, b"x" * 8 * BLOCK, 0)
        with pytest.raises(OSError, match="ENOSPC"):
            await fs.write(ino, b"y" * 3 * BLOCK, 20 * BLOCK)
        await fs.write(ino, b"z" * 8 * BLOCK, 0)
        assert fs.used_size == 8 * BLOCK
        await fs.fallocate(ino, 3, BLOCK, 2 * BLOCK)
        assert (fs.used_size, fs.get(ino).blocks) == (6 * BLOCK, 6)
        await fs.fallocate(ino, 16, 0, 4 * BLOCK)
        assert fs.used_size == 8 * BLOCK
        await fs.setattr(ino, Changes(size=1))
        assert fs.used_size == BLOCK
        fs.unlink(ROOT, b"f")
        assert fs.used_size == 0


async def test_a_write_that_waited_through_a_restore_does_not_reach_the_restored_volume() -> None:
    memory = await new_volume()
    backend = FaultyBackend(memory)
    async with open_volume(backend, "v") as volume:
        filesystem = await load_filesystem(volume)
        ino = make(filesystem, b"f")
        await filesystem.write(ino, b"old" * BLOCK, 0)
        await filesystem.snapshot("s")
        backend.add(delay("write", seconds=0.02))
        outcome: list[str] = []

        async def write() -> None:
            while volume.path.gate is None:
                await trio.lowlevel.checkpoint()
            try:
                await volume.write(b"late", (1 << 50) + 100)  # a part of a block
                outcome.append("written")
            except VolumeBusy:
                outcome.append("refused")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await filesystem.restore("s")
        assert outcome == ["refused"]
        filesystem = await load_filesystem(volume)
        assert bytes(await filesystem.read(ino, 3 * BLOCK, 0)) == b"old" * BLOCK
        filesystem.close()


async def test_a_volume_whose_filesystem_could_not_be_made_has_none() -> None:
    backend = await new_volume()
    async with open_volume(backend, "v") as volume:
        volume.write_all_nowait = lambda parts: False
        with pytest.raises(CorruptData):
            await load_filesystem(volume)
        volume.abandon()
    async with open_volume(backend, "v") as volume:
        assert not any(bytes(await volume.read(1 << BLOCK_SHIFT, 0)))
        async with open_filesystem(volume) as filesystem:
            assert filesystem.get(ROOT).nlink == 2


async def test_a_volume_that_nobody_changes_writes_nothing() -> None:
    backend = CountingBackend(await new_volume())
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
        make(filesystem, b"f")
        await filesystem.sync()
        await trio.testing.wait_all_tasks_blocked(0.1)  # the mark that the log leaves once it is idle
        before = backend["write"].calls
        for _ in range(3):
            await filesystem.sync()
        assert backend["write"].calls == before


class SlowStore(MemoryBackend):
    """A store whose writers have to wait: others run in between."""

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        return await super().write(volume_id, data, offset)


async def test_what_requests_at_once_write_in_order_is_in_order_in_file_and_log_though_they_wait() -> None:
    mib, backend = 1 << 20, SlowStore()
    await create_volume(backend, "v")
    async with open_volume(backend, "v", options=LogOptions(in_flight=1)) as volume, open_filesystem(volume) as fs:
        file, offsets = make(fs, b"f"), iter(range(0, 64 * mib, mib))

        async def requests() -> None:
            for offset in offsets:
                await fs.write(file, bytes([offset // mib + 1]) * mib, offset)

        async def grows() -> None:
            while (size := fs.get(file).size) < 64 * mib:
                await trio.lowlevel.checkpoint()
                if size:
                    assert bytes(await fs.read(file, 1, size - 1)) == bytes([size // mib]), "grown, and nothing there"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(grows)
            for _ in range(16):
                nursery.start_soon(requests)
        ((_, first, count),) = fs._data.extents(fs.get(file))
        assert count == 64 * mib // BLOCK
        leaves = [await volume.path.live.leaf(leaf) for leaf in range(first // FANOUT, (first + count) // FANOUT + 1)]
        addresses = np.concatenate([leaf.words for leaf in leaves])[first % FANOUT :][:count]
        assert (np.diff(addresses.astype(np.int64)) > 0).all()
        for offset in range(0, 64 * mib, mib):
            assert bytes(await fs.read(file, 1, offset + mib - 1)) == bytes([offset // mib + 1])


async def test_a_commit_writes_the_extents_that_changed_and_not_all_of_the_file() -> None:
    async with fresh() as (fs, _):
        file = make(fs, b"sparse")
        for block in range(0, 4000, 2):
            await fs.write(file, b"x" * BLOCK, block * BLOCK)
        await fs.sync()
        before = fs._database.connection.total_changes()
        await fs.write(file, b"y" * BLOCK, 1001 * BLOCK)
        await fs.sync()
        # The inode, an extent or two, counters.
        assert fs._database.connection.total_changes() - before < 20


@pytest.mark.parametrize("seed", range(10))
async def test_the_extents_in_the_database_are_those_of_the_file_whatever_became_of_it(seed: int) -> None:
    rng = random.Random(seed)
    async with fresh() as (fs, _):
        file = make(fs, b"file")
        for _ in range(60):
            block, count = rng.randrange(200), rng.randrange(1, 20)
            what = rng.choice(["write", "write", "write", "punch", "truncate", "sync"])
            if what == "write":
                await fs.write(file, b"x" * BLOCK * count, block * BLOCK)
            elif what == "punch":
                await fs.fallocate(file, PUNCH_HOLE, block * BLOCK, count * BLOCK)
            elif what == "truncate":
                await fs.setattr(file, Changes(size=block * BLOCK))
            else:
                await fs.sync()
        await fs.sync()
        rows = fs._database.all("SELECT block, address, count FROM extent WHERE ino = ? ORDER BY block", (file,))
        assert rows == fs._data.extents(fs.get(file))


async def small_inline_file(filesystem: Filesystem) -> int:
    ino = make(filesystem, b"small")
    await filesystem.write(ino, b"kept" * 100, 0)
    await filesystem.sync()
    return ino


async def test_what_is_in_the_inode_stays_there_until_it_is_in_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fresh() as (fs, volume):
        ino = await small_inline_file(fs)

        async def away(data: Buffer, offset: int) -> int:
            raise BackendError("the store is away")

        with monkeypatch.context() as patched:
            patched.setattr(volume, "write_nowait", lambda data, offset: False)
            patched.setattr(volume, "write", away)
            with pytest.raises(BackendError, match="away"):
                await fs.write(ino, b"more" * 1000, 2000)
            with trio.move_on_after(0), pytest.raises(BackendError):
                await fs.setattr(ino, Changes(size=10_000))
        assert bytes(await fs.read(ino, 10_000, 0)) == b"kept" * 100
        await fs.write(ino, b"more" * 1000, 2000)
        assert bytes(await fs.read(ino, 400, 0)) == b"kept" * 100


async def test_two_writes_that_move_what_is_in_the_inode_at_the_same_time_lose_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fresh() as (fs, volume):
        ino = await small_inline_file(fs)
        go_on, write = trio.Event(), volume.write

        async def waiting(data: Buffer, offset: int) -> int:
            await go_on.wait()
            return await write(data, offset)

        with monkeypatch.context() as patched:
            patched.setattr(volume, "write_nowait", lambda data, offset: False)
            patched.setattr(volume, "write", waiting)
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(fs.write, ino, b"%d" % number * 3000, 3000 * (number + 1))
                await trio.testing.wait_all_tasks_blocked()
                await fs.write(ino, b"late", 396)  # still in the inode
                go_on.set()
        content = bytes(await fs.read(ino, 20_000, 0))
        assert content == b"kept" * 99 + b"late" + bytes(2600) + b"0" * 3000 + b"1" * 3000 + b"2" * 3000
