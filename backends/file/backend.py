"""FileBackend: a directory per volume on a local file system; the embedded default.

    <path>/<volume id>/<number>.seg     the space, SEGMENT_BYTES each, sparse
    <path>/<volume id>/manifest         version (8 bytes), checksum of the rest (8 bytes), the bytes
    <path>/<volume id>/lock             locked while the manifest is replaced

Writes go around the page cache (O_DIRECT) where address, offset and size allow; reads go through it, so
that what is cached can be returned without a thread.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend, Capacity, Manifest, Started, Traits
from fusevol.backends.checks import check_range, check_volume_id, flat
from fusevol.backends.file.manifest_file import ManifestFile
from fusevol.backends.file.segments import SegmentDirectory
from fusevol.backends.overwriter import Overwriter
from fusevol.backends.systemcalls import fsync_directory, translate
from fusevol.errors import AlreadyExists, VolumeNotFound

__all__ = ["FileBackend"]

T = TypeVar("T")

_THREADS = 16
#: So many volumes' manifests are kept open, those asked for last: one or two are asked for again and again.
_MANIFESTS = 8


class FileBackend(Backend):
    """Volumes in directories under `path`, which is made if it does not exist."""

    traits = Traits()

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._volumes: dict[str, SegmentDirectory] = {}
        self._manifests: dict[str, ManifestFile] = {}
        self._overwriter = Overwriter()
        self._threads = trio.CapacityLimiter(_THREADS)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise translate(error, f"{self.path} cannot be used as a directory of volumes") from error

    async def _run(self, what: str, work: Callable[[], T]) -> T:
        """Run blocking `work` in a thread, to the end even if cancelled; `what` names it in errors."""
        try:
            return await trio.to_thread.run_sync(work, limiter=self._threads)
        except OSError as error:
            raise translate(error, what) from error

    def _volume(self, volume_id: str) -> SegmentDirectory:
        volume = self._volumes.get(volume_id)
        if volume is None:
            check_volume_id(volume_id)
            if not (self.path / volume_id).is_dir():
                raise VolumeNotFound(f'volume "{volume_id}" does not exist in {self.path}')
            volume = self._volumes[volume_id] = SegmentDirectory(self.path / volume_id)
        return volume

    # -- volumes ----------------------------------------------------------------------------------

    async def create(self, volume_id: str) -> None:
        check_volume_id(volume_id)

        def work() -> None:
            try:
                (self.path / volume_id).mkdir(mode=0o700)
            except FileExistsError:
                raise AlreadyExists(f'volume "{volume_id}" exists in {self.path} already') from None
            fsync_directory(self.path)

        await self._run(f'volume "{volume_id}" could not be created', work)

    async def delete(self, volume_id: str) -> None:
        volume = self._volume(volume_id)

        def work() -> None:
            # The rename takes the volume away at once; what a crash leaves of the rest is swept here, or by `sweep`.
            try:
                (self.path / volume_id).rename(self.path / f".deleted-{secrets.token_hex(8)}")
            except FileNotFoundError:
                raise VolumeNotFound(f'volume "{volume_id}" does not exist in {self.path}') from None
            fsync_directory(self.path)
            self._sweep()

        await self._run(f'volume "{volume_id}" could not be deleted', work)
        self._volumes.pop(volume_id, None)
        volume.close()
        self._let_go_of_manifest(volume_id)

    async def sweep(self) -> None:
        await self._run(f"what is left of deleted volumes in {self.path} could not be removed", self._sweep)

    def _sweep(self) -> None:
        for left in self.path.glob(".deleted-*"):
            # Several may be doing this at once.
            shutil.rmtree(left, ignore_errors=True)

    async def list(self) -> list[str]:
        def work() -> list[str]:
            return sorted(item.name for item in self.path.iterdir() if item.is_dir() and item.name[0] != ".")

        return await self._run(f"the volumes in {self.path} could not be listed", work)

    async def used_size(self, volume_id: str) -> int:
        return await self._run(f'the size of volume "{volume_id}" is not known', self._volume(volume_id).used_size)

    # -- bytes ------------------------------------------------------------------------------------

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        try:
            return self._volume(volume_id).read_cached(size, offset)
        except OSError:
            # `read` comes upon the same error, and reports it.
            return None

    def read_blocking(self, volume_id: str, size: int, offset: int) -> Buffer:
        check_range(size, offset)
        try:
            return self._volume(volume_id).read(size, offset)
        except OSError as error:
            raise translate(error, f'{size} bytes at {offset} of volume "{volume_id}" could not be read') from error

    def release(self, volume_id: str) -> None:
        if volume := self._volumes.get(volume_id):
            volume.close_idle()
        self._let_go_of_manifest(volume_id)

    def capacity(self, volume_id: str) -> Capacity | None:
        try:
            disk = os.statvfs(self.path)
        except OSError:
            return None
        return Capacity(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize)

    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        check_range(size, offset)
        volume = self._volume(volume_id)
        return await self._run(
            f'{size} bytes at {offset} of volume "{volume_id}" could not be read', lambda: volume.read(size, offset)
        )

    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        view = flat(data)
        check_range(len(view), offset)
        volume = self._volume(volume_id)
        await self._run(
            f'{len(view)} bytes at {offset} of volume "{volume_id}" could not be written',
            lambda: volume.write(view, offset),
        )
        return len(view)

    def start_write(self, volume_id: str, data: Buffer, offset: int, *, alone: bool = False) -> Started | None:
        return self._volume(volume_id).start_write(flat(data), offset, self._overwriter, alone=alone)

    async def flush(self, volume_id: str) -> None:
        volume = self._volume(volume_id)
        if not volume.clean:
            await self._run(f'volume "{volume_id}" could not be flushed', volume.flush)

    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        check_range(length, offset)
        volume = self._volume(volume_id)
        if length:
            await self._run(
                f'space of volume "{volume_id}" could not be given back', lambda: volume.discard(length, offset)
            )

    # -- manifest ---------------------------------------------------------------------------------

    def _manifest(self, volume_id: str) -> ManifestFile:
        found = self._manifests.pop(volume_id, None) or ManifestFile(self._volume(volume_id).path)
        self._manifests[volume_id] = found
        if len(self._manifests) > _MANIFESTS:
            self._let_go_of_manifest(next(iter(self._manifests)))
        return found

    def _let_go_of_manifest(self, volume_id: str) -> None:
        if manifest := self._manifests.pop(volume_id, None):
            manifest.close()

    async def get_manifest(self, volume_id: str) -> Manifest:
        # Read on the loop: a few hundred bytes that every flush looks at, so they are in the page cache.
        manifest = self._manifest(volume_id)
        try:
            return manifest.read()
        except OSError as error:
            raise translate(error, f'the manifest of volume "{volume_id}" could not be read') from error

    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        manifest, path, body = self._manifest(volume_id), self._volume(volume_id).path, bytes(data)

        def work() -> str:
            try:
                lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                raise VolumeNotFound(f'volume "{volume_id}" does not exist in {self.path}') from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                return manifest.replace(body, if_version)
            finally:
                os.close(lock)

        return await self._run(f'the manifest of volume "{volume_id}" could not be written', work)

    async def aclose(self) -> None:
        for volume in self._volumes.values():
            volume.close()
        self._volumes.clear()
        for volume_id in list(self._manifests):
            self._let_go_of_manifest(volume_id)
        self._overwriter.close()
