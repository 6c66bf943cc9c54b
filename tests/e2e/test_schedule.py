"""Snapshots by schedule, and bounds on I/O, of real mounts; set, shown and taken back by the command."""

from __future__ import annotations

import json
import mmap
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fusevol.mount.mounttable import find
from tests.e2e.harness import Volume, until
from tests.e2e.later import mount_later

DAY = 86400
MB = 1_000_000
#: Aligned, as direct I/O wants it.
PAGE = mmap.mmap(-1, 4096)


@pytest.fixture
def ahead(place: Path) -> Path:
    """The file that says how far ahead the clock of a mount is."""
    path = place / "ahead"
    path.write_text("0")
    return path


def pass_time(volume: Volume, ahead: Path, seconds: float) -> None:
    """Put the mount's clock forward, and have it look at it."""
    ahead.with_suffix(".new").write_text(str(float(ahead.read_text()) + seconds))
    ahead.with_suffix(".new").replace(ahead)
    volume.command("settings", "1")


def taken(volume: Volume) -> list[str]:
    """The snapshots that the schedule took, as the command shows them."""
    found = json.loads(volume.fusevol("snapshots", volume.name, "--json"))
    return [snapshot["name"] for snapshot in found if snapshot["schedule"]]


def recorded(volume: Volume) -> int:
    """How many snapshots are on record."""
    return int(volume.inspected()["snapshots"])


@pytest.mark.slow
def test_days_of_a_mounted_volume_are_kept_as_its_schedule_says(created: Volume, ahead: Path) -> None:
    created.fusevol("set", created.name, "--snap-schedule", "daily=03:00,2")
    mount_later(created, ahead)
    (created.path / "file").write_text("of the first day")
    created.fusevol("snapshot", f"{created.name}@mine")
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:00Z", created.told("status")["schedule"]["next"])
    for day in range(1, 4):
        pass_time(created, ahead, DAY)
        until(lambda day=day: len(taken(created)) == min(day, 2) and recorded(created) == min(day, 2) + 1, "a snapshot")  # type: ignore[misc]
        first = created.told("status")["schedule"]["last"]
        assert (created.path / ".fusevol/snapshots" / first / "file").exists()
        (created.path / "file").write_text(f"of day {day}")
    names = taken(created)
    assert all(re.fullmatch(r"daily-20\d{6}-\d{4}", name) for name in names)
    inside = created.path / ".fusevol" / "snapshots"
    assert [(inside / name / "file").read_text() for name in names] == ["of day 1", "of day 2"]
    assert sorted(os.listdir(inside)) == sorted(["mine", *names])
    [shown] = [line for line in created.fusevol("snapshots", created.name).splitlines() if names[0] in line]
    assert " yes " in shown
    pass_time(created, ahead, DAY)
    until(lambda: taken(created)[0] == names[1], "the next day's")
    before = taken(created)
    pass_time(created, ahead, DAY)
    created.command("flush", "1")
    # Nothing was written that day; what follows is done after it.
    created.fusevol("set", created.name, "--snap-interval", "1")
    pass_time(created, ahead, 120)
    until(lambda: len(taken(created)) == 3, "the first by interval")
    assert taken(created)[:2] == before
    created.umount()
    created.check()


def test_what_was_due_while_a_volume_was_not_mounted_is_taken_when_it_is(created: Volume, ahead: Path) -> None:
    created.fusevol("set", created.name, "--snap-schedule", "weekly=Sunday@03:00")
    mount_later(created, ahead)
    (created.path / "file").write_text("text")
    assert taken(created) == []
    created.kill()
    ahead.write_text(str(14 * DAY))
    created.fusevol("ls")
    mount_after_crash(created, ahead)
    until(lambda: len(taken(created)) == 1, "the one that is made up for")
    created.umount()
    ahead.write_text(str(28 * DAY))
    mount_later(created, ahead)
    created.fusevol("set", created.name, "--snap-interval", "1")
    (created.path / "other").write_text("text")
    pass_time(created, ahead, 120)
    until(lambda: len(taken(created)) == 2, "the one by interval")
    # Mounting alone changes nothing, so there was nothing to be taken for that week.
    assert [name.partition("-")[0] for name in taken(created)] == ["weekly", "interval"]


def mount_after_crash(volume: Volume, ahead: Path) -> None:
    """Take the dead mount away, and mount anew."""
    volume.fusevol("mount", volume.name, volume.path)
    volume.umount()
    mount_later(volume, ahead)


def test_a_snapshot_that_cannot_be_taken_is_shown_and_taken_later(created: Volume, ahead: Path) -> None:
    created.fusevol("set", created.name, "--snap-interval", "1")
    mount_later(created, ahead)
    (created.path / "file").write_text("text")
    disk = created.home / "volumes"
    full = created.home / "full"
    os.rename(disk, full)
    try:
        pass_time(created, ahead, 120)
        said = until(lambda: created.told("status")["schedule"]["error"], "the failure to be shown")
        assert said.startswith("the interval snapshot of ")
        until(lambda: said in created.inspected()["error"], "the record to say so")
        assert said in created.fusevol("status")
    finally:
        os.rename(full, disk)
    pass_time(created, ahead, 1)
    until(lambda: len(taken(created)) == 1, "the snapshot to be taken after all")
    until(lambda: created.inspected()["error"] == "", "the record to say so")
    assert created.told("status")["schedule"]["error"] is None
    created.umount()
    created.check()


def test_a_throttled_volume_is_no_faster_than_it_may_be(volume: Volume) -> None:
    data = os.urandom(20 * MB)

    def written(name: str) -> float:
        begun = time.monotonic()
        fd = os.open(volume.path / name, os.O_RDWR | os.O_CREAT)
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        return time.monotonic() - begun

    written("before")
    volume.fusevol("set", volume.name, "--throttle", "write_bw_mbytes=10")
    assert volume.told("settings")["io_throttle"]["write_bw_mbytes"] == 10
    # The last request, of 1 MiB at most, is not waited for; and a tenth of a second may come at once.
    least = (len(data) - (1 << 20)) / (10 * MB) - 0.1
    assert written("file") >= least
    before = volume.told("stats")
    assert before["write_ms"] >= least * 1000
    volume.fusevol("set", volume.name, "--throttle", "write_bw_mbytes=0,read_iops=20")
    begun = time.monotonic()
    fd = os.open(volume.path / "file", os.O_RDONLY | os.O_DIRECT)
    with open(fd, "rb", buffering=0) as file:
        for number in range(41):
            os.preadv(file.fileno(), [PAGE], number * 4096)
    assert time.monotonic() - begun >= 40 / 20 - 0.1
    requests = volume.told("stats")["requests"]
    volume.umount()
    volume.mount()
    assert volume.told("settings")["io_throttle"]["read_iops"] == 20
    assert requests > 41
    assert (volume.path / "file").read_bytes() == data


def test_requests_that_a_bound_holds_up_are_shown_and_go_on_when_it_is_lifted(volume: Volume) -> None:
    for number in range(16):
        (volume.path / f"{number}").write_bytes(bytes(4096))
    volume.command("flush", "1")
    volume.fusevol("set", volume.name, "--throttle", "write_iops=1")

    def write(number: int) -> None:
        fd = os.open(volume.path / f"{number}", os.O_WRONLY | os.O_DIRECT)
        try:
            for _ in range(100):
                os.pwrite(fd, PAGE, 0)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=write, args=[number], daemon=True) for number in range(16)]
    for thread in threads:
        thread.start()
    until(lambda: volume.told("active_requests") >= 15, "requests to wait")
    assert [request["operation"] for request in volume.told("requests")].count("write") >= 15
    assert len(os.listdir(volume.path)) == 16
    # Reads have no bound.
    assert len((volume.path / "0").read_bytes()) == 4096
    volume.fusevol("set", volume.name, "--throttle", "none")
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert volume.told("active_requests") == 0


def test_a_throttled_volume_that_is_told_to_end_does_so_with_all_that_was_written(volume: Volume) -> None:
    fd = os.open(volume.path / "file", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, 400 * 8192)
    volume.command("flush", "1")
    volume.fusevol("set", volume.name, "--opt", "write_iops=1")
    for number in range(400):
        # Apart from each other, so that each is a request.
        os.pwrite(fd, b"written", number * 8192)
    server = volume.server
    os.kill(server, signal.SIGTERM)
    until(lambda: not volume.bench.servers(), "the process to end, much sooner than in 400 seconds")
    with suppress(OSError):
        os.close(fd)
    volume.fusevol("set", volume.name, "--throttle", "none")
    volume.mount()
    data = (volume.path / "file").read_bytes()
    assert all(data[number * 8192 :].startswith(b"written") for number in range(400))


def test_a_volume_without_readahead_is_read_as_it_is_asked_for(created: Volume) -> None:
    created.fusevol("set", created.name, "--no-readahead")
    created.mount()
    mounted = find(created.path)
    assert mounted is not None
    setting = Path(f"/sys/class/bdi/0:{mounted.device[1]}/read_ahead_kb")
    assert setting.read_text() == "0\n"
    created.fusevol("set", created.name, "--readahead")
    assert int(setting.read_text()) > 128
    created.fusevol("set", created.name, "--no-readahead")
    assert setting.read_text() == "0\n"


def test_a_snapshot_of_a_throttled_volume_is_read_no_faster_by_itself(volume: Volume, place: Path) -> None:
    (volume.path / "file").write_bytes(os.urandom(4 * MB))
    volume.fusevol("snapshot", f"{volume.name}@old")
    volume.fusevol("set", volume.name, "--throttle", "read_bw_mbytes=2")
    path = place / "old"
    path.mkdir()
    volume.fusevol("mount", f"{volume.name}@old", path)
    begun = time.monotonic()
    assert len((path / "file").read_bytes()) == 4 * MB
    assert time.monotonic() - begun >= (4 * MB - (1 << 20)) / (2 * MB) - 0.1
    volume.fusevol("umount", path)


def test_a_mount_without_control_files_refuses_to_change_and_nothing_is_changed(created: Volume) -> None:
    created.mount("-o", "control=off")
    for words in (("--snap-schedule", "daily=03:00"), ("--throttle", "read_iops=5"), ("--no-readahead",)):
        assert "has no control file settings" in created.refused("set", created.name, *words)
    found = created.inspected()
    assert (found["snapshot_schedule"], found["io_throttle"], found["readahead"]) == ("", None, True)
    created.fusevol("set", created.name, "--group", "shop")
