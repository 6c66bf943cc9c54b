"""What a volume must be, told in the plainest way: dictionaries of blocks. Nothing here knows of logs.

A block that was written is a `Block`, an object of its own: two trees share it if they have the same object.
So a model answers not only what is where, but also who holds how much.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from fusevol.api.io import Buffer

__all__ = ["BLOCK", "LAST_BLOCK", "ZONES", "Block", "Held", "State", "Tree", "VolumeModel", "difference"]

BLOCK = 4096
LAST_BLOCK = (1 << 63) // BLOCK
_ZEROS = bytes(BLOCK)

#: Where things happen, as (first block, blocks): the start, borders of map leaves (4 MiB) and of inner nodes
#: (4 GiB), a terabyte away, the end of the space, and single leaves here and there.
ZONES = (
    (0, 48),
    (1016, 16),
    ((1 << 20) - 6, 12),
    ((1 << 28) - 4, 24),
    (LAST_BLOCK - 16, 16),
    *((1025 * leaf, 4) for leaf in range(5, 17)),
)


@dataclass(slots=True, eq=False, frozen=True)
class Block:
    """One block as it was written once, in the volume `owner`."""

    data: bytes
    owner: str


Tree = Mapping[int, Block]


@dataclass(slots=True, frozen=True)
class State:
    """A volume at one moment. Its trees are not changed any more."""

    live: Tree
    snapshots: Mapping[str, Tree]


class Held(NamedTuple):
    """Blocks: of the live tree, those of them that another volume wrote, own ones, those only snapshots have."""

    live: int
    inherited: int
    data: int
    snapshots: int


@dataclass(slots=True)
class VolumeModel:
    """A volume: the live tree, and the snapshots by name."""

    volume_id: str
    live: dict[int, Block] = field(default_factory=dict)
    snapshots: Mapping[str, Tree] = field(default_factory=dict)

    def write(self, data: Buffer, offset: int) -> None:
        """Write at any byte offset; every block that is touched is a new one."""
        view, at = memoryview(data), 0
        while at < len(view):
            number, inner = divmod(offset + at, BLOCK)
            part = view[at : at + BLOCK - inner]
            whole = bytearray(self.live[number].data if number in self.live else _ZEROS)
            whole[inner : inner + len(part)] = part
            self.live[number] = Block(bytes(whole), self.volume_id)
            at += len(part)

    def discard(self, length: int, offset: int) -> None:
        """Drop whole blocks; write zeros to parts of blocks."""
        end = offset + length
        first, last = -(-offset // BLOCK), end // BLOCK
        if first > last:
            self.write(bytes(length), offset)
            return
        self.write(bytes(first * BLOCK - offset), offset)
        self.write(bytes(end - last * BLOCK), last * BLOCK)
        for number in [number for number in self.live if first <= number < last]:
            del self.live[number]

    def read(self, size: int, offset: int) -> bytes:
        """The live tree's bytes."""
        return content(self.live, size, offset)

    def state(self) -> State:
        """The volume as it is now."""
        return State(dict(self.live), self.snapshots)

    def adopt(self, state: State) -> None:
        """Become `state`."""
        self.live, self.snapshots = dict(state.live), state.snapshots

    # -- who holds what; in blocks ------------------------------------------------------------------

    def _own(self, trees: Iterable[Tree]) -> set[Block]:
        return {block for tree in trees for block in tree.values() if block.owner == self.volume_id}

    def held(self) -> "Held":
        """Who holds how much."""
        live, own = self._own([self.live]), self._own((self.live, *self.snapshots.values()))
        return Held(len(self.live), len(self.live) - len(live), len(own), len(own - live))

    def exclusive(self, name: str) -> int:
        """Blocks of this volume's own that only this snapshot holds."""
        others = [self.live, *(tree for other, tree in self.snapshots.items() if other != name)]
        return len(self._own([self.snapshots[name]]) - self._own(others))


def content(tree: Tree, size: int, offset: int) -> bytes:
    """Bytes of a tree, zeros where nothing is."""
    first, skip = divmod(offset, BLOCK)
    count = -(-(skip + size) // BLOCK)
    blocks = (tree.get(number) for number in range(first, first + count))
    return b"".join(block.data if block else _ZEROS for block in blocks)[skip : skip + size]


def difference(tree: Tree, found: bytes, start: int) -> str | None:
    """Compare bytes read from block `start` on with `tree`; say where they first differ, or None."""
    wanted = content(tree, len(found), start * BLOCK)
    if found == wanted:
        return None
    at = next(at for at in range(len(wanted)) if found[at] != wanted[at])
    low = at // BLOCK * BLOCK
    zeros = " (the block is all zeros)" if not any(found[low : low + BLOCK]) else ""
    return (
        f"block {start + at // BLOCK:#x} differs from byte {at % BLOCK} on: "
        f"{found[at : at + 8].hex()} instead of {wanted[at : at + 8].hex()}{zeros}"
    )
