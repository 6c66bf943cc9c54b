"""fallocate(2), and lseek(2) for data and holes: on a mount, as programs use them."""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
from pathlib import Path

import pytest

from tests.e2e.harness import FUSEVOL, Bench, Volume, raised, seed, until
from tests.mount.worlds import fallocate

MIB = 1 << 20
BLOCK = 4096
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 3, 16
NOT_SUPPORTED = errno.errorcode[errno.EOPNOTSUPP]


@pytest.fixture
def limited(bench: Bench, place: Path) -> Volume:
    """A volume of 64 MiB, mounted."""
    return Volume(bench, place / "home").create("--size", "64M").mount()


def free(volume: Volume) -> int:
    found = os.statvfs(volume.path)
    return found.f_bfree * found.f_frsize


def taken(path: Path) -> int:
    return os.stat(path).st_blocks * 512


def data_of(fd: int) -> list[tuple[int, int]]:
    """Where a file has data, as lseek(2) tells: (from, to)."""
    found: list[tuple[int, int]] = []
    at = 0
    while True:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: there is none from here on
            return found
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))


def content(fd: int, size: int) -> bytearray:
    """What is in a file, reading only where it has data."""
    found = bytearray(size)
    for start, end in data_of(fd):
        found[start:end] = os.pread(fd, end - start, start)
    return found


def test_what_is_set_aside_for_a_file_is_not_there_for_others_and_can_be_written_when_all_else_is_full(
    limited: Volume,
) -> None:
    before = free(limited)
    fd = os.open(limited.path / "mine", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 48 * MIB)
    assert os.fstat(fd).st_size == 48 * MIB
    assert free(limited) == before - 48 * MIB
    other = limited.path / "others"
    with other.open("wb", buffering=0) as opened:

        def fill() -> None:
            for _ in range(20):
                opened.write(os.urandom(MIB))
            os.fsync(opened.fileno())

        assert raised(fill) == "ENOSPC"
    data = os.urandom(48 * MIB)
    assert os.pwrite(fd, data, 0) == len(data)
    os.fsync(fd)
    os.close(fd)
    other.unlink()
    limited.umount()
    limited.check()
    limited.mount()
    assert (limited.path / "mine").read_bytes() == data
    (limited.path / "mine").unlink()
    until(lambda: free(limited) == before, "the space to come back")


def test_what_was_set_aside_and_synced_is_so_after_a_crash(limited: Volume) -> None:
    before = free(limited)
    fd = os.open(limited.path / "file", os.O_RDWR | os.O_CREAT)
    fallocate(fd, KEEP_SIZE, 0, 8 * MIB)
    os.pwrite(fd, b"written", MIB)
    os.fsync(fd)
    os.close(fd)
    limited.kill()
    limited.mount()
    file = limited.path / "file"
    assert file.read_bytes() == bytes(MIB) + b"written"
    assert taken(file) == 8 * MIB
    assert free(limited) == before - 8 * MIB
    limited.umount()
    limited.check()


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
def test_more_than_there_is_is_refused_and_leaves_the_file_as_it_was(limited: Volume, mode: int) -> None:
    file = limited.path / "file"
    file.write_bytes(b"x" * 3 * BLOCK)
    fd = os.open(file, os.O_RDWR)
    os.fsync(fd)
    before = free(limited)
    assert raised(lambda: fallocate(fd, mode, BLOCK, 65 * MIB)) == "ENOSPC"
    os.close(fd)
    assert (file.read_bytes(), taken(file), free(limited)) == (b"x" * 3 * BLOCK, 3 * BLOCK, before)


def test_more_than_the_disk_below_has_is_refused_where_the_volume_has_no_size(bench: Bench, place: Path) -> None:
    volume = Volume(bench, place / "home").create().mount()
    disk = os.statvfs(place)
    fd = os.open(volume.path / "file", os.O_RDWR | os.O_CREAT)
    assert raised(lambda: os.posix_fallocate(fd, 0, disk.f_blocks * disk.f_frsize + MIB)) == "ENOSPC"
    assert os.fstat(fd).st_size == 0
    os.close(fd)


def test_a_hole_punched_in_a_file_gives_its_space_back_and_reads_as_zeros(limited: Volume, bench: Bench) -> None:
    file, data = limited.path / "file", os.urandom(16 * MIB)
    file.write_bytes(data)
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    before = free(limited)
    bench.shell("fallocate --punch-hole --offset $((1<<20 | 5)) --length $((12<<20)) file; sync .", cwd=limited.path)
    expected = data[: MIB + 5] + bytes(12 * MIB) + data[13 * MIB + 5 :]
    assert file.read_bytes() == expected
    assert free(limited) == before + 12 * MIB - BLOCK
    limited.umount()
    limited.check()
    limited.mount()
    assert file.read_bytes() == expected
    bench.shell("fallocate --zero-range --length $((2<<20)) file; fallocate --dig-holes file", cwd=limited.path)
    expected = bytes(2 * MIB) + expected[2 * MIB :]
    assert file.read_bytes() == expected
    assert taken(file) == 3 * MIB, "zeros that were digged out take no space"


def test_no_data_is_taken_for_a_hole_while_the_kernel_holds_it_back(limited: Volume) -> None:
    rng = random.Random(seed())
    for number in range(20):
        fd = os.open(limited.path / f"file {number}", os.O_RDWR | os.O_CREAT)
        expected = bytearray()
        for _ in range(rng.randrange(1, 12)):
            at, size = rng.randrange(2 * MIB), rng.choice((1, 100, BLOCK, 70_000))
            action = rng.choice(("write", "write", "write", "punch", "truncate", "sync"))
            if action == "write":
                expected.extend(bytes(max(0, at + size - len(expected))))
                expected[at : at + size] = b"x" * size
                os.pwrite(fd, b"x" * size, at)
            elif action == "punch":
                expected[at : at + size] = bytes(len(expected[at : at + size]))
                fallocate(fd, PUNCH_HOLE, at, size)
            elif action == "truncate":
                expected = bytearray(expected[:at].ljust(at, b"\0"))
                os.ftruncate(fd, at)
            else:
                os.fsync(fd)
            assert content(fd, len(expected)) == expected
        os.close(fd)
        fd = os.open(limited.path / f"file {number}", os.O_RDONLY)
        assert content(fd, len(expected)) == expected
        os.close(fd)


def test_a_sparse_file_has_no_more_data_than_was_written_and_copies_stay_sparse(limited: Volume, bench: Bench) -> None:
    file = limited.path / "sparse"
    with file.open("wb") as opened:
        for at in (0, 5 * MIB, 30 * MIB):
            opened.seek(at)
            opened.write(os.urandom(MIB))
        opened.truncate(1 << 40)
    expected = [(0, MIB), (5 * MIB, 6 * MIB), (30 * MIB, 31 * MIB)]
    limited.command("snapshot", "taken")
    for path in (file, limited.path / ".fusevol/snapshots/taken/sparse"):
        fd = os.open(path, os.O_RDONLY)
        assert data_of(fd) == expected
        assert raised(lambda: os.lseek(fd, 1 << 40, os.SEEK_DATA)) == "ENXIO"  # noqa: B023 -- called at once
        os.close(fd)
    bench.shell("cp sparse copy; tar -cSf tar sparse; mkdir out; tar -xSf tar -C out", cwd=limited.path)
    for copy in (limited.path / "copy", limited.path / "out/sparse"):
        fd, original = os.open(copy, os.O_RDONLY), os.open(file, os.O_RDONLY)
        assert data_of(fd) == expected
        assert all(os.pread(fd, MIB, at) == os.pread(original, MIB, at) for at, _ in expected)
        os.close(fd)
        os.close(original)


def test_many_who_look_for_holes_in_one_file_at_once_all_come_through(limited: Volume) -> None:
    """The kernel holds the file's lock while it asks, and to answer takes asking the kernel."""
    file = limited.path / "file"
    file.write_bytes(b"")
    os.truncate(file, MIB)
    failed: list[object] = []

    def look() -> None:
        try:
            fd = os.open(file, os.O_RDWR)
            for at in range(0, MIB, MIB // 8):
                os.pwrite(fd, b"x", at)
                assert os.lseek(fd, at, os.SEEK_DATA) == at
                os.lseek(fd, at, os.SEEK_HOLE)
            os.close(fd)
        except BaseException as error:  # noqa: BLE001 -- shown below
            failed.append(error)

    looking = [threading.Thread(target=look) for _ in range(150)]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    assert not failed
    limited.umount()


def test_control_files_have_no_holes_and_set_nothing_aside(limited: Volume) -> None:
    fd = os.open(limited.path / ".fusevol/snapshot", os.O_RDWR)
    assert raised(lambda: fallocate(fd, 0, 0, 10)) == NOT_SUPPORTED
    assert raised(lambda: os.lseek(fd, 0, os.SEEK_DATA)) == "ESPIPE"
    os.close(fd)
    fd = os.open(limited.path / "file", os.O_RDWR | os.O_CREAT)
    assert raised(lambda: fallocate(fd, 8, 0, BLOCK)) == NOT_SUPPORTED, "ranges cannot be collapsed"
    assert raised(lambda: fallocate(fd, 0, 0, (1 << 63) - 1)) == "EFBIG"
    os.close(fd)


def test_what_is_read_only_cannot_be_changed_so(limited: Volume) -> None:
    (limited.path / "file").write_bytes(b"x" * BLOCK)
    limited.command("snapshot", "taken")
    fd = os.open(limited.path / ".fusevol/snapshots/taken/file", os.O_RDONLY)
    assert raised(lambda: fallocate(fd, PUNCH_HOLE, 0, BLOCK)) == "EBADF"
    os.close(fd)


def test_a_server_that_may_not_open_files_by_handle_leaves_it_at_taking_all_for_data(bench: Bench, place: Path) -> None:
    """It cannot ask the kernel how long a file is of which it may hold writes back."""
    volume = Volume(bench, place / "home").create()
    without = ("setpriv", "--bounding-set=-dac_read_search")
    bench.run(*without, FUSEVOL, "--home", volume.home, "mount", volume.name, volume.path, cwd=Path("/"))
    fd = os.open(volume.path / "file", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * BLOCK, 8 * MIB)
    os.ftruncate(fd, 16 * MIB)
    assert data_of(fd) == [(0, 16 * MIB)]
    os.posix_fallocate(fd, 0, 4 * MIB)
    assert os.fstat(fd).st_blocks * 512 == 4 * MIB + BLOCK
    os.close(fd)


def test_while_a_file_is_open_to_be_written_all_of_it_is_taken_for_data(limited: Volume) -> None:
    file = limited.path / "file"
    writer = os.open(file, os.O_RDWR | os.O_CREAT)
    os.pwrite(writer, b"x" * BLOCK, MIB)
    os.ftruncate(writer, 4 * MIB)
    os.pwrite(writer, b"x", 6 * MIB)
    reader = os.open(file, os.O_RDONLY)
    assert data_of(reader) == [(0, 6 * MIB + 1)]
    assert raised(lambda: os.lseek(reader, 6 * MIB + 1, os.SEEK_DATA)) == "ENXIO"
    mapped = mmap.mmap(writer, 0)
    os.close(writer)
    mapped[3 * MIB] = 1
    assert data_of(reader) == [(0, 6 * MIB + 1)], "it may be written through the memory that it is mapped to"
    mapped.close()
    expected = [(MIB, MIB + BLOCK), (3 * MIB, 3 * MIB + BLOCK), (6 * MIB, 6 * MIB + 1)]
    until(lambda: data_of(reader) == expected, "the kernel to say that nobody can write any more")
    os.close(reader)


def test_a_mount_with_something_else_on_top_of_it_takes_no_data_for_a_hole(limited: Volume, bench: Bench) -> None:
    """Nor does it ask that for the size of the file: there, another one has its number."""
    other = Volume(bench, limited.home, "other").create().mount()
    (other.path / "first").write_bytes(b"of the other one")
    fd = os.open(limited.path / "first", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8 * MIB)
    bench.run("mount", "--bind", other.path, limited.path)
    try:
        os.pwrite(fd, b"x" * BLOCK, MIB)
        os.pwrite(fd, b"x" * BLOCK, 9 * MIB)
        assert content(fd, 9 * MIB + BLOCK)[MIB : MIB + BLOCK] == b"x" * BLOCK
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 9 * MIB + BLOCK
    finally:
        bench.run("umount", limited.path)
    os.close(fd)


def test_a_mount_that_has_left_the_tree_takes_all_for_data(limited: Volume, bench: Bench) -> None:
    fd = os.open(limited.path / "file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 8 * MIB)
    bench.run("umount", "--lazy", limited.path)
    os.pwrite(fd, b"x" * BLOCK, MIB)
    assert data_of(fd) == [(0, 8 * MIB)]
    os.close(fd)


def test_to_look_for_holes_on_a_full_volume_is_no_error(limited: Volume) -> None:
    full = os.open(limited.path / "full", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(full, 0, free(limited) - MIB)
    fd = os.open(limited.path / "file", os.O_RDWR | os.O_CREAT)
    for _ in range(2):
        os.pwrite(fd, bytes(4 * MIB), 0)
        assert data_of(fd) == [(0, 4 * MIB)]
    assert raised(lambda: os.fsync(fd)) == "ENOSPC"
    for opened in (fd, full):
        os.close(opened)
    os.unlink(limited.path / "full")
    (limited.path / "after").write_bytes(b"it goes on")


def test_what_is_set_aside_beyond_the_end_goes_when_the_file_is_emptied(limited: Volume) -> None:
    before, file = free(limited), limited.path / "file"
    fd = os.open(file, os.O_RDWR | os.O_CREAT)
    fallocate(fd, KEEP_SIZE, 0, 8 * MIB)
    assert free(limited) == before - 8 * MIB
    file.open("wb").close()
    assert free(limited) == before
    fallocate(fd, KEEP_SIZE, 0, 8 * MIB)
    os.ftruncate(fd, 0)
    assert free(limited) == before
    os.close(fd)
