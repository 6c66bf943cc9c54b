"""Volumes on a block device, without a file system under them: mounted and used, killed, full, and refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.device.tables import verify
from tests.e2e.crashing import Rounds
from tests.e2e.harness import Bench, Volume, seed, until
from tests.e2e.loop import loop_device
from tests.e2e.test_limits import fill


@pytest.fixture
def device(place: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A loop device, as large as the test says."""
    with loop_device(place / "image", getattr(request, "param", 1024)) as loop:
        yield loop


@pytest.fixture
def home(place: Path, device: Path) -> Path:
    """A state directory whose pool is on the device."""
    home = place / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[pools.default]\nbackend = "device"\npath = "{device}"\n')
    return home


# After `home`: its mounts are gone before the device is.
@pytest.fixture
def on_device(home: Path, bench: Bench) -> Volume:
    """A new volume there, mounted."""
    return Volume(bench, home).create().mount()


def free(volume: Volume) -> int:
    [pool] = json.loads(volume.fusevol("pool", "ls", "--json"))
    assert pool["error"] == ""
    return int(pool["free"])


@pytest.mark.limit(200)
def test_volumes_of_one_device_are_used_at_once_and_give_back_all_they_had(
    on_device: Volume, device: Path, home: Path, bench: Bench
) -> None:
    before = free(on_device)
    other = Volume(bench, home, "db").create().mount()
    one = bench.start(
        "fio", "--name=verify", f"--directory={other.path}", "--rw=randwrite", "--bs=4k", "--size=48M", "--fsync=64",
        "--verify=xxhash", "--verify_state_save=0", "--do_verify=1", "--verify_fatal=1", f"--randseed={seed()}",
    )  # fmt: skip
    bench.shell(
        "git init -q repository && cd repository && git config user.email a@b && git config user.name a && "
        "for n in $(seq 40); do head -c 100000 /dev/urandom > file$n; git add . && git commit -qm $n; done && "
        "git gc -q && git fsck --full && git clone -q . ../clone && cd ../clone && git fsck --full",
        cwd=on_device.path,
    )
    (on_device.path / ".fusevol/snapshot").write_text("before\n")
    bench.shell("rm -rf repository clone && echo other > repository", cwd=on_device.path)
    bench.finish(one)
    assert one.returncode == 0
    (on_device.path / ".fusevol/restore").write_text("before\n")
    bench.shell("git fsck --full && git status --porcelain | wc -l | grep -qx 0", cwd=on_device.path / "clone")
    for volume in (on_device, other):
        volume.umount()
        volume.check()
    verify(device)
    on_device.fusevol("clone", "web@before", "copy")
    copy = Volume(bench, home, "copy").mount()
    bench.shell("git fsck --full", cwd=copy.path / "repository")
    copy.umount()
    for name in ("copy", "db"):
        on_device.fusevol("rm", name)
    on_device.fusevol("rm", "--snapshots", "web")
    assert verify(device) == {}
    assert free(on_device) >= before


@pytest.mark.limit(240)
def test_what_fsync_acknowledged_on_a_device_survives_the_death_of_the_server(
    on_device: Volume, place: Path, device: Path
) -> None:
    elsewhere = place / "acknowledged"
    elsewhere.mkdir()
    rounds = Rounds(on_device, elsewhere, seed())
    for _ in range(3):
        done = rounds.run()
        assert done.problems == []
        print(done)
    on_device.umount()
    verify(device)


@pytest.mark.parametrize("device", [96], indirect=True)
def test_a_full_device_is_enospc_and_goes_on_once_something_is_deleted(on_device: Volume, device: Path) -> None:
    kept, code = fill(on_device.path, 200)
    assert code == errno.ENOSPC
    assert len(kept) > 60
    for path, data in kept.items():
        assert path.read_bytes() == data
    for path in list(kept)[:10]:
        path.unlink()
        del kept[path]
    fsync(on_device.path)
    again, code = fill(on_device.path / ".", 5)
    assert code == 0
    assert len(again) == 5
    on_device.umount()
    on_device.check()
    verify(device)
    on_device.mount()
    for path, data in kept.items():
        assert path.read_bytes() == data


@pytest.mark.limit(200)
@pytest.mark.parametrize("device", [300], indirect=True)
def test_what_is_deleted_on_a_full_device_makes_room_for_other_volumes_too(
    on_device: Volume, home: Path, bench: Bench, device: Path
) -> None:
    other, all_of_it = Volume(bench, home, "db").create().mount(), free(on_device)
    for number in range(3):
        kept, code = fill(on_device.path, 400)
        assert code == errno.ENOSPC
        # Volumes have the reserve together.
        assert free(on_device) > all_of_it // 16 * 9 // 10
        with pytest.raises(OSError, match="No space"):
            (other.path / f"new{number}").touch()
        for path in kept:
            path.unlink()
        fsync(on_device.path)
        until(lambda: free(on_device) > all_of_it * 9 // 10, "the space to be given back")
        (other.path / f"new{number}").write_bytes(bytes(1 << 20))
        fsync(other.path / f"new{number}")
    for volume in (on_device, other):
        volume.umount()
        volume.check()
    verify(device)


@pytest.mark.limit(200)
def test_gc_tells_the_device_what_volumes_have_given_back(on_device: Volume, place: Path) -> None:
    (on_device.path / "file").write_bytes(os.urandom(100 << 20))
    fsync(on_device.path / "file")
    (on_device.path / "file").unlink()
    fsync(on_device.path)
    assert (place / "image").stat().st_blocks * 512 > 100 << 20
    on_device.fusevol("gc")
    assert (place / "image").stat().st_blocks * 512 < 20 << 20


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def test_a_device_with_a_file_system_is_refused_and_left_as_it_is(place: Path, device: Path, bench: Bench) -> None:
    bench.run("mkfs.ext4", "-q", device)
    before = device.read_bytes()
    volume = Volume(bench, place / "home")
    said = volume.refused("pool", "add", "disk", "device", f"path={device}")
    assert "is not empty" in said
    assert device.read_bytes() == before


def test_a_device_that_is_mounted_is_refused(place: Path, device: Path, bench: Bench) -> None:
    bench.run("mkfs.ext4", "-q", device)
    (place / "disk").mkdir()
    bench.run("mount", device, place / "disk")
    try:
        # Whatever its first bytes say by now.
        subprocess.run(["dd", "if=/dev/zero", f"of={place}/disk/file", "bs=1M", "count=1", "status=none"], check=True)
        volume = Volume(bench, place / "home")
        assert "is in use: mounted" in volume.refused("pool", "add", "disk", "device", f"path={device}")
    finally:
        bench.run("umount", place / "disk")


_DIES_IN_A_TRANSACTION = """
import os, signal, sys, trio
from fusevol.backends.device import DeviceBackend
from fusevol.backends.device.tablefile import TableVFS, _Table

def write(self, data, offset, original=_Table.xWrite):
    original(self, data, offset)
    self._disk.sync()
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    backend = DeviceBackend(sys.argv[1])
    [volume] = await backend.list()
    _Table.xWrite = write
    await backend.write(volume, bytes(1 << 20), 1 << 40)

trio.run(main)
"""


def test_a_device_that_can_only_be_read_says_what_has_to_be_done_before_it_can(
    on_device: Volume, device: Path, bench: Bench
) -> None:
    (on_device.path / "file").write_text("kept")
    on_device.umount()
    died = subprocess.run([sys.executable, "-c", _DIES_IN_A_TRANSACTION, device], check=False)
    assert died.returncode == -signal.SIGKILL
    subprocess.run(["blockdev", "--setro", device], check=True)
    try:
        said = on_device.refused("check", "web")
        assert "was interrupted, and the device can only be read" in said
        assert "blockdev --setrw" in said
    finally:
        subprocess.run(["blockdev", "--setrw", device], check=True)
    verify(device)
    on_device.mount()
    assert (on_device.path / "file").read_text() == "kept"


def test_an_empty_device_that_can_only_be_read_is_not_made_one_for_volumes(
    home: Path, device: Path, bench: Bench, place: Path
) -> None:
    subprocess.run(["blockdev", "--setro", device], check=True)
    try:
        assert "can only be read" in Volume(bench, home).refused("create", "web")
        another = Volume(bench, place / "another")
        assert "can only be read" in another.refused("pool", "add", "disk", "device", f"path={device}")
    finally:
        subprocess.run(["blockdev", "--setrw", device], check=True)
    assert Volume(bench, home).fusevol("ls", "--json").strip() == "[]"


def test_a_device_that_can_only_be_read_shows_what_there_is(on_device: Volume, device: Path, place: Path) -> None:
    (on_device.path / "file").write_text("kept")
    on_device.fusevol("snapshot", "web@then")
    on_device.umount()
    subprocess.run(["blockdev", "--setro", device], check=True)
    try:
        assert "can only be read" in on_device.refused("mount", "web", on_device.path)
        then = place / "mnt" / "then"
        then.mkdir()
        on_device.fusevol("mount", "web@then", then)
        assert (then / "file").read_text() == "kept"
        on_device.fusevol("umount", then)
        assert "can only be read" in on_device.refused("create", "another")
    finally:
        subprocess.run(["blockdev", "--setrw", device], check=True)
    on_device.mount()
    assert (on_device.path / "file").read_text() == "kept"
