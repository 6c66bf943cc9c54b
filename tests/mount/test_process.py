"""Servers in processes of their own: how they start, what is reported, how they end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusevol.errors import BackendError, InvalidArgument, SnapshotNotFound
from fusevol.mount import process
from fusevol.mount.process import spawn
from tests.mount import entries
from tests.mount.servers import LIMIT, ROOT, until


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    return tmp_path / "log" / "server.log"


@contextlib.contextmanager
def spawned(tmp_path: Path, log_file: Path, **arguments: object) -> Iterator[int]:
    pid = spawn(entries.serve, {"directory": str(tmp_path), **arguments}, log_file=log_file, timeout=LIMIT)
    try:
        yield pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def last_line(log_file: Path) -> str:
    return log_file.read_text().splitlines()[-1]


def test_a_server_is_ready_and_on_its_own_when_spawn_returns(tmp_path: Path, log_file: Path) -> None:
    with spawned(tmp_path, log_file) as pid:
        facts = json.loads((tmp_path / "facts").read_text())
        assert facts["pid"] == pid
        assert facts["session"] not in (os.getsid(0), pid)
        assert facts["parent"] != os.getpid()
        assert (facts["cwd"], facts["stdin"]) == ("/", "/dev/null")
        assert os.readlink(f"/proc/{pid}/fd/2") == str(log_file)
        (tmp_path / "end").touch()
        until(lambda: not running(pid), "the server to end")
    assert "printed" in log_file.read_text()
    assert last_line(log_file).endswith("ended: unmounted")


def test_who_has_very_many_files_open_can_start_a_server(tmp_path: Path, log_file: Path) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1100):  # select(2) takes none above 1023
            stack.enter_context(open(os.devnull))
        with spawned(tmp_path, log_file) as pid:
            assert running(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_server_in_good_order(tmp_path: Path, log_file: Path, number: signal.Signals) -> None:
    with spawned(tmp_path, log_file) as pid:
        os.kill(pid, number)
        until(lambda: not running(pid), "the server to end")
    assert (tmp_path / "ended").exists()
    assert last_line(log_file).endswith(f"ended: {number.name}")


def test_a_second_signal_ends_a_server_at_once(tmp_path: Path, log_file: Path) -> None:
    with spawned(tmp_path, log_file, slow=True) as pid:
        os.kill(pid, signal.SIGTERM)
        until((tmp_path / "ending").exists, "the server to begin its end")
        os.kill(pid, signal.SIGTERM)
        until(lambda: not running(pid), "the server to end")
    assert not (tmp_path / "ended").exists()
    assert last_line(log_file).endswith("ended: SIGTERM after SIGTERM, at once")


def test_a_hangup_does_not_end_a_server(tmp_path: Path, log_file: Path) -> None:
    with spawned(tmp_path, log_file) as pid:
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGTERM)
        until(lambda: not running(pid), "the server to end")
    assert last_line(log_file).endswith("ended: SIGTERM")


def test_what_a_server_fails_with_is_raised_here(tmp_path: Path, log_file: Path) -> None:
    with pytest.raises(SnapshotNotFound) as error:
        spawn("tests.mount.entries:fail", {}, log_file=log_file, timeout=LIMIT)
    assert str(error.value) == '"web" has no snapshot "x"'
    assert error.value.hint == "fusevol snapshots web"
    assert last_line(log_file).endswith('ended: "web" has no snapshot "x"')


def test_what_was_not_foreseen_is_one_line_here_and_a_traceback_in_the_log(log_file: Path) -> None:
    with pytest.raises(BackendError, match=r"^ZeroDivisionError: by zero$"):
        spawn(entries.crash, {}, log_file=log_file, timeout=LIMIT)
    assert "Traceback" in log_file.read_text()
    assert last_line(log_file).endswith("ended: ZeroDivisionError: by zero")


def test_what_fails_once_ready_is_in_the_log(log_file: Path) -> None:
    pid = spawn(entries.fail_later, {}, log_file=log_file, timeout=LIMIT)
    until(lambda: not running(pid), "the server to end")
    assert last_line(log_file).endswith("ended: too late")


def test_a_server_that_dies_while_starting_is_reported_with_its_last_words(log_file: Path) -> None:
    log_file.parent.mkdir()
    log_file.write_text("of an earlier run\n")
    with pytest.raises(BackendError, match="died while starting: last words") as error:
        spawn(entries.die, {}, log_file=log_file, timeout=LIMIT, title="web on /mnt")
    assert str(error.value).startswith("web on /mnt died")
    assert error.value.hint == f"see {log_file}"


def test_a_server_that_does_not_become_ready_is_ended(tmp_path: Path, log_file: Path) -> None:
    with pytest.raises(BackendError, match="not ready after 1 seconds"):
        spawn(entries.never, {"directory": str(tmp_path)}, log_file=log_file, timeout=1)
    until(lambda: not running(int((tmp_path / "pid").read_text())), "the server to end")
    assert last_line(log_file).endswith("ended: SIGTERM")


@pytest.mark.parametrize("name", ["tests.mount.entries:nothing", "no_such_module:x", "tests.mount.entries", ""])
def test_an_entry_that_is_not_there_is_an_error(name: str, log_file: Path) -> None:
    with pytest.raises(InvalidArgument, match="nothing to run"):
        spawn(name, {}, log_file=log_file, timeout=LIMIT)


def test_arguments_that_are_not_json_are_an_error(log_file: Path) -> None:
    with pytest.raises(InvalidArgument, match="not JSON"):
        spawn(entries.serve, {"x": object()}, log_file=log_file)
    assert not log_file.exists()


def test_a_log_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="log file"):
        spawn(entries.serve, {}, log_file=tmp_path)


def test_no_descriptors_are_left_open(tmp_path: Path, log_file: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SnapshotNotFound):
        spawn(entries.fail, {}, log_file=log_file, timeout=LIMIT)
    assert os.listdir("/proc/self/fd") == before


FOREGROUND = """
import logging
from tests.mount import entries
from fusevol.mount.process import run
logging.basicConfig(level=logging.INFO)
run(entries.serve, {"directory": %r}, ready=lambda: print("ready", flush=True))
"""


def test_in_the_foreground_a_signal_ends_it_with_status_0(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    with subprocess.Popen(
        [sys.executable, "-c", FOREGROUND % str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        while child.stdout.readline() != b"ready\n":
            pass
        child.send_signal(signal.SIGINT)
        _out, errors = child.communicate(timeout=LIMIT)
        assert child.returncode == 0
        assert errors.decode().splitlines()[-1].endswith("ended: SIGINT")
    assert (tmp_path / "ended").exists()


def test_in_the_foreground_errors_are_raised_as_they_are() -> None:
    with pytest.raises(SnapshotNotFound):
        process.run(entries.fail, {})
