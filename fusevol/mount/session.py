"""Mount, serve, unmount.

    serve ── check the mountpoint ── mount ── handshake ── read-ahead ── pyfuse3.main ── ready() ── ... ── close
                                                                         │
                   ends when: somebody unmounts (returns), serve is cancelled (unmounts, then Cancelled),
                   the connection is aborted (BackendError), a handler raises what is no FUSEError (that)

Nothing here knows what the filesystem holds. When `serve` is left, in whichever way, no request is being
handled and none will come, so the caller can flush and close what it serves.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
from collections.abc import Callable
from pathlib import Path

import pyfuse3
import trio

from fusevol.errors import BackendError, FusevolError, NotSupported, VolumeBusy
from fusevol.mount import _pyfuse3
from fusevol.mount.attaching import check_mountpoint, mount, unmount, vfs_words
from fusevol.mount.extra import ExtraHandlers
from fusevol.mount.handshake import shake_hands
from fusevol.mount.kernel import beside, ended, in_thread, set_dirty_share, set_read_ahead, sync_filesystem
from fusevol.mount.mounttable import Mount, find, places
from fusevol.mount.options import LARGEST_REQUEST, MountOptions
from fusevol.mount.waiter import PollingWaiter
from fusevol.mount.wakeful import Wakefulness, worthwhile

__all__ = ["serve"]

log = logging.getLogger(__name__)

#: How long to go on serving those who use a mount that has left the tree, in seconds.
DETACHED_GRACE = 1.0

_serving = False


async def serve(
    operations: pyfuse3.Operations,
    mountpoint: Path,
    options: MountOptions | None = None,
    *,
    ready: Callable[[], None],
    connected: Callable[[int], None] | None = None,
) -> None:
    """Mount on `mountpoint`, call `ready` once the mount answers, and serve until it is unmounted.

    When cancelled, writes out what the kernel holds and unmounts, going on to serve meanwhile; where the mount
    is in use, it leaves the tree at once, and its users get errors after a moment. `operations.init()` is
    called before the mount answers; before that, `connected` with the open /dev/fuse, where that is ours.

    Raises InvalidArgument for a mountpoint that does not exist or is no directory, VolumeBusy for one that is
    a mount, or where this process serves a mount already; NotSupported where FUSE is not to be had; BackendError
    when the connection was aborted; and what `ready` or a handler raises. Nothing stays mounted then.
    """
    global _serving
    options = options or MountOptions()
    if _serving:
        raise VolumeBusy("this process serves a mount already, and pyfuse3 serves one per process")
    _serving = True
    try:
        target = await in_thread(lambda: check_mountpoint(mountpoint, allow_over_mount=options.allow_over_mount))
        with trio.CancelScope(shield=True):
            session = await _open(operations, target, options)
        if connected is not None and session.device is not None:
            connected(session.device)
        try:
            await session.run(ready)
        finally:
            with trio.CancelScope(shield=True):
                await session.close()
    finally:
        _serving = False


async def _open(operations: pyfuse3.Operations, target: Path, options: MountOptions) -> _Session:
    extra = ExtraHandlers(operations)
    if options.handshake:
        device = await in_thread(lambda: mount(target, options))
        try:
            mounted = _mounted(target)
        except BaseException:
            os.close(device)
            raise
        try:
            fd, reply = await shake_hands(extra, device, options)
        except BaseException as error:
            # The connection is closed, so this cannot wait for anybody.
            await in_thread(lambda: _unmount_beside(mounted, detach=True))
            if not isinstance(error, NotSupported):
                raise
            if not options.read_ahead_kb and os.geteuid():
                raise
            log.warning("%s; serving without the handshake, which is slower", error)
        else:
            log.debug("mounted on %s with requests of up to %d bytes", target, reply.max_write)
            return _Session(mounted, options, extra, fd)
    words = [word for word in vfs_words(options) if word.isascii()]
    try:
        extra.init(os.fspath(target), set(words))
    except RuntimeError as error:
        raise BackendError(f'mounting on "{target}" failed: {error}') from error
    return _Session(_mounted(target), options, extra, None)


def _mounted(target: Path) -> Mount:
    mounted = find(target)
    if mounted is None:
        raise BackendError(f'"{target}" was unmounted while it was being mounted')
    return mounted


class _Session:
    """One mount that is served; pyfuse3 has been initialised for it."""

    def __init__(self, mounted: Mount, options: MountOptions, extra: ExtraHandlers, fd: int | None) -> None:
        self._mounted = mounted
        self._options = options
        self._extra = extra
        #: The connection, where we and not libfuse opened it.
        self.device = fd
        self._ended = trio.Event()
        self._failure: BaseException | None = None
        #: Whether the loop was ended though the mount was there; perhaps in no tree any more.
        self._left = False
        self._waiter: PollingWaiter | None = None

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until unmounted, aborted or cancelled."""
        refused: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._main)
            try:
                await self._first_request()
                if not self._ended.is_set():
                    try:
                        ready()
                    except Exception as error:  # noqa: BLE001 -- raised below, once unmounted
                        refused = error
                    else:
                        await self._ended.wait()
            except trio.Cancelled:
                # Unmounted below, and then raised again as it was, not in a group.
                pass
            if not self._ended.is_set():
                with trio.CancelScope(shield=True):
                    await self._leave()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._failure is not None:
            raise self._failure
        if refused is not None:
            raise refused

    async def close(self) -> None:
        """Close the connection; where that leaves a dead mount behind, remove it."""
        dead = self._left or self._failure is not None
        pyfuse3.close(unmount=False)
        if dead:
            # Detached from the tree: whoever still uses it does not matter any more.
            with contextlib.suppress(FusevolError):
                await in_thread(lambda: _unmount_beside(self._mounted, detach=True))
        await in_thread(beside.close)

    async def _main(self) -> None:
        """pyfuse3's loop, out of reach of cancellation: unmounting needs it."""
        try:
            with trio.CancelScope(shield=True), contextlib.ExitStack() as stack:
                tasks = self._options.max_tasks
                if self.device is not None and self._options.polling:
                    if _pyfuse3.supported():
                        awake = worthwhile() if self._options.wakeful is None else self._options.wakeful
                        wakefulness = Wakefulness() if awake else None
                        self._waiter = stack.enter_context(_pyfuse3.polling(self.device, wakefulness))
                    else:
                        log.warning("pyfuse3 %s is not known here; serving slower", pyfuse3.__version__)
                async with self._extra.answering(self._waiter):
                    await pyfuse3.main(min(8, tasks), tasks)
        except BaseException as error:  # noqa: BLE001 -- raised by run(), outside of the nursery
            self._failure = _only(error)
        finally:
            if self.device is not None and _aborted(self.device):
                self._failure = BackendError(f'the mount on "{self._mounted.mountpoint}" was aborted')
            self._ended.set()

    async def _first_request(self) -> None:
        """Set how much is read ahead and kept unwritten, and see that the mount answers, or else has ended."""
        set_read_ahead(self._mounted, self._options.read_ahead_kb)
        if self._options.dirty_share:
            set_dirty_share(self._mounted, self._options.dirty_share)
        with contextlib.suppress(OSError):
            await in_thread(lambda: os.stat(self._mounted.mountpoint), abandon_on_cancel=True)

    async def _leave(self) -> None:
        """Unmount while serving, from whatever other path as well; end the loop where that does not."""
        if self.device is None or not ended(self.device):
            # Else the loop is about to end, and the number of the filesystem may be another's by now.
            await self._unmount()
        with trio.move_on_after(DETACHED_GRACE):
            await self._ended.wait()
        if not self._ended.is_set():
            log.warning('"%s" is no longer served, though somebody uses it', self._mounted.mountpoint)
            self._left = True
            if self._waiter is not None:
                self._waiter.close()
            else:
                pyfuse3.terminate()
            await self._ended.wait()

    async def _unmount(self) -> None:
        *others, self._mounted = places(self._mounted.device) or [self._mounted]
        for other in others:
            with contextlib.suppress(FusevolError):
                await in_thread(lambda: _unmount_beside(other, detach=True))  # noqa: B023 -- called at once
        with contextlib.suppress(OSError):
            await sync_filesystem(self._mounted.mountpoint, self._mounted.device)
        try:
            await in_thread(lambda: _unmount_beside(self._mounted))
        except VolumeBusy:
            log.warning('"%s" is in use; it is unmounted all the same', self._mounted.mountpoint)
            with contextlib.suppress(OSError, FusevolError):
                await in_thread(lambda: _detach_and_sync(self._mounted))
        except FusevolError as error:
            log.warning("%s", error)


def _detach_and_sync(mounted: Mount) -> None:
    """Take a busy mount out of the tree, and then write out what its users wrote."""
    beside.hold(mounted.mountpoint, os.makedev(*mounted.device))
    try:
        _unmount_beside(mounted, detach=True)
    finally:
        beside.sync_held(mounted.mountpoint)


def _unmount_beside(mounted: Mount, *, detach: bool = False) -> None:
    """`attaching.unmount`, so that nothing waits for ever should this process be killed meanwhile."""
    unmount(mounted, detach=detach, umount2=beside.umount2)


def _aborted(fd: int) -> bool:
    """Whether the ended connection `fd` was aborted (the mount is still there) rather than unmounted."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    if not any(events & select.POLLERR for _fd, events in poller.poll(0)):
        return False
    try:
        # The kernel wants room for the largest request even when it has none.
        os.read(fd, LARGEST_REQUEST + 8192)
    except OSError as error:
        return error.errno == errno.ECONNABORTED
    return False


def _only(error: BaseException) -> BaseException:
    """The exception in a group of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
