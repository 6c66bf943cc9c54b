"""From a volume to the filesystem in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fusevol.fs.database import Database, read_superblock
from fusevol.fs.filesystem import Filesystem
from fusevol.log import LogVolume

__all__ = ["load_filesystem", "open_filesystem"]


async def load_filesystem(volume: LogVolume) -> Filesystem:
    """The filesystem in a volume, made if there is none, and recovered; to be closed by the caller.

    Raises CorruptData, NotSupported (a later version of the filesystem), BackendError.
    """
    there = await read_superblock(volume)
    database = Database(volume)
    try:
        if not there:
            database.begin()
            database.create()
        filesystem = Filesystem(volume, database)
        if not there:
            filesystem.format()
        await filesystem.recover()
        await filesystem.sync()
    except BaseException:
        volume.prepare = None
        database.close()
        raise
    return filesystem


@asynccontextmanager
async def open_filesystem(volume: LogVolume) -> AsyncIterator[Filesystem]:
    """The filesystem in a volume, as `load_filesystem` makes it; synced and closed on leaving, however it is left."""
    filesystem = await load_filesystem(volume)
    try:
        yield filesystem
    finally:
        try:
            if not volume.abandoned:
                with trio.CancelScope(shield=True):
                    await filesystem.sync()
        finally:
            filesystem.close()
