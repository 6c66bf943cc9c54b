"""What is in volumes, from their metadata, without a mount: what differs between two states, and who holds how much."""

import os
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import msgspec

from fusevol.api import Volume
from fusevol.driver.context import Context
from fusevol.driver.upkeep import Upkeep
from fusevol.errors import InvalidArgument

if TYPE_CHECKING:
    from fusevol.log import LogVolume, SnapshotView

__all__ = ["Contents", "DirectoryShare", "FileChange", "path_text"]

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class FileChange(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between two states of a volume.

    change: "added", "removed", "renamed" or "changed". path: where it is, or where it was if it was removed; old_path:
    where one that was renamed was. Both as `path_text` makes them. content: whether it is another. attributes: which
    of mode, owner, group, device, mtime and xattrs are others.
    """

    change: str
    kind: str
    path: str
    old_path: str | None
    content: bool
    attributes: tuple[str, ...]


class DirectoryShare(msgspec.Struct, frozen=True, kw_only=True):
    """What a directory holds with all below it; see `fs.shares.Share`. path: as `path_text` makes it."""

    path: str
    depth: int
    size: int
    used: int
    inodes: int


class Contents:
    """Looks into volumes and snapshots. No volume is held, and mounted ones are as they are when the call begins."""

    def __init__(self, context: Context, upkeep: Upkeep) -> None:
        self._context = context
        self._upkeep = upkeep

    async def _volume_of(self, states: Sequence[Volume]) -> Volume:
        """The volume that records are of: it, or snapshots of it."""
        ids = {state.source.parent if state.is_snapshot else state.id for state in states}
        if len(ids) > 1:
            raise InvalidArgument("both must be of one volume")
        volume = await self._context.store.get_vol(ids.pop())
        if not all(state.is_snapshot for state in states):
            await self._upkeep.flush(volume)
        return volume

    async def _fetch(self, volume: Volume, sources: Sequence["LogVolume | SnapshotView"]) -> None:
        """Have the metadata of a volume at hand whose store would be asked for one page after the other."""
        if self._context.backend_of(volume).traits.remote:
            from fusevol.fs import fetch_metadata

            for source in sources:
                await fetch_metadata(source)

    async def diff(self, old: Volume, new: Volume) -> list[FileChange]:
        """What leads from one state of a volume to another, sorted by path. Each is a snapshot, or the volume itself.

        Raises InvalidArgument where they are not of one volume, SnapshotNotFound, CorruptData, BackendError.
        """
        from fusevol.fs.difference import compare_filesystems

        async def work(log: "LogVolume") -> list[FileChange]:
            async with AsyncExitStack() as stack:
                one, other = [await stack.enter_async_context(_state(log, state)) for state in (old, new)]
                await self._fetch(volume, [one, other])
                return [
                    FileChange(
                        change=change.what,
                        kind=_KINDS.get(change.kind, "file"),
                        path=path_text(change.path),
                        old_path=None if change.old_path is None else path_text(change.old_path),
                        content=change.content,
                        attributes=change.attributes,
                    )
                    for change in await compare_filesystems(one, other)
                ]

        volume = await self._volume_of([old, new])
        return await self._context.look(volume, work)

    async def shares(self, state: Volume, path: str = "/", *, depth: int | None = None) -> list[DirectoryShare]:
        """What a directory of a volume or snapshot, and each one below it, holds; a directory before those in it.

        depth: only those at most so many levels below it.

        Raises InvalidArgument where there is no such path, CorruptData, BackendError.
        """
        from fusevol.fs.shares import Share, shares_of

        names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]

        async def work(log: "LogVolume") -> list[Share]:
            async with AsyncExitStack() as stack:
                source = await stack.enter_async_context(_state(log, state))
                await self._fetch(volume, [source])
                return await shares_of(source, names)

        volume = await self._volume_of([state])
        found = await self._context.look(volume, work)
        return [
            DirectoryShare(path=path_text(share.path), depth=share.depth, size=share.size, used=share.used,
                           inodes=share.inodes)
            for share in found
            if depth is None or share.depth <= depth
        ]  # fmt: skip


@asynccontextmanager
async def _state(log: "LogVolume", state: Volume) -> "AsyncIterator[LogVolume | SnapshotView]":
    """What a record is of: the live tree of its volume, or a snapshot. Raises VolumeBusy for an unfinished copy."""
    if not state.is_snapshot:
        log.check_finished()
        yield log
        return
    async with log.view(state.locator.name) as view:
        yield view


def path_text(path: bytes) -> str:
    r"""A path as text of one line, from which the bytes can be had again.

    Bytes that are no UTF-8, and those of characters that cannot be printed, are `\xNN`; a backslash is `\\`.
    """
    parts = []
    for character in path.decode("utf-8", "surrogateescape"):
        if character == "\\":
            parts.append("\\\\")
        elif character.isprintable():
            parts.append(character)
        else:
            parts += [f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape")]
    return "".join(parts)
