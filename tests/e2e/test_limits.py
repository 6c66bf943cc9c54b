"""A full volume and a full disk under it: programs are told, nothing breaks, and with space again it goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume, until

MIB = 1 << 20


def write_synced(path: Path, data: bytes) -> int:
    """Write a file and sync it; the errno it failed with, or 0."""
    fd = -1
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view[:MIB]) :]
        os.fsync(fd)
    except OSError as error:
        return error.errno or errno.EIO
    finally:
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
    return 0


def fill(directory: Path, most: int) -> tuple[dict[Path, bytes], int]:
    """Write synced files of 1 MiB until one fails: those that are there for good, and the errno of that one."""
    kept: dict[Path, bytes] = {}
    for number in range(most):
        data = os.urandom(MIB)
        path = directory / f"kept-{number}"
        if failure := write_synced(path, data):
            with contextlib.suppress(OSError):
                path.unlink()
            return kept, failure
        kept[path] = data
    return kept, 0


def test_a_full_volume_says_so_to_every_program_and_is_usable_again_after_a_deletion(bench: Bench, place: Path) -> None:
    volume = Volume(bench, place / "home").create("--size", "24M").mount()
    root = volume.path
    assert os.statvfs(root).f_blocks * os.statvfs(root).f_frsize == 24 * MIB
    (place / "source").write_bytes(os.urandom(40 * MIB))
    (root / "first").write_bytes(b"1" * MIB)
    for script in (
        f"dd if=/dev/zero of={root}/dd bs=1M count=40 conv=fsync",
        f"dd if=/dev/zero of={root}/dd bs=1M count=40 oflag=direct",
        f"cp {place}/source {root}/copy",
        f"dd if=/dev/zero of={root}/dd bs=4k count=10000",
    ):
        said = bench.shell(f"export LC_ALL=C; {script}", status=1)
        assert "No space left on device" in said, (script, said)
        bench.shell(f"rm -f {root}/dd {root}/copy")
    kept, failure = fill(root, 40)
    assert failure == errno.ENOSPC
    assert 20 <= len(kept) <= 24
    # What needs no data blocks still works.
    (root / "directory").mkdir()
    (root / "first").rename(root / "directory" / "renamed")
    (root / "directory" / "small").write_bytes(b"inline")
    assert volume.told("status")["state"] == "mounted"
    volume.umount()
    volume.check()
    volume.mount()
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert (root / "directory" / "renamed").read_bytes() == b"1" * MIB
    (root / "kept-0").unlink()
    (root / "kept-1").unlink()
    data = os.urandom(3 * MIB // 2)
    assert write_synced(root / "again", data) == 0
    assert (root / "again").read_bytes() == data
    volume.command("size", str(48 * MIB))
    assert write_synced(root / "more", os.urandom(10 * MIB)) == 0
    volume.kill()
    volume.mount()
    assert (root / "again").read_bytes() == data
    volume.check()


def test_pages_that_did_not_fit_are_told_of_once_by_a_snapshot_which_then_goes_through(
    bench: Bench, place: Path
) -> None:
    volume = Volume(bench, place / "home").create("--size", "16M").mount()
    with open(volume.path / "mapped", "w+b") as stream:
        stream.truncate(32 * MIB)
        with mmap.mmap(stream.fileno(), 0) as mapped:
            mapped[:] = b"x" * (32 * MIB)
    (volume.path / "mapped").unlink()
    said = volume.refused("snapshot", "web@s")
    assert "no space left" in said, said
    assert "try again" in said, said
    volume.fusevol("snapshot", "web@s")
    volume.umount()
    volume.check()


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """An ext4 of 64 MiB on a loop device. Listed before `bench`, so that it is unmounted after the volumes on it."""
    image, disk = place / "disk.img", place / "disk"
    disk.mkdir()
    quiet = Bench(place, 60)
    quiet.shell(f"truncate -s 64M {image}; mkfs.ext4 -q -m 0 {image}; mount -o loop {image} {disk}")
    try:
        yield disk
    finally:
        quiet.shell(f"umount {disk} || umount -l {disk}", status=None)


def test_what_is_on_a_disk_that_became_read_only_can_be_read(small_disk: Path, bench: Bench, place: Path) -> None:
    """As ext4 makes it when it finds an error."""
    home = place / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[pools.default]\nbackend = "file"\npath = "{small_disk}/volumes"\n')
    volume = Volume(bench, home).create().mount()
    (volume.path / "file").write_bytes(b"kept")
    volume.command("snapshot", "good")
    volume.umount()
    bench.shell(f"mount -o remount,ro {small_disk}")
    try:
        for word in ("check", "scrub", "usage", "du"):
            volume.fusevol(word, volume.name)
        volume.fusevol("mount", f"{volume.name}@good", volume.path)
        assert (volume.path / "file").read_bytes() == b"kept"
        volume.fusevol("umount", volume.path)
        said = volume.refused("mount", volume.name, volume.path)
        assert "Read-only file system" in said
        assert "fusevol mount VOL@SNAP" in said
    finally:
        bench.shell(f"mount -o remount,rw {small_disk}")
    volume.mount()
    (volume.path / "file").write_bytes(b"written again")
    volume.umount()
    volume.check()


@pytest.mark.limit(90)
def test_a_full_disk_under_a_volume_is_reported_and_once_there_is_space_it_goes_on_by_itself(
    small_disk: Path, bench: Bench
) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(24 * MIB))
    volume = Volume(bench, small_disk / "home").create().mount()
    root = volume.path
    before = os.urandom(2 * MIB)
    assert write_synced(root / "before", before) == 0
    kept, failure = fill(root, 64)
    assert failure == errno.ENOSPC
    assert len(kept) > 4
    # Reading goes on, and everybody can see what is wrong.
    assert (root / "before").read_bytes() == before
    assert all(path.read_bytes() == data for path, data in kept.items())
    said = bench.shell(f"LC_ALL=C dd if=/dev/urandom of={root}/dd bs=1M count=8 conv=fsync", status=1)
    assert "No space left on device" in said
    status = until(lambda: (s := volume.told("status"))["error"] and s, "the status to say so", 30)
    assert (status["state"], status["errno"]) == ("error", errno.ENOSPC), status
    assert "space" in status["error"] or "full" in status["error"], status
    assert "space" in volume.log or "full" in volume.log, volume.log
    noted = until(lambda: volume.inspected()["error"], "the record to say so", 30)
    assert noted == volume.told("status")["error"]
    assert [noted in problem for problem in json.loads(volume.fusevol("status", "--json"))["problems"]] == [True]
    # Space again: nobody has to do anything to the mount.
    filler.unlink()
    until(lambda: volume.told("status")["state"] == "mounted", "the volume to go on", 30)
    until(lambda: not volume.inspected()["error"], "the record to say so", 30)
    after = os.urandom(3 * MIB)
    assert write_synced(root / "after", after) == 0
    volume.kill()
    volume.mount()
    assert (root / "before").read_bytes() == before
    assert (root / "after").read_bytes() == after
    assert all(path.read_bytes() == data for path, data in kept.items())
    volume.check()
    volume.umount()


@pytest.mark.limit(60)
def test_deleting_files_on_a_volume_whose_disk_is_full_makes_room(small_disk: Path, bench: Bench) -> None:
    volume = Volume(bench, small_disk / "home").create().mount()
    kept, failure = fill(volume.path, 80)
    assert failure == errno.ENOSPC
    for path in list(kept)[: len(kept) // 2]:
        path.unlink()
        del kept[path]
    data = os.urandom(4 * MIB)
    until(lambda: write_synced(volume.path / "new", data) == 0, "room for a new file", 5)
    assert (volume.path / "new").read_bytes() == data
    assert all(path.read_bytes() == content for path, content in kept.items())
    volume.umount()
    volume.check()


@pytest.mark.slow
@pytest.mark.limit(90)
def test_unmounting_on_a_full_disk_ends_in_good_time_and_loses_nothing_synced(small_disk: Path, bench: Bench) -> None:
    filler = small_disk / "filler"
    filler.write_bytes(bytes(16 * MIB))
    volume = Volume(bench, small_disk / "home").create().mount()
    kept, failure = fill(volume.path, 80)
    assert failure == errno.ENOSPC
    # Told at close(2), as nothing of it can be written out.
    with pytest.raises(OSError, match="No space left"):
        (volume.path / "unsynced").write_bytes(os.urandom(8 * MIB))
    print(volume.fusevol("umount", volume.name, status=None))
    until(lambda: not bench.servers(), "the server to end")
    assert not volume.mounted
    filler.unlink()
    volume.mount()
    assert all(path.read_bytes() == data for path, data in kept.items())
    volume.umount()
    volume.check()
