"""A volume whose changes are held back: it stays as it is, can be read, and is never held for longer than was said."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fusevol.mount import syscalls
from fusevol.mount.kernel import abort
from tests.e2e.harness import Bench, Volume, raised, until

#: Longer than any test: it has to be ended.
LONG = "90"


@contextmanager
def waiting(volume: Volume, change: Callable[[], object]) -> Iterator[threading.Thread]:
    """A change that is held back; inside, it has reached the mount and is waiting there. Joined on leaving."""
    before = state(volume)["waiting"]
    thread = threading.Thread(target=change, daemon=True)
    thread.start()
    until(lambda: state(volume)["waiting"] > before, "the change to wait")
    try:
        yield thread
    finally:
        thread.join(60)
        assert not thread.is_alive(), "a change is still waiting"


def state(volume: Volume) -> Any:
    return volume.told("quiesce")


def synced(path: Path, text: str) -> None:
    """Write to a file and have that on disk."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def test_while_a_volume_is_quiesced_it_is_read_and_changes_wait(volume: Volume, bench: Bench) -> None:
    root = volume.path
    (root / "dir").mkdir()
    (root / "old").write_text("old")
    os.truncate(root / "old", 2)
    (root / "gone").write_text("")
    assert state(volume) == {"quiesced": False, "seconds_left": 0, "waiting": 0, "ended": None}
    bench.shell(f"echo > {root}/.fusevol/quiesce")
    told = state(volume)
    assert told["quiesced"]
    assert 0 < told["seconds_left"] <= 60
    assert volume.told("flush")["unflushed_bytes"] == 0
    volume.command("quiesce", LONG)
    assert 60 < state(volume)["seconds_left"] <= float(LONG)
    assert volume.told("unquiesce") is not None
    changes: list[Callable[[], object]] = [
        (root / "dir" / "new").mkdir,
        lambda: synced(root / "old", "new"),
        lambda: os.setxattr(root / "gone", "user.a", b"b"),
    ]
    with waiting(volume, changes[0]), waiting(volume, changes[1]), waiting(volume, changes[2]):
        assert {request["operation"] for request in volume.told("requests")} >= {"mkdir", "setxattr"}
        assert volume.told("active_requests") == 3
        assert os.getxattr(root, "user.fusevol.active_requests") == b"3"
        assert json.loads(os.getxattr(root, "user.fusevol.stats"))["io_progress"] == 3
        assert len(volume.told("requests")) == 3
        assert len(json.loads(volume.fusevol("requests", volume.name, "--json"))) == 3
        assert (root / "gone").read_text() == ""
        assert sorted(os.listdir(root)) == ["dir", "gone", "old"]
        assert state(volume)["waiting"] == 3
        assert volume.fusevol("stats", volume.name)
        assert raised(lambda: volume.command("flush", "1")) == "EBUSY"
        assert raised(lambda: volume.command("size", "100000000")) == "EBUSY"
        volume.command("unquiesce", "")
    assert (root / "dir" / "new").is_dir()
    assert (root / "old").read_text() == "new"
    assert os.getxattr(root / "gone", "user.a") == b"b"
    assert state(volume) == {"quiesced": False, "seconds_left": 0, "waiting": 0, "ended": "unquiesced"}
    volume.command("unquiesce", "")
    volume.command("flush", "1")
    volume.check()


@pytest.mark.parametrize("text", ["x", "0", "-1", "3601", "nan", "inf", "1 2"])
def test_what_is_no_number_of_seconds_is_refused(volume: Volume, text: str) -> None:
    assert raised(lambda: volume.command("quiesce", text)) == "EINVAL"
    assert not state(volume)["quiesced"]


def test_what_waits_goes_on_when_the_time_is_over(volume: Volume) -> None:
    volume.command("quiesce", "0.5")
    (volume.path / "late").mkdir()
    assert state(volume)["ended"] == "its time was over"
    assert (volume.path / "late").is_dir()


def test_quiescing_again_prolongs_and_never_shortens(volume: Volume) -> None:
    volume.command("quiesce", "20")
    volume.command("quiesce", LONG)
    assert state(volume)["seconds_left"] > 20
    volume.command("quiesce", "1")
    assert state(volume)["seconds_left"] > 20
    volume.command("unquiesce", "1")


def test_what_was_written_before_is_durable_and_in_a_snapshot_and_what_waits_is_not(volume: Volume) -> None:
    root = volume.path
    (root / "file").write_bytes(b"1" * 300_000)
    (root / "dir").mkdir()
    volume.command("quiesce", LONG)
    with waiting(volume, lambda: synced(root / "file", "2" * 400_000)), waiting(volume, (root / "dir" / "x").mkdir):
        volume.command("snapshot", "quiet")
        volume.fusevol("snapshot", f"{volume.name}@again")
        inside = root / ".fusevol" / "snapshots"
        for name in ("quiet", "again"):
            assert (inside / name / "file").read_bytes() == b"1" * 300_000
            assert os.listdir(inside / name / "dir") == []
        assert raised(lambda: volume.command("restore", "quiet")) == "EBUSY"
        volume.fusevol("clone", f"{volume.name}@again", "copy")
        volume.command("unquiesce", "")
    assert (root / "file").read_text() == "2" * 400_000
    volume.kill()
    volume.mount()
    assert (root / "file").read_text() == "2" * 400_000


def test_after_a_crash_a_quiesced_volume_is_as_it_was_quiesced(volume: Volume) -> None:
    (volume.path / "file").write_text("before")
    volume.command("quiesce", LONG)
    fd = os.open(volume.path / "file", os.O_RDWR)
    os.pwrite(fd, b"after", 0)
    volume.kill()
    with suppress(OSError):
        os.close(fd)
    volume.mount()
    assert (volume.path / "file").read_text() == "before"


def test_a_quiesced_volume_is_unmounted_as_any_other(volume: Volume) -> None:
    (volume.path / "file").write_text("before")
    volume.command("quiesce", LONG)
    volume.umount()
    volume.mount()
    assert (volume.path / "file").read_text() == "before"
    assert not state(volume)["quiesced"]


def test_what_waits_goes_on_when_the_mount_is_taken_out_of_the_tree(volume: Volume) -> None:
    (volume.path / "dir").mkdir()
    (volume.path / "file").write_text("before, and longer")
    fd = os.open(volume.path / "file", os.O_RDWR)
    volume.command("quiesce", LONG)
    os.pwrite(fd, b"after", 0)
    # Closing a file waits until what was written to it has been taken.
    with waiting(volume, (volume.path / "dir" / "new").mkdir), waiting(volume, lambda: os.close(fd)):
        assert raised(lambda: syscalls.umount2(volume.path, syscalls.UnmountFlag(0))) == "EBUSY"
        syscalls.umount2(volume.path, syscalls.UnmountFlag.DETACH)
    until(lambda: not volume.bench.servers(), "the process to end")
    volume.mount()
    assert (volume.path / "file").read_text() == "aftere, and longer"
    assert (volume.path / "dir" / "new").is_dir()


def test_a_quiesced_volume_ends_by_sigterm_with_all_that_was_written(volume: Volume) -> None:
    (volume.path / "file").write_text("before, and longer")
    (volume.path / "dir").mkdir()
    fd = os.open(volume.path / "file", os.O_RDWR)
    volume.command("quiesce", LONG)
    os.pwrite(fd, b"after", 0)
    with waiting(volume, (volume.path / "dir" / "new").mkdir):
        os.kill(volume.server, signal.SIGTERM)
        until(lambda: not volume.mounted, "the mount to end")
    until(lambda: not volume.bench.servers(), "the process to end")
    with suppress(OSError):
        os.close(fd)
    volume.mount()
    assert (volume.path / "file").read_text() == "aftere, and longer"
    assert (volume.path / "dir" / "new").is_dir()


def test_the_process_ends_when_a_quiesced_mount_is_aborted(volume: Volume) -> None:
    (volume.path / "dir").mkdir()
    volume.command("quiesce", LONG)

    def change() -> None:
        assert raised((volume.path / "dir" / "new").mkdir) in ("ECONNABORTED", "ENOTCONN")

    with waiting(volume, change):
        abort(volume.path)
    until(lambda: not volume.bench.servers(), "the process to end")


def test_files_that_are_not_cached_are_read_while_many_written_pages_wait(created: Volume) -> None:
    """The kernel has few requests of its own under way at once, and reading ahead is one of those as well."""
    volume = created.mount()
    cold = os.urandom(3 << 20)
    (volume.path / "cold").write_bytes(cold)
    with (volume.path / "hot").open("wb") as file:
        file.write(bytes(8 << 20))
    volume.umount()
    volume.mount()
    with (volume.path / "hot").open("r+b", buffering=0) as file:
        for number in range(300):
            # Apart from each other, so that each is a request.
            os.pwrite(file.fileno(), b"x" * 4096, number * 3 * 8192)
        volume.command("flush", "1")
        volume.command("quiesce", LONG)
        for number in range(300):
            os.pwrite(file.fileno(), b"y" * 4096, number * 3 * 8192)
        with waiting(volume, lambda: os.fsync(file.fileno())):
            until(lambda: state(volume)["waiting"] >= 100, "many pages to wait")
            assert (volume.path / "cold").read_bytes() == cold
            volume.command("unquiesce", "")
        assert os.pread(file.fileno(), 1, 299 * 3 * 8192) == b"y"


def test_more_changes_than_the_mount_can_hold_end_it_rather_than_the_reading(volume: Volume) -> None:
    for number in range(500):
        (volume.path / f"{number}").mkdir()
    volume.command("quiesce", LONG)
    threads = [threading.Thread(target=(volume.path / f"{number}" / "new").mkdir, daemon=True) for number in range(500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert state(volume)["ended"] == "too many changes waited"
    assert (volume.path / "499" / "new").is_dir()
