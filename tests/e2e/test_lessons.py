"""Ways in which other filesystems of this kind have lost data or trust; those that a crash shows are in test_crash."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume, seed

MIB = 1 << 20


def test_what_is_being_read_is_not_given_back_by_overwrites_and_deleted_snapshots(
    volume: Volume, bench: Bench, place: Path
) -> None:
    """Readers of a file, and of a snapshot, while the file is replaced and snapshots go."""
    data = random.Random(seed()).randbytes(4 * MIB)
    (volume.path / "steady").write_bytes(data)
    (volume.path / "churn").write_bytes(data)
    volume.command("snapshot", "kept")
    (place / "expected").write_bytes(data)
    script = place / "reader.py"
    script.write_text(
        "import os, sys\n"
        "wanted = open(sys.argv[1], 'rb').read()\n"
        "while not os.path.exists(sys.argv[1] + '.stop'):\n"
        "    fd = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECT)\n"
        "    found = bytearray()\n"
        "    import mmap\n"
        "    page = mmap.mmap(-1, 1 << 18)\n"
        "    while n := os.preadv(fd, [page], len(found)): found += page[:n]\n"
        "    os.close(fd)\n"
        "    assert found == wanted, 'it changed'\n"
    )
    paths = (volume.path / "steady", volume.path / ".fusevol" / "snapshots" / "kept" / "churn")
    readers = [bench.start(sys.executable, "-W", "ignore", script, place / "expected", path) for path in paths]
    for number in range(25):
        (volume.path / "churn").write_bytes(os.urandom(3 * MIB))
        volume.command("snapshot", f"s{number}")
        if number:
            volume.command("delete-snapshot", f"s{number - 1}")
    (place / "expected.stop").touch()
    for reader in readers:
        said = bench.finish(reader)
        assert reader.returncode == 0, said
    volume.umount()
    volume.check()


@pytest.mark.slow
def test_many_snapshots_can_be_taken_and_deleting_them_gives_all_their_space_back(volume: Volume) -> None:
    """Beyond the limits of 250 and 510 that others have."""
    (volume.path / "kept").write_bytes(os.urandom(MIB))
    volume.command("flush", "1")
    before = volume.told("used_size")
    count = 520
    for number in range(count):
        (volume.path / "changing").write_bytes(b"%d" % number * 2000)
        volume.command("snapshot", f"s{number}")
    assert len(volume.told("volume")["snapshots"]) == count
    inside = volume.path / ".fusevol" / "snapshots"
    for number in (0, 299, count - 1):
        assert (inside / f"s{number}" / "changing").read_bytes() == b"%d" % number * 2000
    for number in range(count):
        volume.command("delete-snapshot", f"s{number}")
    (volume.path / "changing").unlink()
    volume.command("flush", "1")
    volume.umount()
    volume.fusevol("gc", volume.name)
    after = int(volume.fusevol("usage", volume.name, "--json").split('"total":')[1].split(",")[0])
    assert after < before + MIB, (before, after)
    volume.check()


def test_a_small_fsync_in_a_large_file_writes_little(volume: Volume) -> None:
    """Not the whole file again: as the kernel counts what the serving process writes."""
    fd = os.open(volume.path / "large", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, os.urandom(32 * MIB))
        os.fsync(fd)
        before, syncs = _written(volume), 100
        for number in range(syncs):
            os.pwrite(fd, b"x" * 100, number * 300_000)
            os.fdatasync(fd)
        each = (_written(volume) - before) / syncs
    finally:
        os.close(fd)
    print(f"{each:.0f} bytes written for each sync of 100 bytes")
    assert each < 256 * 1024


def _written(volume: Volume) -> int:
    lines = Path(f"/proc/{volume.server}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def test_it_says_what_is_not_durable_yet_and_when_all_of_it_is(volume: Volume) -> None:
    (volume.path / "file").write_bytes(os.urandom(MIB))
    volume.command("flush", "1")
    assert all(value == 0 for value in volume.told("flush").values()), volume.told("flush")
    fd = os.open(volume.path / "direct", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, os.urandom(MIB))
        os.sync()
        # Either it is said to be pending, or it was committed in the meantime.
        assert all(value >= 0 for value in volume.told("flush").values())
        os.fsync(fd)
        assert all(value == 0 for value in volume.told("flush").values()), volume.told("flush")
    finally:
        os.close(fd)


@pytest.mark.slow
def test_a_volume_starts_again_whatever_its_process_left_of_its_state(volume: Volume, bench: Bench) -> None:
    """Nobody ever has to delete state to get a volume mounted: the mount point, the records, the lock."""
    (volume.path / "file").write_text("kept")
    volume.command("flush", "1")
    for _ in range(3):
        volume.kill()
        bench.run("umount", "-l", volume.path)
        volume.mount()
        assert (volume.path / "file").read_text() == "kept"
    volume.umount()
    volume.check()


def test_a_dead_mount_of_one_volume_is_not_in_the_way_of_another(volume: Volume, bench: Bench, place: Path) -> None:
    """Nor is either ever found under the other's path."""
    (volume.path / "file").write_text("web")
    volume.command("flush", "1")
    volume.kill()
    other = Volume(bench, volume.home, "other", volume.path).create().mount()
    assert os.listdir(other.path) == []
    elsewhere = Volume(bench, volume.home, volume.name, place / "elsewhere").mount()
    assert (elsewhere.path / "file").read_text() == "web"
    assert len(bench.mountpoints()) == 2
    for mounted in (other, elsewhere):
        mounted.umount()
        mounted.check()
