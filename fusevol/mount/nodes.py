"""Node ids: which tree an id of the kernel's belongs to, and which inode it is there.

    1                                     the root of the live tree
    generation << 48 | ino                any other inode of the live tree
    1 << 62 | snapshot id << 40 | ino     an inode of a snapshot
    1 << 63 - ...                         control files, see `control`

A handle is the id of what was opened; with `READING` in it, of an inode of the live tree that was opened only to be
read.

The generation grows with every restore, so that ids from before it are known for what they are.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import trio

from fusevol.fs import Filesystem, ReadOnlyFilesystem
from fusevol.fs.layout import ROOT

__all__ = ["CONTROL_NAME", "CONTROL_NODE", "READING", "Node", "Nodes", "node_of"]

CONTROL_NAME = b".fusevol"
#: First id of control files; they are below 1 << 62 + this.
CONTROL_NODE = 3 << 61
_SNAPSHOT = 1 << 62
READING = 1 << 61
_SNAPSHOT_SHIFT = 40
_GENERATION_SHIFT = 48
_INO = (1 << _GENERATION_SHIFT) - 1
_SNAPSHOT_INO = (1 << _SNAPSHOT_SHIFT) - 1


def node_of(handle: int) -> int:
    """The id of what a handle is of."""
    return handle if handle & _SNAPSHOT else handle & ~READING  # control files have both bits


class Node(NamedTuple):
    """Where an id belongs: generation of the live tree, or snapshot id (0: live), and inode number there."""

    generation: int
    snapshot: int
    ino: int

    def number(self, ino: int) -> int:
        """The id of another inode of the same tree."""
        if self.snapshot:
            return _SNAPSHOT | self.snapshot << _SNAPSHOT_SHIFT | ino
        return ROOT if ino == ROOT else self.generation << _GENERATION_SHIFT | ino


class Nodes:
    """The live tree and the snapshots that are being looked at. Or a snapshot in place of the live tree."""

    def __init__(self, tree: ReadOnlyFilesystem) -> None:
        #: What is at the root.
        self.tree = tree
        self.generation = 0
        self.snapshots: dict[int, ReadOnlyFilesystem] = {}
        #: Set when the restore that replaces the live tree is over; None while there is none.
        self.replacing: trio.Event | None = None

    @property
    def filesystem(self) -> Filesystem:
        """The live tree, which may be written. Raises OSError(EROFS) where a snapshot is in its place."""
        if not isinstance(self.tree, Filesystem):
            raise OSError(errno.EROFS, "a snapshot")
        return self.tree

    @contextmanager
    def replacement(self) -> Iterator[None]:
        """While this lasts the live tree must not be touched, and `settled` waits."""
        self.replacing = event = trio.Event()
        try:
            yield
        finally:
            self.replacing = None
            event.set()

    async def settled(self) -> None:
        """Wait until the live tree is there to be used. Does not yield to other tasks where it is."""
        while self.replacing is not None:
            await self.replacing.wait()

    def is_root(self, node: int) -> bool:
        """Whether it is the root of the live tree."""
        return node == ROOT

    def split(self, node: int) -> Node:
        """Take an id, or a handle, apart. Raises OSError(ESTALE) for an inode from before a restore."""
        if node & _SNAPSHOT:
            return Node(0, (node & ~_SNAPSHOT) >> _SNAPSHOT_SHIFT, node & _SNAPSHOT_INO)
        node &= ~READING
        if node == ROOT:
            return Node(self.generation, 0, ROOT)
        if node >> _GENERATION_SHIFT != self.generation:
            raise OSError(errno.ESTALE, "replaced by a restore")
        return Node(self.generation, 0, node & _INO)

    def find(self, node: int) -> tuple[Node, ReadOnlyFilesystem]:
        """The filesystem that has the node, for reading. Raises OSError(ESTALE)."""
        where = self.split(node)
        if not where.snapshot:
            return where, self.tree
        filesystem = self.snapshots.get(where.snapshot)
        if filesystem is None:
            raise OSError(errno.ESTALE, "a snapshot that is not open any more")
        return where, filesystem

    def live(self, node: int) -> tuple[Filesystem, int]:
        """The live filesystem and inode number, for a change. Raises OSError(ESTALE, EROFS)."""
        # Nearly every change is of such a one, which need not be taken apart.
        if node >> _GENERATION_SHIFT == self.generation:
            return self.filesystem, node & _INO
        where = self.split(node)
        if where.snapshot:
            raise OSError(errno.EROFS, "a snapshot")
        return self.filesystem, where.ino

    def replaced(self, filesystem: Filesystem) -> None:
        """The live tree was restored: earlier ids are stale from now on."""
        self.tree = filesystem
        self.generation += 1

    def forget(self, node: int) -> None:
        """The kernel forgot it. Raises Absent, and is to be called again then."""
        if node & _SNAPSHOT or node == ROOT or node >> _GENERATION_SHIFT != self.generation:
            return
        if isinstance(self.tree, Filesystem):
            self.tree.attempt(self.tree.forget, node & _INO)
