"""Real mounts in processes of their own, with time limits, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fusevol.mount import syscalls
from fusevol.mount.kernel import abort
from fusevol.mount.mounttable import find

MEMORYFS = Path(__file__).with_name("memoryfs.py")
ROOT = Path(__file__).parents[2]
LIMIT = 15.0

T = TypeVar("T")

#: What to begin a command with to run it without rights.
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
needs_setpriv = pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
needs_fuse = pytest.mark.skipif(
    not os.path.exists("/dev/fuse") or os.geteuid() != 0, reason="needs /dev/fuse and the right to mount"
)


def until(condition: Callable[[], T], what: str, limit: float = LIMIT) -> T:
    """Wait for something to become true, and fail when it does not."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {limit:g} s for {what}"
        time.sleep(0.005)
    return value


class Server:
    """A running memoryfs.py."""

    def __init__(self, process: subprocess.Popen[bytes], mountpoint: Path, result: Path) -> None:
        self.process = process
        self.mountpoint = mountpoint
        self.result = result

    @property
    def notes(self) -> dict[str, Any]:
        """The requests so far, as the filesystem counted them."""
        return dict(self._read(".requests"))

    @property
    def ticks(self) -> tuple[int, float]:
        """How often its background task ran, and the longest pause in seconds."""
        count, gap = self._read(".ticks")
        return count, gap

    def _read(self, name: str) -> Any:
        """A special file, in one request: it may be another by the next."""
        fd = os.open(self.mountpoint / name, os.O_RDONLY)
        try:
            return json.loads(os.read(fd, 1 << 20))
        finally:
            os.close(fd)

    def unmount(self) -> None:
        subprocess.run(["umount", "--", self.mountpoint], check=True, timeout=LIMIT)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def end(self) -> dict[str, Any]:
        """Wait until it has ended, and return why and what it served."""
        self.process.wait(LIMIT)
        return dict(json.loads(self.result.read_bytes()))


def clean(mountpoint: Path) -> None:
    """Whatever became of a mount of a test: no process waits for it any more, and it is gone."""
    while find(mountpoint) is not None:
        with contextlib.suppress(Exception):
            abort(mountpoint)
        with contextlib.suppress(OSError):
            syscalls.umount2(mountpoint, syscalls.UnmountFlag.DETACH)


@contextlib.contextmanager
def serving(
    directory: Path,
    *arguments: str,
    name: str = "mnt",
    mountpoint: Path | None = None,
    wait: bool = True,
    prefix: tuple[str, ...] = (),
    tick: bool = False,
    attributes: dict[str, object] | None = None,
    **options: object,
) -> Iterator[Server]:
    """A mount of the filesystem in memory; without `wait` it need not become ready."""
    if mountpoint is None:
        mountpoint = directory / name
        mountpoint.mkdir(exist_ok=True)
    result = directory / "result.json"
    for old in (result, result.with_suffix(".ready")):
        old.unlink(missing_ok=True)
    command = [*prefix, sys.executable, str(MEMORYFS), os.fspath(mountpoint), str(result), *arguments]
    command += [f"--option={key}={json.dumps(value)}" for key, value in options.items()]
    command += [f"--attribute={key}={json.dumps(value)}" for key, value in (attributes or {}).items()]
    if tick:
        command.append("--tick")
    process = subprocess.Popen(command, cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        if wait:
            until(lambda: result.with_suffix(".ready").exists() or process.poll() is not None, "the mount to be ready")
            assert process.poll() is None, result.read_text() if result.exists() else "it died"
        yield Server(process, mountpoint, result)
    finally:
        process.kill()
        process.wait(LIMIT)
        clean(mountpoint)


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that user nobody can reach and owns, for tests as another user."""
    directory = Path("/tmp", f"fusevol-test-{os.getpid()}-{time.monotonic_ns()}")
    directory.mkdir()
    os.chown(directory, 65534, 65534)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def device_for_all() -> Iterator[None]:
    """Let everybody open /dev/fuse, as the udev rules of distributions do; small systems have no udev."""
    before = os.stat("/dev/fuse").st_mode & 0o777
    os.chmod("/dev/fuse", 0o666)
    try:
        yield
    finally:
        os.chmod("/dev/fuse", before)
