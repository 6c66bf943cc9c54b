"""Commits: making a frozen state durable, and changing what is pinned, in one step of the manifest."""

import time
from dataclasses import dataclass, field

import msgspec
import numpy as np

from fusevol.errors import VolumeHasSnapshots
from fusevol.log.appender import Appender
from fusevol.log.attachment import Attachment
from fusevol.log.checkpoint import Built, Frozen, TreeBuilder, pack_blobs
from fusevol.log.extents import ExtentMap
from fusevol.log.format import BLOCK, BLOCK_SHIFT
from fusevol.log.reader import BlockReader
from fusevol.log.records import Blob, Checkpoint, Manifest, Snapshot, encode
from fusevol.log.sharing import View, exclusive
from fusevol.log.space import runs_of
from fusevol.log.state import History, State, released_blocks, released_nodes
from fusevol.log.tree import NodeCache, Tree, Words, pack_root

__all__ = ["Change", "Committer", "Taking", "blob_extent"]


@dataclass(slots=True, frozen=True)
class Taking:
    """A snapshot to be taken. created: nanoseconds since 1970, None for now; the rest as `Snapshot` has it."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)
    auto: bool = False
    created: int | None = None


@dataclass(slots=True, frozen=True)
class Change:
    """What a commit does besides making the live tree durable, in this order.

    take: a snapshot of the live tree. restore: the snapshot the live tree becomes; needs `take`. delete: a snapshot to
    let go.
    """

    take: Taking | None = None
    restore: Snapshot | None = None
    delete: Snapshot | None = None


def blob_extent(blob: Blob) -> tuple[int, int]:
    """Address and number of blocks of a blob."""
    return blob.address, -(-blob.size // BLOCK)


class Committer:
    """Writes checkpoints of one attached volume; the caller sees to it that there is one at a time."""

    def __init__(
        self, log: Appender, attachment: Attachment, reader: BlockReader, cache: NodeCache, state: State
    ) -> None:
        self.log = log
        self.attachment = attachment
        self.reader = reader
        self.cache = cache
        self.state = state

    async def run(self, live: ExtentMap, frozen: Frozen, change: Change) -> ExtentMap:
        """Commit what `live.freeze` handed out as `frozen`; return the live map from now on.

        On any error nothing is committed and `live` is as it was, its changes still to be made durable.
        """
        builder = TreeBuilder(self.log, live.tree, self.cache, frozen.number)
        appended: list[tuple[int, int]] = builder.built.appended
        try:
            return await self._run(live, frozen, change, await builder.add_leaves(frozen.leaves), appended)
        except BaseException:
            live.abort()
            self.state.garbage += appended
            raise

    async def _run(
        self, live: ExtentMap, frozen: Frozen, change: Change, built: Built, appended: list[tuple[int, int]]
    ) -> ExtentMap:
        state, log, old = self.state, self.log, self.state.history
        others = [await self.tree_of(old.snapshots[i]) for i in old.neighbours]
        data = await released_blocks(frozen.dead, old, others, self.reader.own_from)
        nodes = await released_nodes(built.retired, old, others, self.reader.own_from)
        target = change.restore
        target_tree = await self.tree_of(target) if target else None
        if change.delete:
            if built.sequence:
                await log.flush(built.sequence)
            new_tree = Tree(self.reader, self.cache, built.root, None)
            gone_data, gone_nodes = await self._exclusive(change.delete, old, new_tree)
            data, nodes = np.concatenate((data, gone_data)), nodes + gone_nodes

        # From here to the record everything is laid out at known addresses, so without an await.
        address = node_position = log.begin_map()
        root_blob, history, table_changed = live.tree.blob, old, False
        contents: list[bytes] = []
        if built.root != live.tree.root:
            contents.append(pack_root(built.root))
            (root_blob,), _ = pack_blobs(address, contents)
            if live.tree.blob:
                nodes += self._unpinned(live.tree.blob, old, change)
        if change.take:
            taking = change.take
            taken = Snapshot(
                id=0, name=taking.name, created=time.time_ns() if taking.created is None else taking.created,
                labels=taking.labels, auto=taking.auto, root=root_blob, mapped=frozen.mapped,
                inherited=frozen.inherited, position=frozen.position, node_position=node_position,
            )  # fmt: skip
            history, table_changed = history.taken(taken), True
        live_root, mapped, inherited = root_blob, frozen.mapped, frozen.inherited
        if target:
            history, live_root = history.restored(target), target.root
            mapped, inherited = target.mapped, target.inherited
        if gone := change.delete:
            history, table_changed = history.deleted(gone), True
            if gone.root and gone.root != root_blob:
                nodes += self._unpinned(gone.root, history, change)
        meta = nodes + frozen.overhead + state.garbage
        meta += [blob_extent(blob) for blob in state.superseded(table=table_changed)]
        freed = [runs_of(data), np.array(meta, np.uint64).reshape(-1, 2)]
        contents += [history.to_bytes() if table_changed else b"", state.free.plus(freed).to_bytes()]
        blobs, padded = pack_blobs(address, contents)
        table, free = blobs[-2:]
        meta_freed = sum(count for _, count in meta)
        record = Checkpoint(
            number=frozen.number, sequence=frozen.sequence, position=frozen.position, root=live_root, mapped=mapped,
            inherited=inherited, data_blocks=frozen.data_blocks - len(data),
            meta_blocks=frozen.meta_blocks - meta_freed, base=history.base, neighbours=history.neighbours,
            snapshots=table if table_changed else state.table, free=free, next_snapshot=history.next_id,
            swept=state.swept, time=time.time_ns(),
        )  # fmt: skip
        address += sum(map(len, padded)) >> BLOCK_SHIFT
        (record_blob,), record_bytes = pack_blobs(address, [encode(record)])
        payload = padded + record_bytes
        blocks = sum(map(len, payload)) >> BLOCK_SHIFT
        garbage = (node_position, blocks)
        appended.append(garbage)
        _, sequence = log.append_map(payload, frozen.number)

        await log.flush(sequence)
        await self._publish(record_blob, change)

        # Committed. No await from here on.
        state.garbage.clear()
        state.history, state.record, state.free_blob, state.sequence = (
            history,
            record_blob,
            free,
            frozen.sequence,
        )
        if table_changed:
            state.table = table
        state.free = state.free.plus(freed)
        state.data_blocks -= len(data)
        state.meta_blocks -= meta_freed
        self.cache.forget(word for _, _, word in built.retired)
        if target_tree:
            return ExtentMap(target_tree, mapped, inherited)
        live.commit(Tree(self.reader, self.cache, built.root, root_blob))
        return live

    async def _publish(self, record: Blob | None, change: Change) -> None:
        def swap(manifest: Manifest) -> Manifest:
            if change.delete and any(pin.snapshot == change.delete.id for pin in manifest.pins):
                raise VolumeHasSnapshots(
                    f'snapshot "{change.delete.name}" of volume "{self.log.volume_id}" has clones',
                    hint="delete its clones first",
                )
            return msgspec.structs.replace(manifest, checkpoint=record, end=msgspec.UNSET)

        # A snapshot that nobody knows of could be cloned, then forgotten; a restored tree would be another one.
        # Anything else may be found done without harm: the next checkpoint does it again.
        await self.attachment.publish(swap, doubtful=record if change.take else None)

    async def tree_of(self, snapshot: Snapshot) -> Tree:
        """The stored tree of a snapshot."""
        return await Tree.load(self.reader, self.cache, snapshot.root)

    async def _exclusive(self, gone: Snapshot, history: History, live: View) -> tuple[Words, list[tuple[int, int]]]:
        views: list[View] = [await self.tree_of(history.snapshots[i]) for i in gone.neighbours]
        if gone.id in history.neighbours:
            views.append(live)
        return await exclusive(await self.tree_of(gone), views, self.reader.own_from)

    def _unpinned(self, root: Blob, history: History, change: Change) -> list[tuple[int, int]]:
        """The root's own blocks, unless a snapshot keeps it or it is an ancestor's."""
        kept = root.address < self.reader.own_from or any(s.root == root for s in history.snapshots.values())
        return [] if kept or (change.restore and change.restore.root == root) else [blob_extent(root)]
