"""Control: a mounted volume driven through the control directory of its mount."""

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import trio

from fusevol.driver.mounts import is_ours
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    FusevolError,
    InvalidArgument,
    NoSpace,
    NotSupported,
    ReadOnly,
    SnapshotNotFound,
    VolumeBusy,
    VolumeDetached,
)
from fusevol.mount.mounttable import mount_of

__all__ = ["CONTROL_DIRECTORY", "Control"]

T = TypeVar("T")

CONTROL_DIRECTORY = ".fusevol"
#: Of the root of a mount: which volume it is of.
_ID_ATTRIBUTE = "user.fusevol.volume_id"

#: Seconds after which a mount that does not answer is given up.
_PATIENCE = 60.0
#: How many threads may touch one mount at once.
_THREADS = 8

_ERRORS: dict[int, type[FusevolError]] = {
    errno.EEXIST: AlreadyExists,
    errno.ENOENT: SnapshotNotFound,
    errno.EINVAL: InvalidArgument,
    errno.EBUSY: VolumeBusy,
    errno.ENOSPC: NoSpace,
    errno.EROFS: ReadOnly,
    errno.EOPNOTSUPP: NotSupported,
    errno.ENOTCONN: VolumeDetached,
}

#: syncfs(2) fails once where pages of a file could not be written back, whatever has become of the file since.
_HINTS = {
    errno.ENOSPC: "make room; if it was a write to a file that did not fit, this is said once: try again",
    errno.ESTALE: "another process has taken the volume over: unmount it here",
    errno.EIO: "see the log of the mount; if it was a write to a file that failed before, this is said once: try again",
}

#: Threads that touch a mount, by its path: those of one that hangs must leave enough for the others.
_threads: trio.lowlevel.RunVar[dict[Path, trio.CapacityLimiter]] = trio.lowlevel.RunVar("_threads")


def _threads_for(path: Path) -> trio.CapacityLimiter:
    try:
        found = _threads.get()
    except LookupError:
        _threads.set(found := {})
    return found.setdefault(path, trio.CapacityLimiter(_THREADS))


class Control:
    """The control files of one mount.

    A command is one write(2) of one line, whose errno says what went wrong; an answer is a read of the same file.
    Files are touched in a thread that is given up when the mount does not answer, so nothing here hangs for ever.
    """

    def __init__(self, mount_path: str, name: str, *, volume_id: str = "", patience: float = _PATIENCE) -> None:
        """name: what errors call the volume. volume_id: of which volume it has to be a mount; "" for any."""
        self._volume_id = volume_id
        self.path = Path(mount_path) / CONTROL_DIRECTORY
        self.name = name
        self._patience = patience

    async def _in_thread(self, work: Callable[[], T]) -> T:
        with trio.move_on_after(self._patience):
            return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_threads_for(self.path))
        raise VolumeBusy(
            f'the mount of volume "{self.name}" on {self.path.parent} has not answered for {self._patience:g} seconds'
        )

    def open_root(self) -> int:
        """The root of the mount, which cannot be unmounted until that is closed. Blocks.

        Raises OSError, and VolumeBusy where no mount of that volume is there any more.
        """
        root = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._check(root)
        except BaseException:
            os.close(root)
            raise
        return root

    def _check(self, root: int) -> None:
        if not self._volume_id:
            return
        found = ""
        # Unmounted a moment ago, it is a directory of somebody else's, which may look like anything.
        if is_ours(mount_of(root)):
            try:
                found = os.getxattr(f"/proc/self/fd/{root}", _ID_ATTRIBUTE).decode()
            except OSError as error:
                # Without control files there is no such attribute, either.
                if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                    return
                raise
        if found != self._volume_id:
            raise VolumeBusy(
                f'volume "{self.name}" is not mounted on {self.path.parent} any more', hint="try again in a moment"
            )

    def _open(self, file: str, flags: int) -> int:
        root = self.open_root()
        try:
            return os.open(f"{CONTROL_DIRECTORY}/{file}", flags | os.O_CLOEXEC, dir_fd=root)
        finally:
            os.close(root)

    async def write(self, file: str, line: str, what: str) -> None:
        """Give a command; `what` says in an error what could not be done."""

        def work() -> None:
            try:
                fd = self._open(file, os.O_WRONLY)
            except FileNotFoundError:
                raise NotSupported(f'the mount of volume "{self.name}" has no control file {file}') from None
            except OSError as error:
                self._fail(error, what)
            try:
                os.write(fd, line.encode() + b"\n")
            except OSError as error:
                self._fail(error, what)
            finally:
                os.close(fd)

        await self._in_thread(work)

    async def read(self, file: str) -> bytes:
        """What a control file says."""

        def work() -> bytes:
            try:
                with open(self._open(file, os.O_RDONLY), "rb") as stream:
                    return stream.read()
            except FileNotFoundError:
                raise NotSupported(f'the mount of volume "{self.name}" has no control file {file}') from None
            except OSError as error:
                self._fail(error, f"{file} could not be read")

        return await self._in_thread(work)

    def _fail(self, error: OSError, what: str) -> NoReturn:
        kind = _ERRORS.get(error.errno or 0, BackendError)
        reason = error.strerror or str(error)
        hint = _HINTS.get(error.errno or 0)
        raise kind(f'volume "{self.name}": {what}: {reason[:1].lower() + reason[1:]}', hint=hint) from error

    async def read_json(self, file: str) -> dict[str, Any]:
        """What a control file says, where that is a JSON object."""
        try:
            return msgspec.json.decode(await self.read(file), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise BackendError(f'the control file {file} of volume "{self.name}" makes no sense: {error}') from error

    async def requests(self) -> list[dict[str, Any]]:
        """The requests that the mount is serving now: number, operation, inode, age in seconds."""
        try:
            return msgspec.json.decode(await self.read("requests"), type=list[dict[str, Any]])
        except msgspec.MsgspecError as error:
            raise BackendError(f'the control file requests of volume "{self.name}" makes no sense: {error}') from error

    async def snapshot(self, name: str, labels: Mapping[str, str]) -> None:
        """Take a snapshot of all that was written before the call."""
        words = [name, *(f"{key}={value}" for key, value in labels.items())]
        await self.write("snapshot", " ".join(words), f"snapshot {name} could not be taken")

    async def restore(self, name: str) -> None:
        """Turn the live mount to a snapshot."""
        await self.write("restore", name, f"snapshot {name} could not be restored")

    async def delete_snapshot(self, name: str) -> None:
        """Delete a snapshot."""
        await self.write("delete-snapshot", name, f"snapshot {name} could not be deleted")

    async def resize(self, size: int) -> None:
        """Change how many bytes the volume may hold; 0 for no limit."""
        await self.write("size", str(size), "its size could not be changed")

    async def reload(self) -> None:
        """Have the mount go by what the volume's record says now."""
        await self.write("settings", "1", "its settings could not be changed")

    async def flush(self) -> None:
        """Make everything durable."""
        await self.write("flush", "1", "it could not be flushed")

    async def quiesce(self, seconds: float) -> None:
        """Make everything durable, and hold back changes for so many seconds at most."""
        await self.write("quiesce", f"{seconds:g}", "it could not be quiesced")

    async def unquiesce(self) -> None:
        """Let changes go on."""
        await self.write("unquiesce", "1", "it could not be unquiesced")

    async def reclaim(self) -> None:
        """Give back all dead space there is."""
        await self.write("reclaim", "1", "its dead space could not be given back")

    async def used_size(self) -> int:
        """Bytes that the volume takes up."""
        text = await self.read("used_size")
        try:
            return int(text)
        except ValueError:
            raise BackendError(f'the control file used_size of volume "{self.name}" makes no sense') from None
