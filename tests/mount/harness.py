"""A mounted volume in a process of its own, and an ordinary directory of ext4 to compare it with."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.backends.file import FileBackend
from fusevol.fs.check import check_filesystem
from fusevol.log import open_volume
from fusevol.mount.mounttable import mounts
from tests.mount.servers import LIMIT, ROOT, clean, needs_fuse, until
from tests.mount.volumefs import VOLUME

__all__ = ["Volume", "mounted_volume", "needs_fuse", "reference_directory", "work_directory"]

VOLUMEFS = Path(__file__).with_name("volumefs.py")


class Volume:
    """A volume below `directory`, mounted on `mountpoint` while `process` runs."""

    def __init__(self, directory: Path, size: int = 0) -> None:
        self.directory = directory
        self.mountpoint = directory / "mnt"
        self.log = directory / "log"
        self.size = size
        self.process: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        """Start the process that serves it, and wait until it does."""
        self.mountpoint.mkdir(exist_ok=True)
        ready = self.directory / "ready"
        ready.unlink(missing_ok=True)
        command = [
            sys.executable,
            str(VOLUMEFS),
            *map(str, (self.directory / "data", self.mountpoint, ready, self.size)),
        ]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", env=os.environ | {"PYTHONPATH": str(ROOT)}
            )
        self.process = process
        until(lambda: ready.exists() or process.poll() is not None, "the volume to be mounted")
        assert process.poll() is None, self.log.read_text(errors="replace")

    def unmount(self) -> None:
        """Have it unmounted with everything durable, as SIGTERM does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(LIMIT)
        said = self.log.read_text(errors="replace")
        assert (status, said) == (0, ""), f"it ended with {status}, and said: {said}"
        self.process = None

    async def check(self) -> None:
        """Nothing is wrong with the volume, which is not mounted, nor with the filesystem in it."""
        assert self.process is None
        async with open_volume(FileBackend(self.directory / "data"), VOLUME) as volume:
            assert (await check_filesystem(volume, deep=True)).findings == []

    def close(self) -> None:
        """Whatever became of it: no process and no mount is left."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(3)
            self.process.kill()
            self.process.wait(LIMIT)
            self.process = None
        clean(self.mountpoint)


@contextlib.contextmanager
def work_directory(parent: Path | None = None) -> Iterator[Path]:
    """A directory that every user can reach, unlike pytest's own."""
    directory = Path(tempfile.mkdtemp(prefix="fusevol-posix-", dir=parent))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def mounted_volume(size: int = 0) -> Iterator[Volume]:
    """A new volume, mounted; size: its quota in bytes, 0 for none."""
    with work_directory() as directory:
        volume = Volume(directory, size)
        try:
            volume.mount()
            yield volume
        finally:
            volume.close()


@contextlib.contextmanager
def reference_directory(*, own: bool = False) -> Iterator[Path]:
    """An empty directory on ext4: of the temporary directory if that is ext4, else of one made in a file.

    own: in any case one made in a file, which keeps no times of access, as the kernel keeps none with FUSE.
    """
    with work_directory() as directory:
        here = str(os.stat(directory).st_dev)
        devices = {str(os.makedev(*mount.device)): mount.fstype for mount in mounts()}
        if devices.get(here) == "ext4" and not own:
            yield directory
            return
        image, mountpoint = directory / "image", directory / "mnt"
        with image.open("wb") as file:
            file.truncate(512 << 20)
        mountpoint.mkdir()
        for command in (
            ["mkfs.ext4", "-q", "-F", str(image)],
            ["mount", "-o", "loop,acl,noatime", str(image), str(mountpoint)],
        ):
            if shutil.which(command[0]) is None or subprocess.run(command, timeout=60).returncode:
                pytest.skip("no ext4 to compare with")
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", "-l", str(mountpoint)], timeout=LIMIT)
