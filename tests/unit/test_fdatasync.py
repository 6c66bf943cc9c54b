"""What fdatasync(2) makes durable, and what it need not wait for."""

import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from fusevol.backends.base import Backend
from fusevol.backends.memory import MemoryBackend
from fusevol.backends.wrappers.faults import FaultyBackend, delay
from fusevol.errors import BackendError
from fusevol.fs import Caller, Changes, Filesystem, load_filesystem, open_filesystem
from fusevol.fs.layout import BLOCK, ROOT
from fusevol.log import create_volume, open_volume

ME = Caller(0, 0)
LONG_AGO = 10**18
Change = Callable[[Filesystem, int], Awaitable[object]]


@asynccontextmanager
async def until_the_crash(backend: Backend) -> AsyncIterator[tuple[Filesystem, int]]:
    """A filesystem with a file of three blocks, all durable; what is not when it is left, is lost."""
    await create_volume(backend, "v")
    async with open_volume(backend, "v") as volume:
        fs = await load_filesystem(volume)
        file = fs.create(ROOT, b"f", stat.S_IFREG | 0o644, ME).ino
        await fs.write(file, b"x" * 3 * BLOCK, 0)
        await fs.setattr(file, Changes(atime=LONG_AGO, mtime=LONG_AGO))
        await fs.sync()
        yield fs, file
        volume.abandon()
        fs.close()


@asynccontextmanager
async def after_the_crash(backend: Backend) -> AsyncIterator[Filesystem]:
    async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
        yield fs


@pytest.mark.parametrize("timed", [False, True])
async def test_what_is_written_over_in_place_is_durable_without_a_commit(timed: bool) -> None:
    backend = MemoryBackend()
    async with until_the_crash(backend) as (fs, file):
        before = fs._database.connection.total_changes()
        await fs.write(file, b"y" * 2 * BLOCK, BLOCK // 2, timed=timed)
        await fs.setattr(file, Changes(mtime=LONG_AGO + 1))
        await fs.sync(times=False)
        assert fs._database.connection.total_changes() == before
    async with after_the_crash(backend) as fs:
        half = BLOCK // 2
        assert bytes(await fs.read(file, 3 * BLOCK, 0)) == b"x" * half + b"y" * 2 * BLOCK + b"x" * half
        assert fs.get(file).mtime == LONG_AGO


async def test_times_that_fdatasync_did_not_wait_for_are_durable_after_fsync() -> None:
    backend = MemoryBackend()
    async with until_the_crash(backend) as (fs, file):
        await fs.setattr(file, Changes(atime=LONG_AGO + 1, mtime=LONG_AGO + 2))
        await fs.sync(times=False)
        await fs.sync()
    async with after_the_crash(backend) as fs:
        assert (fs.get(file).atime, fs.get(file).mtime) == (LONG_AGO + 1, LONG_AGO + 2)


async def test_an_fsync_is_not_done_with_an_fdatasync_that_began_after_it() -> None:
    backend, go_on = FaultyBackend(MemoryBackend()), trio.Event()
    async with until_the_crash(backend) as (fs, file):
        backend.add(delay("write", until=go_on))
        await fs.write(file, b"y", 0)
        await fs.setattr(file, Changes(mtime=LONG_AGO + 1))
        async with trio.open_nursery() as nursery:
            for times in (False, False, True, False):
                nursery.start_soon(lambda times: fs.sync(times=times), times)
                await trio.testing.wait_all_tasks_blocked()
            go_on.set()
    async with after_the_crash(backend) as fs:
        assert fs.get(file).mtime == LONG_AGO + 1


async def test_fdatasyncs_that_wait_for_one_are_done_with_the_next() -> None:
    backend, go_on = FaultyBackend(MemoryBackend()), trio.Event()
    async with until_the_crash(backend) as (fs, file):
        backend.add(delay("write", until=go_on))
        before = fs._begun
        await fs.write(file, b"y", 0)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(lambda: fs.sync(times=False))
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        assert fs._begun == before + 2


async def settled(fs: Filesystem) -> None:
    """Nothing is left to be committed: a sync has discards to take off a list, which is for the next."""
    await fs.sync()
    await fs.sync()
    assert not fs._database.changed


async def grow(fs: Filesystem, file: int) -> None:
    await fs.write(file, b"more", 3 * BLOCK, timed=True)


async def grow_within_a_block(fs: Filesystem, file: int) -> None:
    await fs.setattr(file, Changes(size=2 * BLOCK + 10))
    await settled(fs)
    await fs.write(file, b"more", 2 * BLOCK + 10, timed=True)


async def write_over_what_is_in_the_inode(fs: Filesystem, file: int) -> None:
    small = fs.create(ROOT, b"small", stat.S_IFREG | 0o644, ME).ino
    await fs.write(small, b"old", 0)
    await settled(fs)
    await fs.write(small, b"new", 0, timed=True)


async def make(fs: Filesystem, file: int) -> None:
    fs.create(ROOT, b"new", stat.S_IFREG | 0o644, ME)


async def unlink(fs: Filesystem, file: int) -> None:
    fs.unlink(ROOT, b"f")


async def set_xattr(fs: Filesystem, file: int) -> None:
    fs.setxattr(file, b"user.a", b"b")


async def write_into_a_hole(fs: Filesystem, file: int) -> None:
    await fs.fallocate(file, 3, 0, BLOCK)
    await settled(fs)
    await fs.write(file, b"y" * BLOCK, 0, timed=True)


def setting(**changes: int) -> Change:
    async def change(fs: Filesystem, file: int) -> None:
        await fs.setattr(file, Changes(**changes))

    return change


CHANGES: Sequence[Change] = (
    grow, grow_within_a_block, write_over_what_is_in_the_inode, make, unlink, set_xattr, write_into_a_hole,
    setting(mode=0o600), setting(uid=5), setting(gid=5), setting(size=7), setting(size=9 * BLOCK, mtime=3),
)  # fmt: skip


async def seen(fs: Filesystem) -> object:
    """All that is to be seen of the filesystem."""
    found: list[object] = [fs.get(ROOT).row()]
    for entry in fs.entries(ROOT):
        inode = fs.get(entry.ino)
        content = bytes(await fs.read(entry.ino, 10 * BLOCK, 0)) if stat.S_ISREG(inode.mode) else b""
        names = fs.listxattr(entry.ino)
        found.append((entry.name, inode.row(), content, [(name, fs.getxattr(entry.ino, name)) for name in names]))
    return found


@pytest.mark.parametrize("change", CHANGES)
async def test_of_all_other_changes_nothing_is_lost(change: Change) -> None:
    backend = MemoryBackend()
    async with until_the_crash(backend) as (fs, file):
        await change(fs, file)
        await fs.sync(times=False)
        before = await seen(fs)
    async with after_the_crash(backend) as fs:
        assert await seen(fs) == before


async def test_a_commit_that_the_log_did_not_take_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = MemoryBackend()
    async with until_the_crash(backend) as (fs, file):

        def away(parts: object) -> bool:
            raise BackendError("the store is away")

        await fs.setattr(file, Changes(mode=0o600))
        with monkeypatch.context() as patched:
            patched.setattr(fs.volume, "write_all_nowait", away)
            with pytest.raises(BackendError):
                await fs.sync()
        await fs.sync(times=False)
    async with after_the_crash(backend) as fs:
        assert stat.S_IMODE(fs.get(file).mode) == 0o600
