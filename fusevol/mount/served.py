"""What a mount does to its volume as a whole: commits, snapshots, restores, and what it tells of itself."""

import logging
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

import trio

from fusevol.api.names import by_name
from fusevol.errors import BackendError, FusevolError, InvalidArgument, VolumeBusy, errno_of
from fusevol.fs import ReadOnlyFilesystem, load_filesystem, open_snapshot
from fusevol.fs.layout import ROOT
from fusevol.log import LogVolume, Snapshot
from fusevol.mount.nodes import Nodes
from fusevol.mount.quiesce import Quiesce
from fusevol.mount.requests import Requests
from fusevol.mount.settings import Outside
from fusevol.mount.troubles import Troubles

__all__ = ["Served"]

log = logging.getLogger(__name__)

_COMMIT_SECONDS = 5.0


class Served:
    """A volume while it is mounted.

    sync_kernel: makes the kernel hand over what it holds back (syncfs), without blocking the loop.
    forget_tree: makes the kernel forget all it knows of the tree, given the names in the root before and after.
    outside: who keeps the volume's record; `troubles` says there what is wrong.
    """

    def __init__(
        self,
        volume: LogVolume,
        nodes: Nodes,
        requests: Requests,
        quiesce: Quiesce,
        name: str,
        sync_kernel: Callable[[], Awaitable[None]],
        forget_tree: Callable[[set[bytes]], Awaitable[None]],
        outside: Outside,
    ) -> None:
        self.volume = volume
        self.nodes = nodes
        self.requests = requests
        self.quiesce = quiesce
        self.name = name
        self.last_snapshot: Snapshot | None = None
        self.last_restore: dict[str, str] | None = None
        self.commit_error: FusevolError | None = None
        self._sync_kernel = sync_kernel
        self._forget_tree = forget_tree
        self._outside = outside
        self.troubles = Troubles(outside, volume.volume_id, name)
        self._views: dict[int, AsyncExitStack] = {}
        self._changing = trio.Lock()

    async def commit_forever(self) -> None:
        """Make everything durable every few seconds, and remember what that fails with."""
        while True:
            await trio.sleep(_COMMIT_SECONDS)
            await self.nodes.settled()
            filesystem = self.nodes.filesystem
            try:
                await filesystem.sync()
                self.commit_error = None
            except FusevolError as error:
                if self.nodes.filesystem is filesystem:
                    self.commit_error = error
            await self.troubles.note("volume", str(self.trouble or ""))

    @property
    def trouble(self) -> FusevolError | None:
        """What keeps the volume from being written, or from giving back space."""
        return self.commit_error or self.volume.background_error or self.volume.room.shortage()

    async def flush(self) -> None:
        """Make everything durable that was written before the call, through the kernel too.

        Raises VolumeBusy while changes are held back: of those that the kernel holds none could be made durable.
        """
        async with self._changing:
            self._refuse_if_quiesced()
            await self._sync_kernel()
        await self.nodes.filesystem.sync()

    async def hold(self, seconds: float) -> None:
        """Make everything durable, and hold back all changes for at most so many seconds; again, to prolong that.

        Raises as `flush`, and OSError(ECANCELED) where that ended before it had quite begun; then nothing is held.
        """
        async with self._changing:
            if self.quiesce.held:
                self.quiesce.prolong(seconds)
                return
            # Before changes are held back, since it waits for them.
            await self._sync_kernel()
            try:
                await self.quiesce.hold(seconds)
                await self.nodes.filesystem.sync()
                # Making it durable took some of the time.
                self.quiesce.confirm(seconds)
            except BaseException:
                self.quiesce.end("it could not be made durable")
                raise

    def _refuse_if_quiesced(self) -> None:
        if self.quiesce.held:
            raise VolumeBusy(f'volume "{self.name}" is quiesced')

    async def snapshot(self, name: str, labels: dict[str, str]) -> Snapshot:
        """Take a snapshot with every write that returned before the call, or before changes were held back.

        Raises as `LogVolume.snapshot`.
        """
        async with self._changing:
            if not self.quiesce.held:
                await self._sync_kernel()
            self.last_snapshot = await self.nodes.filesystem.snapshot(name, labels)
            await self._tell()
            return self.last_snapshot

    async def snapshot_if_changed(self, name: str, labels: dict[str, str], since: Snapshot | None) -> Snapshot | None:
        """As `snapshot`, which this does not show as the last one; None where nothing was written after `since`."""
        async with self._changing:
            if not self.quiesce.held:
                await self._sync_kernel()
            await self.nodes.filesystem.sync()
            if since is not None and self.volume.unchanged_since(since):
                return None
            taken = await self.nodes.filesystem.snapshot(name, labels)
            await self._tell()
            return taken

    async def _tell(self) -> None:
        """Have the records say which snapshots there are."""
        try:
            await self._outside.snapshots_changed(self.volume.snapshots())
        except FusevolError as error:
            # They are made from the log when somebody next asks for them.
            log.warning("the records of the volume could not be brought up to date: %s", error)

    async def restore(self, name: str) -> Snapshot:
        """Turn the live tree to a snapshot; return the safety snapshot.

        Raises VolumeBusy while changes are held back, CorruptData if the snapshot could not be mounted afterwards, and
        as `LogVolume.restore`; then the tree is as it was. BackendError, where it cannot be opened once it is restored:
        then nothing can be done with the mount but to end it.
        """
        async with self._changing:
            self._refuse_if_quiesced()
            async with self.volume.view(name) as view:
                if view.record.mapped:  # else there is no filesystem yet
                    (await open_snapshot(view)).close()
            await self._sync_kernel()
            with self.nodes.replacement():
                before = self._root_names()
                safety = await self.nodes.filesystem.restore(name)
                self.last_restore = {"restored": name, "safety_snapshot": safety.name}
                with trio.CancelScope(shield=True):  # there is no tree meanwhile
                    problem = await self._reopen(name)
            await self._forget_tree(before | self._root_names())
            await self._tell()
            if problem is not None:
                raise problem
            return safety

    async def _reopen(self, name: str) -> FusevolError | None:
        """Open the restored tree. Where that fails, have everybody told of it from now on."""
        old = self.nodes.filesystem
        try:
            self.nodes.replaced(await load_filesystem(self.volume))
        except FusevolError as error:
            hint = "unmount the volume and mount it again; nothing is lost"
            problem = BackendError(f'snapshot "{name}" was restored, but could not be opened: {error}', hint=hint)
            old.close(problem)
            self.volume.fail(problem)
            self.nodes.replaced(old)
            self.commit_error = problem
            return problem
        return None

    def _root_names(self) -> set[bytes]:
        with suppress(FusevolError):  # a damaged tree is to be restored all the same
            return {entry.name for entry in self.nodes.filesystem.entries(ROOT, most=1 << 40)}
        return set()

    async def resize(self, size: int) -> None:
        """Set the quota in bytes, 0 for none; durable when it returns.

        Raises InvalidArgument below what is used, VolumeBusy while changes are held back.
        """
        self._refuse_if_quiesced()
        filesystem = self.nodes.filesystem
        if size and size < filesystem.used_size:
            raise InvalidArgument(f"the volume holds {filesystem.used_size} bytes, and cannot be made smaller")
        filesystem.resize(size)
        await filesystem.sync()

    async def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot that nobody has open. Raises as `LogVolume.delete_snapshot`.

        Who begins to use it from outside at this very moment may find it gone: an error, never wrong data, since all
        that is read is compared with its checksum.
        """
        async with self._changing:
            await self._outside.check_unused(name)
            for snapshot in self.volume.snapshots():
                if snapshot.name == name:
                    await self.close_snapshot(snapshot.id)
            await self.volume.delete_snapshot(name)
            await self._tell()

    async def reclaim(self) -> None:
        """Give back all dead space there is. Raises VolumeBusy while changes are held back, and as `flush`."""
        async with self._changing:
            self._refuse_if_quiesced()
            await self.nodes.filesystem.reclaim()

    # -- snapshots in the mount -------------------------------------------------------------------

    async def open_snapshot(self, name: str) -> tuple[int, ReadOnlyFilesystem] | None:
        """A snapshot's id and tree, opened if it was not; None if there is none of that name."""
        snapshot = next((item for item in self.volume.snapshots() if item.name == name), None)
        if snapshot is None:
            return None
        if snapshot.id not in self.nodes.snapshots:
            stack = AsyncExitStack()
            filesystem = await open_snapshot(await stack.enter_async_context(self.volume.view(name)))
            stack.callback(filesystem.close)
            if snapshot.id in self.nodes.snapshots:  # somebody else was faster
                await stack.aclose()
            else:
                self._views[snapshot.id], self.nodes.snapshots[snapshot.id] = stack, filesystem
        return snapshot.id, self.nodes.snapshots[snapshot.id]

    async def close_snapshot(self, number: int) -> None:
        """Close a snapshot's tree; who still looks at it gets ESTALE."""
        self.nodes.snapshots.pop(number, None)
        if stack := self._views.pop(number, None):
            await stack.aclose()

    async def close(self) -> None:
        """Close all snapshots."""
        for number in list(self._views):
            await self.close_snapshot(number)

    # -- numbers ----------------------------------------------------------------------------------

    async def used_size(self) -> int:
        """Bytes that the volume's own space holds."""
        return (await self.volume.usage()).total

    async def stats(self) -> dict[str, Any]:
        """Counters since the mount, in the manner of /proc/diskstats; bytes and milliseconds."""
        counters, usage = self.requests.counters, await self.volume.usage()
        return {
            "reads": counters.reads,
            "read_ms": counters.read_ns // 1_000_000,
            "read_bytes": counters.read_bytes,
            "writes": counters.writes,
            "write_ms": counters.write_ns // 1_000_000,
            "write_bytes": counters.write_bytes,
            "requests": counters.requests,
            "io_progress": len(self.requests),
            "io_ms": counters.busy // 1_000_000,
            "interval_ms": (time.time_ns() - self.requests.mounted_at) // 1_000_000,
            "bytes_used": usage.total,
            "usage": usage._asdict() | {"total": usage.total},
        }

    def status(self) -> dict[str, Any]:
        """State, durability, and what went wrong last."""
        durability = self.volume.durability
        error = self.trouble
        return {
            "state": "error" if error else "mounted",
            "error": by_name(str(error), self.volume.volume_id, self.name) if error else None,
            "errno": errno_of(error) if error else None,
            "host": socket.gethostname(),
            "mounted_at": self.requests.mounted_at,
            "durability": durability._asdict(),
        }

    def active(self) -> list[dict[str, Any]]:
        """Requests under way."""
        return [request._asdict() for request in self.requests.active()]

    def snapshot_list(self) -> list[dict[str, Any]]:
        """All snapshots, as JSON objects."""
        return [snapshot_record(snapshot) for snapshot in self.volume.snapshots()]


def snapshot_record(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as a JSON object."""
    return {
        "id": snapshot.id,
        "name": snapshot.name,
        "created": snapshot.created,
        "labels": snapshot.labels,
        "auto": snapshot.auto,
        "referenced": snapshot.mapped * 4096,
    }
