"""Random operations, both kinds of sync, and a crash: what was synced is there, and nothing later."""

import random
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import pytest

from fusevol.backends.memory import MemoryBackend
from fusevol.errors import BackendError
from fusevol.fs import Caller, Changes, Filesystem, load_filesystem, open_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import ROOT
from fusevol.log import create_volume, open_volume

ME = Caller(0, 0)
#: Columns of an inode's row that fdatasync may leave out: atime, mtime, ctime.
TIMES = slice(8, 11)
NAMES = [b"a", b"b", b"c", b"d", b"e"]

Operation = Callable[[Filesystem, random.Random], Awaitable[object]]


def any_file(fs: Filesystem, choose: random.Random) -> int:
    """One with a name, or else the root, which is no file: EISDIR, and the like."""
    return choose.choice([entry.ino for entry in fs.entries(ROOT)] or [ROOT])


async def create(fs: Filesystem, choose: random.Random) -> None:
    fs.create(ROOT, choose.choice(NAMES), choose.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR]) | 0o644, ME)


async def write(fs: Filesystem, choose: random.Random) -> None:
    data = bytes([choose.randrange(1, 256)]) * choose.choice([1, 7, 100, 4096, 9000])
    ino = any_file(fs, choose)
    if stat.S_ISREG(fs.get(ino).mode):
        await fs.write(ino, data, choose.choice([0, 5, 4096, choose.randrange(30_000)]), timed=choose.random() < 0.7)


async def truncate(fs: Filesystem, choose: random.Random) -> None:
    await fs.setattr(any_file(fs, choose), Changes(size=choose.choice([0, 3, 4096, choose.randrange(40_000)])))


async def touch(fs: Filesystem, choose: random.Random) -> None:
    await fs.setattr(any_file(fs, choose), Changes(mtime=choose.randrange(10**18), atime=choose.choice([None, 5])))


async def chmod(fs: Filesystem, choose: random.Random) -> None:
    await fs.setattr(any_file(fs, choose), Changes(mode=choose.choice([0o600, 0o4755])))


async def punch(fs: Filesystem, choose: random.Random) -> None:
    ino = any_file(fs, choose)
    if stat.S_ISREG(fs.get(ino).mode):
        await fs.fallocate(ino, choose.choice([0, 1, 3, 16]), choose.randrange(20_000), choose.randrange(1, 9000))


async def set_xattr(fs: Filesystem, choose: random.Random) -> None:
    fs.setxattr(any_file(fs, choose), b"user.x", choose.randbytes(3))


async def link(fs: Filesystem, choose: random.Random) -> None:
    fs.link(any_file(fs, choose), ROOT, choose.choice(NAMES))


async def rename(fs: Filesystem, choose: random.Random) -> None:
    fs.rename(ROOT, choose.choice(NAMES), ROOT, choose.choice(NAMES))


async def unlink(fs: Filesystem, choose: random.Random) -> None:
    fs.unlink(ROOT, choose.choice(NAMES))


async def sync(fs: Filesystem, choose: random.Random) -> None:
    await fs.sync(times=choose.random() < 0.3)


async def sync_that_fails(fs: Filesystem, choose: random.Random) -> None:
    def away(parts: object) -> bool:
        raise BackendError("the store is away")

    with pytest.MonkeyPatch.context() as patch, suppress(BackendError):
        patch.setattr(fs.volume, "write_all_nowait", away)
        await fs.sync(times=choose.random() < 0.5)


OPERATIONS: Sequence[Operation] = (
    create, write, write, write, write, truncate, touch, touch, chmod, punch, set_xattr, link, rename, unlink,
    sync, sync, sync, sync, sync_that_fails,
)  # fmt: skip


async def seen(fs: Filesystem) -> object:
    """All that is to be seen, but times of files."""
    found: list[object] = []
    for name, ino in [(b"", ROOT), *sorted((entry.name, entry.ino) for entry in fs.entries(ROOT))]:
        row = list(fs.get(ino).row())
        row[TIMES] = []
        content = bytes(await fs.read(ino, 1 << 20, 0)) if stat.S_ISREG(fs.get(ino).mode) else b""
        found.append((name, row, content, [(xattr, fs.getxattr(ino, xattr)) for xattr in fs.listxattr(ino)]))
    return found


@pytest.mark.parametrize("seed", range(60))
async def test_after_a_crash_all_is_there_that_was_synced_in_one_way_or_the_other(seed: int) -> None:
    choose, backend = random.Random(seed), MemoryBackend()
    await create_volume(backend, "v")
    for _ in range(3):
        async with open_volume(backend, "v") as volume:
            fs = await load_filesystem(volume)
            for operation in choose.choices(OPERATIONS, k=choose.randrange(1, 60)):
                with suppress(OSError):
                    await operation(fs, choose)
            await fs.sync(times=False)
            before = await seen(fs)
            for operation in choose.choices(OPERATIONS[:-5], k=choose.randrange(3)):
                with suppress(OSError):
                    await operation(fs, choose)  # not synced any more
            volume.abandon()
            fs.close()
        async with open_volume(backend, "v") as volume, open_filesystem(volume) as fs:
            assert await seen(fs) == before
            assert (await check_filesystem(volume, deep=True)).findings == []
