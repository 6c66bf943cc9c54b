"""What a volume is besides its live map: snapshots, their graph, free space; and how a commit changes it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np

from fusevol.errors import CorruptData, SnapshotNotFound
from fusevol.log.records import Blob, Checkpoint, Snapshot, decode, encode
from fusevol.log.sharing import Retired, View, unheld_blocks, unheld_nodes
from fusevol.log.space import FreeList
from fusevol.log.tree import Words, node_extent

__all__ = ["History", "State", "released_blocks", "released_nodes"]


@dataclass(slots=True, frozen=True)
class History:
    """The snapshots of a volume, and how they and the live tree are neighbours (docs/format.md section 6).

    Immutable: a commit works out a new one and installs it once it is durable.
    base: the snapshot the live tree was taken of or restored from, while it exists.
    neighbours: of the live tree.
    """

    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    base: int | None = None
    neighbours: tuple[int, ...] = ()
    next_id: int = 1

    def find(self, name: str, volume_id: str) -> Snapshot:
        """The snapshot of that name. Raises SnapshotNotFound."""
        for snapshot in self.snapshots.values():
            if snapshot.name == name:
                return snapshot
        raise SnapshotNotFound(f'volume "{volume_id}" has no snapshot "{name}"')

    def has(self, name: str) -> bool:
        """Whether there is a snapshot of that name."""
        return any(snapshot.name == name for snapshot in self.snapshots.values())

    def taken(self, new: Snapshot) -> "History":
        """With `new`, a snapshot of the live tree: it comes between the live tree and its neighbours."""
        new = msgspec.structs.replace(new, id=self.next_id, base=self.base, neighbours=self.neighbours)
        snapshots = {
            other.id: _joined(other, (new.id,)) if other.id in self.neighbours else other
            for other in self.snapshots.values()
        }
        return History(snapshots | {new.id: new}, new.id, (new.id,), self.next_id + 1)

    def restored(self, target: Snapshot) -> "History":
        """With the live tree turned to `target`; what it was before must be a snapshot already."""
        return replace(self, base=target.id, neighbours=(target.id,))

    def deleted(self, gone: Snapshot) -> "History":
        """Without `gone`: its neighbours become each other's.

        Where it stood in a line, between its own base and one other, that other inherits the base. Anywhere
        else whoever had it as base has none any more, and who holds a block must be looked up.
        """
        around = gone.neighbours
        live = gone.id in self.neighbours
        ends = len(around) + live
        heir = gone.base if ends == 2 and gone.base in around else None

        def rebase(base: int | None) -> int | None:
            return heir if base == gone.id else base

        snapshots = {}
        for other in self.snapshots.values():
            if other.id == gone.id:
                continue
            if other.id in around:
                other = _joined(other, around, without=gone.id)
            snapshots[other.id] = msgspec.structs.replace(other, base=rebase(other.base))
        neighbours = self.neighbours
        if live:
            neighbours = tuple(sorted((set(neighbours) | set(around)) - {gone.id}))
        return History(snapshots, rebase(self.base), neighbours, self.next_id)

    def to_bytes(self) -> bytes:
        """The snapshot table as it is stored; empty where there are no snapshots."""
        return encode(list(self.snapshots.values())) if self.snapshots else b""

    @classmethod
    def load(cls, table: bytes, record: Checkpoint, volume_id: str) -> "History":
        """Read the snapshot table, and the live tree's part from the checkpoint record."""
        where = f'the snapshot table of volume "{volume_id}"'
        snapshots = {item.id: item for item in decode(table, list[Snapshot], where)} if table else {}
        named = {record.base} if record.base is not None else set()
        for item in snapshots.values():
            named |= {*item.neighbours, *(() if item.base is None else (item.base,))}
        if missing := (named | set(record.neighbours)) - set(snapshots):
            raise CorruptData(f"{where} lacks the snapshots {sorted(missing)}")
        return cls(snapshots, record.base, record.neighbours, record.next_snapshot)


@dataclass(slots=True)
class State:
    """What the last commit made durable, and the counters that go on from there.

    number: of the last attempt at a checkpoint. record, table, root: blobs in use, with the free list's.
    data_blocks: own data blocks held by the live tree, a snapshot, or not yet known to be free.
    meta_blocks: the same for everything else, without what the log head still counts.
    garbage: (address, blocks) for the next checkpoint to free: of those that failed, of the log rolled forward.
    sequence: of the last batch the checkpoint includes. swept: (address, blocks) behind where earlier logs ended.
    """

    history: History = field(default_factory=History)
    number: int = 0
    record: Blob | None = None
    table: Blob | None = None
    free_blob: Blob | None = None
    free: FreeList = field(default_factory=FreeList)
    data_blocks: int = 0
    meta_blocks: int = 0
    garbage: list[tuple[int, int]] = field(default_factory=list)
    sequence: int = 0
    swept: tuple[tuple[int, int], ...] = ()

    def superseded(self, *, table: bool) -> Iterable[Blob]:
        """Blobs that the next checkpoint replaces; the snapshot table only if it changes."""
        return [blob for blob in (self.record, self.free_blob, self.table if table else None) if blob is not None]


def _joined(snapshot: Snapshot, others: Iterable[int], *, without: int | None = None) -> Snapshot:
    neighbours = (set(snapshot.neighbours) | set(others)) - {snapshot.id, without}
    return msgspec.structs.replace(snapshot, neighbours=tuple(sorted(n for n in neighbours if n is not None)))


async def released_blocks(dead: Words, history: History, neighbours: Sequence[View], own_from: int) -> Words:
    """Of the (logical block, address) rows that the live tree let go, the addresses that nobody holds.

    neighbours: the trees of the live tree's neighbours. Addresses below `own_from` are an ancestor's.
    """
    dead = dead[dead[:, 1] >= np.uint64(own_from)]
    if history.base is None:
        return await unheld_blocks(dead, neighbours)
    return dead[dead[:, 1] >= np.uint64(history.snapshots[history.base].position)][:, 1]


async def released_nodes(
    retired: Sequence[Retired], history: History, neighbours: Sequence[View], own_from: int
) -> list[tuple[int, int]]:
    """The same for map nodes: their (address, blocks)."""
    if history.base is None:
        return await unheld_nodes([item for item in retired if node_extent(item[2])[0] >= own_from], neighbours)
    floor = max(own_from, history.snapshots[history.base].node_position)
    return [extent for _, _, word in retired if (extent := node_extent(word))[0] >= floor]
