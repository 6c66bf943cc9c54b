"""What an open volume holds: its snapshots and who reads them, how much space what takes, whether it is intact."""

from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager

import trio

from fusevol.errors import VolumeBusy
from fusevol.log.appender import Appender
from fusevol.log.attachment import unfinished
from fusevol.log.commit import blob_extent
from fusevol.log.datapath import DataPath
from fusevol.log.extents import ExtentMap
from fusevol.log.format import BLOCK_SHIFT, LOGICAL_BLOCKS
from fusevol.log.mapped import Unreadable, mapped_runs
from fusevol.log.reader import BlockReader
from fusevol.log.records import Snapshot
from fusevol.log.scrub import Progress, ScrubReport, scrub_chunk
from fusevol.log.sharing import exclusive
from fusevol.log.snapview import SnapshotView
from fusevol.log.state import State, released_blocks
from fusevol.log.tree import NodeCache, Tree
from fusevol.log.usage import Durability, SnapshotUsage, Usage

__all__ = ["VolumeContents"]


class VolumeContents:
    """What can be asked of an open volume, whether it is attached or open for reading only.

    Reads are at byte offsets of a sparse space of 2**63 bytes; see `DataPath` for `read` and `read_nowait`.
    """

    def __init__(
        self, volume_id: str, reader: BlockReader, cache: NodeCache, live: ExtentMap, state: State, log: Appender | None
    ) -> None:
        self.volume_id = volume_id
        self.state = state
        self.path = DataPath(log, reader, live)
        self._reader = reader
        self._cache = cache
        self._log = log
        #: Taken by a commit: there is one at a time.
        self._commits = trio.Semaphore(1)
        self._views: dict[int, int] = {}
        self._deleting: set[int] = set()
        self.read, self.read_nowait = self.path.read, self.path.read_nowait
        #: What the live tree is being turned into (`Manifest.becoming`); "" where it is what it is meant to be.
        self.becoming = ""

    def blocking(self) -> AbstractContextManager[None]:
        """Inside, `read_nowait` and `write_nowait` block the thread rather than give up. No await inside.

        For callers that cannot wait any other way (SQLite's), on backends that are local; NotSupported on others.
        """
        return self._reader.blocking()

    def keeping(self) -> AbstractContextManager[None]:
        """Inside, what `read_nowait` reads stays in a cache below, in preference to other things. No await inside."""
        return self._reader.keeping()

    def mapped(self, first: int, end: int, unreadable: Unreadable) -> AsyncIterator[tuple[int, int]]:
        """Runs of mapped blocks; see `mapped_runs`."""
        return mapped_runs(lambda: self.path.live, self.path.readers, first, end, unreadable)

    # -- space ------------------------------------------------------------------------------------

    @property
    def durability(self) -> Durability:
        """How much is not durable yet."""
        return Durability(*self._log.unflushed) if self._log else Durability(0, 0.0)

    async def usage(self) -> Usage:
        """Bytes held, exact to the block, by what holds them. Waits for a checkpoint under way."""
        async with self._commits:
            state, live, history = self.state, self.path.live, self.state.history
            with self.path.readers.ticket():
                trees = [await self._tree(history.snapshots[i]) for i in history.neighbours]
                dead = len(await released_blocks(self.path.dead(), history, trees, self._reader.own_from))
            data = state.data_blocks + self.path.data_blocks - dead
            garbage = sum(count for _, count in state.garbage)
            meta = state.meta_blocks + (self._log.meta_blocks if self._log else 0) - garbage
            only_snapshots = data - (live.mapped - live.inherited)
            reclaimable = state.free.blocks + dead + garbage
            blocks = live.mapped, live.inherited, data, only_snapshots, meta, reclaimable
            return Usage(*(count << BLOCK_SHIFT for count in blocks))

    # -- snapshots --------------------------------------------------------------------------------

    def snapshots(self) -> list[Snapshot]:
        """All snapshots, oldest first."""
        return sorted(self.state.history.snapshots.values(), key=lambda snapshot: snapshot.id)

    def check_finished(self) -> None:
        """Raise VolumeBusy where the live tree is only partly what it is being turned into."""
        if self.becoming:
            raise unfinished(self.volume_id)

    def unchanged_since(self, snapshot: Snapshot) -> bool:
        """Whether the live volume is what a snapshot holds, with no write or discard between them."""
        live = self.path.live
        return live.tree.blob == snapshot.root and not live.dirty and not live.frozen

    async def snapshot_usage(self, name: str) -> SnapshotUsage:
        """Bytes of a snapshot, exact to the block; the time depends on what changed around it."""
        history = self.state.history
        snapshot = history.find(name, self.volume_id)
        with self.path.readers.ticket():
            views = [await self._tree(history.snapshots[i]) for i in snapshot.neighbours]
            live = [self.path.live] if snapshot.id in history.neighbours else []
            data, nodes = await exclusive(await self._tree(snapshot), [*views, *live], self._reader.own_from)
            if snapshot.root and not self._root_shared(snapshot):
                nodes.append(blob_extent(snapshot.root))
        blocks = snapshot.mapped, len(data), sum(count for _, count in nodes)
        return SnapshotUsage(*(count << BLOCK_SHIFT for count in blocks))

    def _root_shared(self, snapshot: Snapshot) -> bool:
        root, live = snapshot.root, self.path.live
        others = (other.root for other in self.state.history.snapshots.values() if other.id != snapshot.id)
        inherited = root is not None and root.address < self._reader.own_from
        return inherited or root in others or (live.tree.blob == root and not live.dirty and not live.frozen)

    async def _tree(self, snapshot: Snapshot) -> Tree:
        return await Tree.load(self._reader, self._cache, snapshot.root)

    @asynccontextmanager
    async def view(self, name: str) -> AsyncIterator[SnapshotView]:
        """A snapshot, to be read; it cannot be deleted meanwhile. Raises SnapshotNotFound, VolumeBusy."""
        snapshot = self.state.history.find(name, self.volume_id)
        if snapshot.id in self._deleting:
            raise VolumeBusy(f'snapshot "{name}" of volume "{self.volume_id}" is being deleted')
        self._views[snapshot.id] = self._views.get(snapshot.id, 0) + 1
        try:
            yield SnapshotView(snapshot, self._reader, await self._tree(snapshot))
        finally:
            self._views[snapshot.id] -= 1

    async def scrub(self, progress: Progress | None = None) -> ScrubReport:
        """Read and verify everything the live tree and the snapshots hold, each distinct block once.

        Works on a volume in use; what is written meanwhile may be left out. progress: called with the number
        of blocks verified so far, of about `usage().data + usage().inherited`. Raises BackendError where the
        backend fails; damage is reported, not raised.
        """
        report = ScrubReport()
        roots = {index for snapshot in self.snapshots() for index in (await self._tree(snapshot)).root}
        for index in sorted(roots | self.path.live.inner_indexes()):
            with self.path.readers.ticket():
                trees = [(snapshot.name, await self._tree(snapshot)) for snapshot in self.snapshots()]
                stored_below = self._log.oldest_pending() if self._log else LOGICAL_BLOCKS
                await scrub_chunk(index, [("live", self.path.live), *trees], self._reader, report, stored_below)
            if progress:
                progress(report.blocks)
        return report
