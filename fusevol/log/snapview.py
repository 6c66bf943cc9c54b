"""A snapshot as it is read."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

from fusevol.api.io import Buffer
from fusevol.log.datapath import DataPath
from fusevol.log.extents import ExtentMap
from fusevol.log.mapped import Unreadable, mapped_runs
from fusevol.log.reader import BlockReader
from fusevol.log.records import Snapshot
from fusevol.log.tree import Tree

__all__ = ["SnapshotView"]


class SnapshotView:
    """The bytes of a snapshot; `record` says which. `path` is the way to them."""

    def __init__(self, record: Snapshot, reader: BlockReader, tree: Tree) -> None:
        self.record = record
        self._reader = reader
        self.path = DataPath(None, reader, ExtentMap(tree, record.mapped, record.inherited))

    async def read(self, size: int, offset: int) -> Buffer:
        """Return exactly `size` bytes from `offset`. Raises CorruptData, BackendError, InvalidArgument."""
        return await self.path.read(size, offset)

    def read_nowait(self, size: int, offset: int) -> Buffer | None:
        """Like `read`, but None where it would have to wait."""
        return self.path.read_nowait(size, offset)

    def blocking(self) -> AbstractContextManager[None]:
        """Inside, `read_nowait` blocks the thread rather than give up; see `LogVolume.blocking`."""
        return self._reader.blocking()

    def keeping(self) -> AbstractContextManager[None]:
        """Inside, what `read_nowait` reads stays in caches; see `LogVolume.keeping`."""
        return self._reader.keeping()

    def mapped(self, first: int, end: int, unreadable: Unreadable) -> AsyncIterator[tuple[int, int]]:
        """Runs of mapped blocks; see `mapped_runs`."""
        return mapped_runs(lambda: self.path.live, self.path.readers, first, end, unreadable)
