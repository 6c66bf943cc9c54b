"""A random life of a filesystem, one operation at a time."""

import random
import stat

from fusevol.fs import Caller, Changes, Filesystem
from fusevol.fs.layout import ROOT


async def operate(filesystem: Filesystem, rng: random.Random, held: list[int]) -> None:
    """One random operation; errors of system calls are fine."""
    directories, files = [ROOT], list[int]()
    for parent in directories:
        for entry in filesystem.entries(parent):
            inode = filesystem.get(entry.ino)
            (directories if inode.is_dir else files).append(entry.ino)
    names = [b"%d" % number for number in range(6)]
    where, other, name, second = rng.choice(directories), rng.choice(directories), rng.choice(names), rng.choice(names)
    file = rng.choice(files) if files else None
    kind = rng.randrange(18)
    if kind < 3:
        mode = rng.choice((stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO))
        filesystem.create(where, name, mode | 0o644, Caller(0, 0))
    elif kind == 3:
        filesystem.symlink(where, name, rng.randbytes(rng.randrange(1, 50)), Caller(0, 0))
    elif kind == 4 and file:
        filesystem.link(file, where, name)
    elif kind == 5:
        gone = filesystem.lookup(where, name)
        filesystem.unlink(where, name)
        if gone.nlink == 0 and rng.random() < 0.5:
            filesystem.forget(gone.ino)
    elif kind == 6:
        gone = filesystem.lookup(where, name)
        filesystem.rmdir(where, name)
        filesystem.forget(gone.ino)
    elif kind in (7, 8):
        filesystem.rename(where, name, other, second, rng.choice((0, 0, 1, 2)))
    elif kind == 9 and file and len(held) < 5:
        filesystem.opened(file)
        held.append(file)
    elif kind == 10 and held:
        filesystem.released(held.pop(rng.randrange(len(held))))
    elif kind == 11 and file:
        filesystem.setxattr(file, b"user.%d" % rng.randrange(3), rng.randbytes(20))
    elif kind == 12 and file:
        await filesystem.setattr(file, Changes(mtime=rng.randrange(10**18), atime=rng.choice((None, 5))))
    elif kind == 13 and file:
        await filesystem.setattr(file, Changes(mode=rng.choice((0o600, 0o4755))))
    elif file and stat.S_ISREG(filesystem.get(file).mode):
        if kind == 14:
            await filesystem.setattr(file, Changes(size=rng.choice((0, 5, 2500, 9000, 1 << 20))))
        elif kind == 15:
            await filesystem.fallocate(file, rng.choice((0, 1, 3, 16)), rng.randrange(20000), rng.randrange(1, 20000))
        else:
            data, offset = rng.randbytes(rng.choice((10, 3000, 20000))), rng.choice((0, 100, rng.randrange(50000)))
            await filesystem.write(file, data, offset, timed=rng.random() < 0.5)
