"""The process beside a server, which makes the calls that wait for the server."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.mount.beside import Beside
from fusevol.mount.syscalls import UnmountFlag
from tests.mount.servers import until


@pytest.fixture
def beside() -> Iterator[Beside]:
    made = Beside()
    yield made
    made.close()


def pid_of(beside: Beside) -> int:
    assert beside._process is not None
    return beside._process.pid


def test_what_it_is_told_is_done_or_fails_as_the_call_does(beside: Beside, tmp_path: Path) -> None:
    beside.sync(tmp_path)
    odd = tmp_path / os.fsdecode(b"\xff \n'\"")
    odd.mkdir()
    beside.sync(odd)
    with pytest.raises(FileNotFoundError, match="missing"):
        beside.sync(tmp_path / "missing")
    with pytest.raises(OSError, match=str(tmp_path)) as raised:
        beside.umount2(tmp_path, UnmountFlag.NOFOLLOW)
    assert raised.value.errno == errno.EINVAL


def test_a_directory_that_is_held_is_synced_though_another_is_there_by_now(beside: Beside, tmp_path: Path) -> None:
    path = tmp_path / "held"
    path.mkdir()
    beside.hold(path, os.stat(path).st_dev)
    held = {os.readlink(fd) for fd in Path(f"/proc/{pid_of(beside)}/fd").iterdir()}
    assert os.fspath(path) in held
    path.rmdir()
    beside.sync_held(path)
    with pytest.raises(OSError, match="Stale"):
        beside.sync_held(path)


def test_a_directory_on_another_device_is_not_taken_for_the_one_that_is_meant(beside: Beside, tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    beside.sync(tmp_path, device)
    with pytest.raises(OSError, match="Stale"):
        beside.sync(Path("/proc"), device)
    with pytest.raises(OSError, match="Stale"):
        beside.hold(Path("/proc"), device)
    with pytest.raises(OSError, match="Stale"):
        beside.size(Path("/proc"), device, 1)


def test_it_is_started_when_needed_and_anew_where_it_was_killed(beside: Beside, tmp_path: Path) -> None:
    assert beside._process is None
    beside.sync(tmp_path)
    first = pid_of(beside)
    os.kill(first, signal.SIGKILL)
    beside.sync(tmp_path)
    assert pid_of(beside) != first
    os.kill(pid_of(beside), signal.SIGTERM)  # as to all processes of a service that is stopped
    before = pid_of(beside)
    beside.sync(tmp_path)
    assert pid_of(beside) == before
    second = pid_of(beside)
    beside.close()
    until(lambda: not Path(f"/proc/{second}").exists(), "it to be gone")
    beside.close()
    beside.sync(tmp_path)


def test_it_has_nothing_open_that_its_starter_has(beside: Beside, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w"):
        beside.sync(tmp_path)
        inherited = sorted(int(fd.name) for fd in Path(f"/proc/{pid_of(beside)}/fd").iterdir())
    assert inherited == [0, 1, 2]


def test_one_that_was_stopped_goes_on(beside: Beside, tmp_path: Path) -> None:
    beside.sync(tmp_path)
    os.kill(pid_of(beside), signal.SIGSTOP)
    state = Path(f"/proc/{pid_of(beside)}/stat")
    until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "it to stop")
    beside.sync(tmp_path)


@pytest.mark.parametrize("why", ["it ends at once", "too many processes", "Python is nowhere"])
def test_where_no_process_can_be_had_the_calls_are_made_here(
    beside: Beside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    def start(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, why)

    if why == "it ends at once":
        monkeypatch.setattr("fusevol.mount.beside._PROGRAM", os.fspath(tmp_path / "moved"))
    elif why == "too many processes":
        monkeypatch.setattr(subprocess, "Popen", start)
    else:
        monkeypatch.setattr(sys, "executable", None)
    beside.sync(tmp_path)
    assert "no process beside the server" in caplog.text
    with pytest.raises(OSError, match="Invalid") as raised:
        beside.umount2(tmp_path, UnmountFlag.NOFOLLOW)
    assert raised.value.errno == errno.EINVAL
