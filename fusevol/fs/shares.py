"""What each directory of a filesystem holds, from metadata: no file is read."""

import stat
from collections.abc import Sequence
from typing import NamedTuple

from fusevol.errors import CorruptData, InvalidArgument
from fusevol.fs.database import read_superblock
from fusevol.fs.findings import MetadataReader
from fusevol.fs.layout import BLOCK, ROOT
from fusevol.log import LogVolume, SnapshotView

__all__ = ["Share", "shares_of"]

_DIRECTORY = stat.S_IFDIR >> 12
#: What a mount tells in st_blocks, in bytes.
_USED = f"CASE WHEN i.data IS NULL THEN i.blocks * {BLOCK} ELSE (i.size + 511) / 512 * 512 END"


class Share(NamedTuple):
    """What a directory holds, with all below it.

    path: from the root. depth: levels below the directory that was asked for. size: bytes that the files say to have.
    used: bytes that they take up, as du(1) has it in a mount. inodes: files and directories.
    """

    path: bytes
    depth: int
    size: int
    used: int
    inodes: int


class _Directory:
    def __init__(self, path: bytes, depth: int, parent: "_Directory | None") -> None:
        self.path = path
        self.depth = depth
        self.parent = parent
        self.size = self.used = 0
        self.inodes = 1


async def shares_of(volume: LogVolume | SnapshotView, path: Sequence[bytes] = ()) -> list[Share]:
    """What a directory, and each one below it, holds; a directory comes before those in it.

    path: its names, from the root. A file that is none is one share by itself. One with several names counts once.

    Raises InvalidArgument where there is no such path, CorruptData, BackendError, NotSupported.
    """
    if not await read_superblock(volume):
        if path:
            raise InvalidArgument("there is no file in it yet: it was never mounted")
        return [Share(b"/", 0, 0, 0, 0)]
    metadata = MetadataReader(volume)
    try:
        metadata.begin()
        ino, mode = _find(metadata, path)
        top = b"/" + b"/".join(path)
        if not stat.S_ISDIR(mode):
            ((size, used),) = metadata.rows(f"SELECT i.size, {_USED} FROM fs.inode i WHERE i.ino = ?", ino)
            return [Share(top, 0, size, used, 1)]
        return await _shares(metadata, ino, top)
    finally:
        metadata.close()


def _find(metadata: MetadataReader, path: Sequence[bytes]) -> tuple[int, int]:
    """Inode and mode of a path. Symbolic links are not followed."""
    ino, mode = ROOT, stat.S_IFDIR
    for name in path:
        query = (
            "SELECT i.ino, i.mode FROM fs.entry e JOIN fs.inode i ON i.ino = e.ino WHERE e.parent = ? AND e.name = ?"
        )
        row = next(metadata.rows(query, ino, name), None)
        if row is None:
            raise InvalidArgument(f'there is no "/{b"/".join(path).decode(errors="backslashreplace")}" in it')
        ino, mode = row
    return ino, mode


async def _shares(metadata: MetadataReader, top: int, path: bytes) -> list[Share]:
    directories = {top: _Directory(path, 0, None)}
    metadata.run("CREATE TEMP TABLE below (ino INTEGER PRIMARY KEY)")
    metadata.run("INSERT INTO below VALUES (?)", top)
    # One level after the other, so that a parent is there before its children.
    level = [top]
    while level:
        found: list[int] = []
        for parent in level:
            above = directories[parent]
            async for name, ino in metadata.paced(
                f"SELECT name, ino FROM fs.entry WHERE parent = ? AND kind = {_DIRECTORY}", parent
            ):
                if ino in directories:
                    raise CorruptData(f"directory {ino} of the metadata has two names", hint="check the volume")
                directories[ino] = _Directory(above.path.rstrip(b"/") + b"/" + name, above.depth + 1, above)
                metadata.run("INSERT INTO below VALUES (?)", ino)
                found.append(ino)
        level = found
    files = (
        "FROM temp.below b JOIN fs.entry e ON e.parent = b.ino JOIN fs.inode i ON i.ino = e.ino"
        f" WHERE e.kind != {_DIRECTORY} AND i.nlink"
    )
    async for ino, count, size, used in metadata.paced(
        f"SELECT b.ino, count(*), sum(i.size), sum({_USED}) {files} = 1 GROUP BY b.ino"
    ):
        _add(directories[ino], count, size, used)
    # With several names, in the directory that was made first.
    async for ino, size, used in metadata.paced(f"SELECT min(b.ino), i.size, {_USED} {files} > 1 GROUP BY i.ino"):
        _add(directories[ino], 1, size, used)
    for directory in reversed(directories.values()):
        if directory.parent:
            _add(directory.parent, directory.inodes, directory.size, directory.used)
    return [Share(each.path, each.depth, each.size, each.used, each.inodes) for each in directories.values()]


def _add(directory: _Directory, inodes: int, size: int, used: int) -> None:
    directory.inodes += inodes
    directory.size += size
    directory.used += used
