"""kill -9 of the process that serves a mount: what fsync acknowledged is there when it is mounted again."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.crashing import Rounds
from tests.e2e.harness import Bench, Volume, seed, until


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
