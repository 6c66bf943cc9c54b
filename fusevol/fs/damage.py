"""Which files a scrub's damage is in, in the live tree and in each snapshot."""

from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from fusevol.errors import CorruptData
from fusevol.fs.findings import MetadataReader
from fusevol.fs.layout import BLOCK, DATA_BLOCK
from fusevol.log import LogVolume, SnapshotView
from fusevol.log.scrub import Damage, ScrubReport

__all__ = ["NamedDamage", "name_damage"]

_LIVE = "live"


@dataclass(frozen=True, slots=True)
class NamedDamage:
    """A piece of damage as one holder sees it.

    holder: "live", or a snapshot's name. path: of the file, where one was found; ino: its inode number, None where no
    file has the blocks. offset, size: bytes of the file, or where there is none, of the volume. what: in words.
    """

    damage: Damage
    holder: str
    what: str
    offset: int
    size: int
    ino: int | None = None
    path: str | None = None


async def name_damage(volume: LogVolume, report: ScrubReport) -> list[NamedDamage]:
    """Say for each piece of damage, and each of its holders, which file it is in.

    One pass over the extents of each holder concerned. The filesystem must be synced. Raises BackendError.
    """
    named: list[NamedDamage] = []
    snapshots = {snapshot.name for snapshot in volume.snapshots()}
    for holder in sorted({name for damage in report.damage for name in damage.holders}):
        pieces = [damage for damage in report.damage if holder in damage.holders]
        async with AsyncExitStack() as stack:
            source: LogVolume | SnapshotView = volume
            if holder != _LIVE:
                if holder not in snapshots:
                    continue  # deleted since
                source = await stack.enter_async_context(volume.view(holder))
            named += _in_tree(source, holder, pieces)
    return named


def _in_tree(source: LogVolume | SnapshotView, holder: str, pieces: Sequence[Damage]) -> list[NamedDamage]:
    data = sorted((d for d in pieces if d.block + d.count > DATA_BLOCK), key=lambda damage: damage.block)
    named = [_plain(d, holder, "metadata of the filesystem") for d in pieces if d.block < DATA_BLOCK]
    found: list[tuple[Damage, int, int, int]] = []
    paths: dict[int, str] = {}
    reason = "no file has these blocks"
    if data:
        try:
            metadata = MetadataReader(source)
        except CorruptData as error:
            return named + [_plain(d, holder, str(error)) for d in data]
        try:
            found = _owners(metadata, data)
            paths = metadata.paths({ino for _, ino, _, _ in found})
        except CorruptData as error:
            reason = f"which file it is in cannot be said: {error}"
        finally:
            metadata.close()
    owned = {id(damage) for damage, _, _, _ in found}
    named += [_plain(d, holder, reason) for d in data if id(d) not in owned]
    for damage, ino, block, count in found:
        path, offset, size = paths.get(ino), block * BLOCK, count * BLOCK
        what = f"{path or f'inode {ino}'}: bytes {offset} to {offset + size - 1}"
        named.append(NamedDamage(damage, holder, what, offset, size, ino, path))
    return named


def _plain(damage: Damage, holder: str, what: str) -> NamedDamage:
    return NamedDamage(damage, holder, what, damage.block * BLOCK, damage.count * BLOCK)


def _owners(metadata: MetadataReader, data: Sequence[Damage]) -> list[tuple[Damage, int, int, int]]:
    """(damage, inode, block of the file, blocks) for every extent that is damaged. Damage is sorted, and disjoint."""
    starts = [damage.block for damage in data]
    found = []
    for ino, block, address, count in metadata.rows("SELECT ino, block, address, count FROM fs.extent"):
        at = max(0, bisect_right(starts, address) - 1)
        while at < len(data) and starts[at] < address + count:
            low, high = max(address, starts[at]), min(address + count, starts[at] + data[at].count)
            if low < high:
                found.append((data[at], ino, block + low - address, high - low))
            at += 1
    return found
