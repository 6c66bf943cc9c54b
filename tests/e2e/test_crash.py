"""kill -9 of the process that serves a mount: what fsync acknowledged is there when it is mounted again."""

from __future__ import annotations

import errno
import os
import platform
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.crashing import Rounds
from tests.e2e.harness import Bench, Volume, seed, until

#: Its number.
SYNCFS = {"x86_64": 306}.get(platform.machine(), 267)


def _synced(path: Path, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def test_what_fsync_acknowledged_survives_the_death_of_the_server(volume: Volume, place: Path) -> None:
    """Writers of several kinds, killed at a random moment, three times; scripts/kill_soak does it as often as told."""
    elsewhere = place / "acknowledged"
    elsewhere.mkdir()
    rounds = Rounds(volume, elsewhere, seed())
    for _ in range(3):
        done = rounds.run()
        assert done.problems == []
        print(done)


def test_the_mountpoint_of_a_dead_server_answers_enotconn_and_the_next_mount_takes_it(volume: Volume) -> None:
    _synced(volume.path / "file", "synced")
    held = os.open(volume.path / "file", os.O_RDWR)
    try:
        volume.kill()
        until(lambda: _errno(lambda: os.stat(volume.path / "file")) == errno.ENOTCONN, "the mount to be dead")
        volume.mount()
        assert (volume.path / "file").read_text() == "synced"
        assert len(volume.bench.mountpoints()) == 1
        assert _errno(lambda: os.fsync(held)) == errno.ENOTCONN
        assert _errno(lambda: os.ftruncate(held, 1)) == errno.ENOTCONN
    finally:
        os.close(held)
    assert (volume.path / "file").read_text() == "synced"
    volume.check()


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize("asks", ["a snapshot", "SIGTERM"])
def test_a_server_that_is_killed_while_the_kernel_writes_out_for_it_leaves_nobody_waiting(
    volume: Volume, asks: str
) -> None:
    """Had a thread of its own asked the kernel for that, it would wait for itself, and hold its mount for ever."""
    _synced(volume.path / "before", "synced")
    fd = os.open(volume.path / "file", os.O_RDWR | os.O_CREAT)
    server = volume.server
    for number in range(256):
        os.pwrite(fd, bytes([number]) * (1 << 20), number << 20)
    asking = threading.Thread(target=lambda: _errno(lambda: volume.command("snapshot", "taken")))
    if asks == "SIGTERM":
        os.kill(server, signal.SIGTERM)
    else:
        asking.start()
    until(lambda: _writing_out(server), "the kernel to write out", limit=10)
    os.kill(server, signal.SIGSTOP)
    assert _writing_out(server), "it was over too soon"
    volume.kill()
    if asking.ident is not None:
        asking.join(20)
        assert not asking.is_alive()
    until(lambda: _errno(lambda: os.stat(volume.path)) in (errno.ENOTCONN, 0), "the mount to be dead", limit=20)
    with suppress(OSError):  # what was held back is gone
        os.close(fd)
    volume.mount()
    assert (volume.path / "before").read_text() == "synced"
    volume.umount()
    volume.check()


def _writing_out(server: int) -> bool:
    """Whether a process that the server has started waits in syncfs(2)."""
    for task in Path(f"/proc/{server}/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(OSError):
                number = Path(f"/proc/{child}/syscall").read_text().split()[0]
                if number == str(SYNCFS):
                    return True
    return False


@pytest.mark.slow
def test_a_dead_mount_can_be_unmounted_and_is_reported_as_what_it_is(volume: Volume) -> None:
    _synced(volume.path / "file", "synced")
    volume.kill()
    listed = volume.fusevol("inspect", volume.name)
    assert "detached" in listed
    volume.fusevol("umount", volume.name, status=None)
    volume.check()
    volume.mount()
    assert (volume.path / "file").read_text() == "synced"


def test_sigterm_makes_everything_durable_without_any_fsync(volume: Volume, bench: Bench) -> None:
    """Unmounting before write-back is complete drops nothing."""
    data = os.urandom(24 << 20)
    (volume.path / "big").write_bytes(data)
    for number in range(500):
        (volume.path / f"small-{number}").write_bytes(b"%d" % number)
    os.kill(volume.server, signal.SIGTERM)
    until(lambda: not bench.servers(), "the server to end")
    assert not volume.mounted
    volume.mount()
    assert (volume.path / "big").read_bytes() == data
    assert [(volume.path / f"small-{n}").read_bytes() for n in range(500)] == [b"%d" % n for n in range(500)]


@pytest.mark.slow
def test_umount_makes_everything_durable_without_any_fsync(volume: Volume) -> None:
    """Neither `umount` of the system nor the command of the volume loses what was written last."""
    for command in ("umount", "fusevol"):
        data = os.urandom(20 << 20)
        (volume.path / command).write_bytes(data)
        if command == "umount":
            volume.bench.run("umount", volume.path)
            until(lambda: not volume.bench.servers(), "the server to end")
        else:
            volume.umount()
        volume.mount()
        assert (volume.path / command).read_bytes() == data
    volume.umount()
    volume.check()


def test_a_file_deleted_while_open_is_gone_and_its_space_back_after_a_crash(volume: Volume) -> None:
    path = volume.path / "open"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, os.urandom(8 << 20))
        os.fsync(fd)
        path.unlink()
        volume.command("flush", "1")
        assert len(os.pread(fd, 10, 0)) == 10
        volume.kill()
    finally:
        os.close(fd)
    volume.mount()
    assert not path.exists()
    assert os.statvfs(volume.path).f_blocks - os.statvfs(volume.path).f_bfree < 100
    volume.check()
