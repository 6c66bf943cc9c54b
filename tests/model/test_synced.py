"""Random operations, both kinds of sync, and a crash: what was synced is there, and nothing later."""

import random
import stat
from contextlib import suppress

import pytest

from fusevol.backends.memory import MemoryBackend
from fusevol.errors import BackendError
from fusevol.fs import Filesystem, load_filesystem, open_filesystem
from fusevol.fs.check import check_filesystem
from fusevol.fs.layout import ROOT
from fusevol.log import create_volume, open_volume
from tests.unit.operating import operate

#: Columns of an inode's row that fdatasync may leave out: atime, mtime, ctime.
TIMES = slice(8, 11)


async def fail_to_sync(filesystem: Filesystem, rng: random.Random) -> None:
    def away(parts: object) -> bool:
        raise BackendError("the store is away")

    with pytest.MonkeyPatch.context() as patch, suppress(BackendError):
        patch.setattr(filesystem.volume, "write_all_nowait", away)
        await filesystem.sync(times=rng.random() < 0.5)


async def seen(filesystem: Filesystem) -> list[object]:
    """All that is to be seen, but times of files."""
    found: list[object] = []
    paths = [(b"", ROOT)]
    for path, ino in paths:
        inode = filesystem.get(ino)
        if inode.is_dir:
            paths += sorted((path + b"/" + entry.name, entry.ino) for entry in filesystem.entries(ino))
        row = list(inode.row())
        row[TIMES] = []
        content = bytes(await filesystem.read(ino, 2 << 20, 0)) if stat.S_ISREG(inode.mode) else b""
        xattrs = sorted((name, filesystem.getxattr(ino, name)) for name in filesystem.listxattr(ino))
        found.append((path, row, content, xattrs))
    return found


@pytest.mark.parametrize("seed", range(60))
async def test_after_a_crash_all_is_there_that_was_synced_in_one_way_or_the_other(seed: int) -> None:
    rng, backend = random.Random(seed), MemoryBackend()
    await create_volume(backend, "v")
    for _ in range(3):
        async with open_volume(backend, "v") as volume:
            filesystem, held = await load_filesystem(volume), list[int]()
            for _ in range(rng.randrange(1, 80)):
                with suppress(OSError):  # a name is taken, or missing
                    await operate(filesystem, rng, held)
                if rng.random() < 0.25:
                    await filesystem.sync(times=rng.random() < 0.3)
                elif rng.random() < 0.05:
                    await fail_to_sync(filesystem, rng)
            await filesystem.sync(times=False)
            before = await seen(filesystem)
            for _ in range(rng.randrange(3)):
                with suppress(OSError):
                    await operate(filesystem, rng, held)  # not synced any more
            volume.abandon()
            filesystem.close()
        async with open_volume(backend, "v") as volume, open_filesystem(volume) as filesystem:
            assert await seen(filesystem) == before
            assert (await check_filesystem(volume, deep=True)).findings == []
