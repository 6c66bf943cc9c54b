"""What files promise beyond read and write: space that comes back, ACLs, holes, and memory that is a file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume, until

MIB = 1 << 20


@pytest.fixture
def limited(bench: Bench, place: Path) -> Volume:
    """A volume of 64 MiB, mounted."""
    return Volume(bench, place / "home").create("--size", "64M").mount()


def free(volume: Volume) -> int:
    found = os.statvfs(volume.path)
    assert found.f_bfree == found.f_bavail
    assert found.f_blocks * found.f_frsize == 64 * MIB
    return found.f_bfree * found.f_frsize


def test_statvfs_counts_what_is_written_and_what_is_deleted(limited: Volume) -> None:
    before, found = free(limited), os.statvfs(limited.path)
    file = limited.path / "file"
    with file.open("wb") as opened:
        opened.write(os.urandom(8 * MIB))
        os.fsync(opened.fileno())
    assert free(limited) == before - 8 * MIB
    os.truncate(file, 2 * MIB)
    assert free(limited) == before - 2 * MIB
    os.truncate(file, 32 * MIB)
    assert free(limited) == before - 2 * MIB, "a hole takes no space"
    assert os.stat(file).st_blocks * 512 == 2 * MIB
    after = os.statvfs(limited.path)
    assert after.f_files - after.f_ffree == found.f_files - found.f_ffree + 1
    limited.umount()
    limited.mount()
    assert free(limited) == before - 2 * MIB
    file.unlink()
    until(lambda: free(limited) == before, "the space to come back")
    after = os.statvfs(limited.path)
    assert after.f_namemax == 255
    until(lambda: os.statvfs(limited.path).f_files - os.statvfs(limited.path).f_ffree
          == found.f_files - found.f_ffree, "the file to be forgotten")  # fmt: skip


def test_a_file_without_a_name_lives_until_it_is_closed_and_then_its_space_comes_back(limited: Volume) -> None:
    before, data = free(limited), os.urandom(8 * MIB)
    fd = os.open(limited.path / "file", os.O_RDWR | os.O_CREAT)
    os.write(fd, data[: 4 * MIB])
    os.fsync(fd)
    os.unlink(limited.path / "file")
    assert os.listdir(limited.path) == []
    os.pwrite(fd, data[4 * MIB :], 4 * MIB)
    os.fsync(fd)
    assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, 8 * MIB)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 8 * MIB, 0) == data
    assert free(limited) == before - 8 * MIB
    os.close(fd)
    until(lambda: free(limited) == before, "the space to come back")


def test_a_file_without_a_name_is_gone_after_a_crash_and_its_space_is_back(limited: Volume) -> None:
    before = free(limited)
    fd = os.open(limited.path / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.write(fd, os.urandom(8 * MIB))
        os.unlink(limited.path / "file")
        os.fsync(fd)
        limited.kill()
    finally:
        with contextlib.suppress(OSError):  # whoever served it is gone
            os.close(fd)
    limited.mount()
    assert os.listdir(limited.path) == []
    until(lambda: free(limited) == before, "the space to come back")
    limited.umount()
    limited.check()


ACLS = """
mkdir tree tree/below; echo text >tree/file; chmod 640 tree/file; chmod 2750 tree/below
setfacl -m u:1234:rw,g:4321:r tree/file
setfacl -m d:u:1234:rwx,d:g:4321:rx,d:m::rx,d:o::- tree/below
(umask 077; mkdir tree/below/inner; echo text >tree/below/new; cp tree/file tree/below/copy; mkfifo tree/below/fifo)
cp --preserve=mode tree/file tree/kept
setfacl -x g:4321 tree/below/inner; setfacl -k tree/below/inner; mkdir tree/below/inner/last
getfacl -n tree/below/copy | setfacl --set-file=- tree/kept
chmod 604 tree/kept; setfacl -n -m u:77:rwx tree/below/new
"""


def test_setfacl_and_getfacl_do_what_they_do_on_ext4_and_bring_all_back(
    volume: Volume, bench: Bench, place: Path
) -> None:
    other = place / "other"
    other.mkdir()

    def listed(directory: Path) -> list[str]:
        """What getfacl says of each file, in the same order everywhere."""
        return sorted(bench.shell("getfacl -n -R tree", cwd=directory).split("\n\n"))

    for directory in (volume.path, other):
        bench.shell(ACLS, cwd=directory)
    before = listed(volume.path)
    assert before == listed(other)
    assert len(before) == 10, "nine files, and the end"
    assert sum("\nuser:1234:rw" in file for file in before) > 4
    bench.shell("getfacl -n -R tree >saved; setfacl -R -b tree; [ $(getfacl -n -R tree | grep -c 1234) = 0 ]; "
                "setfacl --restore=saved", cwd=volume.path)  # fmt: skip
    assert listed(volume.path) == before
    volume.umount()
    volume.check()
    volume.mount()
    assert listed(volume.path) == before
    # And they hold: for somebody who is named, and somebody who is not.
    for user, status in (("1234", 0), ("1235", 1)):
        words = ("setpriv", f"--reuid={user}", "--regid=99", "--clear-groups", "cat", "tree/file")
        bench.run(*words, cwd=volume.path, status=status)


MAP = """
import mmap, os, sys
path, value = sys.argv[1], sys.argv[2].encode()
fd = os.open(path, os.O_RDWR)
with mmap.mmap(fd, 0) as mapped:
    for at in (10, 4090, 700_000, len(mapped) - 100):
        mapped[at : at + 50] = value * 50
        assert os.pread(fd, 50, at) == value * 50, "read(2) sees what is in memory"
        os.pwrite(fd, value * 7, at + 60)
        assert mapped[at + 60 : at + 67] == value * 7, "memory has what was written"
    print("written", flush=True)
    sys.stdin.readline()
    mapped.flush()
    print("durable", flush=True)
    sys.stdin.read()
"""


def test_shared_memory_is_the_same_for_all_processes_and_durable_after_msync(volume: Volume, bench: Bench) -> None:
    file = volume.path / "mapped"
    file.write_bytes(os.urandom(MIB))
    expected = bytearray(file.read_bytes())
    process = bench.start(sys.executable, "-c", MAP, file, "v", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    for at in (10, 4090, 700_000, MIB - 100):
        expected[at : at + 50] = b"v" * 50
        expected[at + 60 : at + 67] = b"v" * 7
    assert file.read_bytes() == expected, "another process sees it before it is durable"
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "durable\n"
    volume.kill()
    process.kill()
    bench.finish(process)
    volume.mount()
    assert file.read_bytes() == expected
    volume.umount()
    volume.check()
