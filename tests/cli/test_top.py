"""fusevol top, on real mounts."""

import contextlib
import json
import os
import pty
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import FUSEVOL, Fusevol

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")


@pytest.fixture
def mount(fusevol: Fusevol, tmp_path: Path) -> Iterator[Path]:
    """Where the volume `web` is mounted; `db` is not."""
    path = tmp_path / "mnt"
    path.mkdir()
    fusevol("create", "web")
    fusevol("create", "db")
    fusevol("mount", "web", str(path))
    yield path
    fusevol("umount", "web")


def test_it_shows_each_mounted_volume_and_no_other(fusevol: Fusevol, mount: Path) -> None:
    (mount / "file").write_bytes(bytes(range(256)) * 4096)
    heading, *rows = fusevol("top", "--interval", "0.1").splitlines()
    assert heading.split() == ["NAME", "IOPS", "READ/S", "WRITE/S", "LATENCY", "USED", "ACTIVE", "UNFLUSHED", "ERROR"]
    assert [row.split()[0] for row in rows] == ["web"]
    assert len(fusevol("top", "db", "--interval", "0.1").splitlines()) == 1


def test_its_intervals_count_what_was_written_in_them(fusevol: Fusevol, mount: Path) -> None:
    process = fusevol.start("top", "web", "--interval", "0.5", "--count", "4", "--json")
    with open(mount / "file", "wb") as file:
        while process.poll() is None:
            file.write(os.urandom(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    decoder, samples = json.JSONDecoder(), []
    while out.strip():
        sample, end = decoder.raw_decode(out.lstrip())
        samples.append(sample)
        out = out.lstrip()[end:]
    assert len(samples) == 4
    for [web] in samples:
        assert (web["name"], web["mounted_on"], web["error"]) == ("web", [str(mount)], "")
        assert web["write_bytes_per_second"] >= web["iops"] > 0
        assert web["interval_ms"] > 0
        assert web["bytes_used"] > 0


def test_an_unknown_volume_is_named(fusevol: Fusevol) -> None:
    assert 'volume "nope" does not exist' in fusevol.fails("top", "nope", "--interval", "0.1")


def test_a_mount_that_tells_nothing_is_shown_with_the_reason(fusevol: Fusevol, mount: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    fusevol("mount", "db", str(other), "-o", "control=off")
    try:
        db, web = fusevol.json("top", "--interval", "0.1")
    finally:
        fusevol("umount", "db")
    assert "has no control file" in db["error"]
    assert web["error"] == ""


def test_on_a_terminal_it_goes_on_until_it_is_interrupted(fusevol: Fusevol, mount: Path) -> None:
    pid, terminal = pty.fork()
    if not pid:
        os.execve(FUSEVOL, [str(FUSEVOL), "top", "--interval", "0.1"], fusevol.environment | {"TERM": "xterm"})
    try:
        shown = b""
        while shown.count(b"LATENCY") < 3:
            assert select.select([terminal], [], [], 60)[0], shown
            shown += os.read(terminal, 65536)
        os.write(terminal, b"\x03")
        # A terminal is closed with its last user, and Linux calls that an error of input.
        with contextlib.suppress(OSError):
            while select.select([terminal], [], [], 60)[0] and os.read(terminal, 65536):
                pass
        assert os.waitpid(pid, 0)[1] == 0
        pid = 0
    finally:
        os.close(terminal)
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
