"""From a volume to the filesystem in it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from fusevol.errors import FusevolError
from fusevol.fs.database import Database, read_superblock
from fusevol.fs.filesystem import Filesystem
from fusevol.fs.layout import BLOCK, DATA_BLOCK, DATABASE
from fusevol.log import LogVolume, SnapshotView

__all__ = ["fetch_metadata", "leave_filesystem", "load_filesystem", "open_filesystem"]

_FETCH_BLOCKS = 256
_FETCHES = 8


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


async def fetch_metadata(volume: LogVolume | SnapshotView) -> None:
    """Read all metadata once, in parallel, for a cache below the volume to have it before it is asked for.

    What cannot be read is left for whoever asks for it.
    """
    turns = trio.Semaphore(_FETCHES)

    async def fetch(block: int, count: int) -> None:
        try:
            with suppress(FusevolError):
                await volume.read(count * BLOCK, block * BLOCK)
        finally:
            turns.release()

    async with trio.open_nursery() as nursery:
        async for first, mapped in volume.mapped(DATABASE // BLOCK, DATA_BLOCK, lambda *_: None):
            for block in range(first, first + mapped, _FETCH_BLOCKS):
                await turns.acquire()
                nursery.start_soon(fetch, block, min(_FETCH_BLOCKS, first + mapped - block))


async def leave_filesystem(filesystem: Filesystem) -> None:
    """Sync it, unless its volume was abandoned, and close it. What fails is what the volume says from then on."""
    try:
        if not filesystem.volume.abandoned:
            await filesystem.sync()
    except FusevolError as error:
        filesystem.close(error)
        raise
    finally:
        filesystem.close()


@asynccontextmanager
async def open_filesystem(volume: LogVolume) -> AsyncIterator[Filesystem]:
    """The filesystem in a volume, as `load_filesystem` makes it; synced and closed on leaving, however it is left."""
    filesystem = await load_filesystem(volume)
    try:
        yield filesystem
    finally:
        with trio.CancelScope(shield=True):
            await leave_filesystem(filesystem)
