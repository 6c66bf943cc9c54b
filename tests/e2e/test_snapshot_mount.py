"""Snapshots mounted by themselves, with `fusevol mount NAME@SNAP PATH`."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fusevol.mount.mounttable import find
from tests.e2e.harness import FUSEVOL, Bench, Volume, raised, until


def spot(volume: Volume, name: str) -> Path:
    path = volume.bench.place / "mnt" / name
    path.mkdir()
    return path


@pytest.fixture
def one(volume: Volume) -> Volume:
    """A mounted volume with a snapshot `one` that differs from what is there now."""
    tree = volume.path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"1" * 3_000_000)
    os.symlink("file", tree / "link")
    os.setxattr(tree / "file", "user.a", b"value")
    volume.fusevol("snapshot", "web@one")
    (tree / "file").write_bytes(b"2" * 1000)
    (tree / "link").unlink()
    return volume


def holds_one(path: Path) -> bool:
    tree = path / "tree"
    return (
        (tree / "file").read_bytes() == b"1" * 3_000_000
        and os.readlink(tree / "link") == "file"
        and os.getxattr(tree / "file", "user.a") == b"value"
        and sorted(os.listdir(tree)) == ["file", "link"]
    )


def test_a_snapshot_is_mounted_while_its_volume_is_written_and_while_it_is_not_mounted(one: Volume) -> None:
    here, there = spot(one, "here"), spot(one, "there")
    assert one.fusevol("mount", "web@one", here) == f'snapshot "web@one" is mounted on {here}\n'
    assert holds_one(here)
    for number in range(20):
        (one.path / "tree" / "file").write_bytes(os.urandom(500_000))
        one.command("snapshot", f"more-{number}")
    assert holds_one(here)
    one.umount()
    assert holds_one(here)
    one.fusevol("mount", "web@one", there)
    assert holds_one(there)
    one.mount()
    (one.path / "new").write_text("x")
    assert one.fusevol("umount", here) == 'snapshot "web@one" is unmounted\n'
    assert find(here) is None
    assert holds_one(there)
    one.fusevol("umount", "web@one")
    assert find(there) is None
    assert not [pid for pid in one.bench.servers() if pid != one.server]
    one.umount()
    one.check()


def test_a_mounted_snapshot_cannot_be_changed_and_has_no_control_files(one: Volume) -> None:
    path = spot(one, "old")
    one.fusevol("mount", "web@one", path, "-o", "nodev")
    calls: list[Callable[[], object]] = [
        lambda: (path / "tree" / "file").write_bytes(b""),
        lambda: (path / "new").mkdir(),
        lambda: (path / "tree" / "link").unlink(),
        lambda: os.chmod(path / "tree", 0o777),
        lambda: os.setxattr(path / "tree", "user.b", b""),
        lambda: os.setxattr(path, "user.fusevol.snapshot", b"x"),
    ]
    for call in calls:
        assert raised(call) == "EROFS"
    assert raised(lambda: os.stat(path / ".fusevol")) == "ENOENT"
    assert raised(lambda: os.getxattr(path, "user.fusevol.name")) == "ENODATA"
    fd = os.open(path / "tree" / "file", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert os.statvfs(path).f_bfree == 0
    for option in ("rw", "control=rw"):
        assert "a snapshot is mounted read-only" in one.refused("mount", "web@one", path, "-o", option)
    assert "not known" in one.refused("mount", "web@one", path, "-o", "fast")


def test_several_snapshots_are_mounted_at_once_and_shown(one: Volume) -> None:
    one.fusevol("snapshot", "web@two")
    paths = [spot(one, f"s{number}") for number in range(3)]
    for name, path in zip(("one", "one", "two"), paths, strict=True):
        one.fusevol("mount", f"web@{name}", path)
    assert holds_one(paths[0])
    assert holds_one(paths[1])
    assert (paths[2] / "tree" / "file").read_bytes() == b"2" * 1000
    shown = json.loads(one.fusevol("inspect", "web@one", "--json"))
    assert sorted(shown["mounted_on"]) == [str(path) for path in paths[:2]]
    assert str(paths[2]) in one.fusevol("snapshots", "web")
    assert json.loads(one.fusevol("status", "--json"))["mounted"] == 4
    assert "is mounted on 2 paths" in one.refused("umount", "web@one")
    # Where it is mounted already that is no error.
    one.fusevol("mount", "web@one", paths[0])
    assert f'"{paths[2]}" is a mount already' in one.refused("mount", "web@one", paths[2])
    for path in paths:
        one.fusevol("umount", path)
    assert json.loads(one.fusevol("inspect", "web@one", "--json"))["mounted_on"] == []
    assert "not mounted" in one.refused("umount", "web@one")


@pytest.mark.parametrize("mounted", [True, False])
def test_a_mounted_snapshot_is_not_deleted_nor_is_its_volume(one: Volume, mounted: bool) -> None:
    path = spot(one, "old")
    one.fusevol("mount", "web@one", path)
    if mounted:
        assert raised(lambda: one.command("delete-snapshot", "one")) == "EBUSY"
    else:
        one.umount()
        for words in (["rm", "web"], ["rm", "--snapshots", "web"]):
            said = one.refused(*words)
            assert f'snapshot "web@one" is mounted on {path}, and cannot be deleted' in said
    said = one.refused("rm", "web@one")
    assert f'snapshot "web@one" is mounted on {path}, and cannot be deleted' in said
    assert f"hint: unmount it first: fusevol umount {path}" in said
    assert holds_one(path)
    one.fusevol("umount", path)
    one.fusevol("rm", "web@one")
    assert "no snapshot" in one.refused("mount", "web@one", path)


def test_a_snapshot_whose_server_was_killed_is_not_mounted_any_more(one: Volume) -> None:
    path = spot(one, "old")
    one.fusevol("mount", "web@one", path)
    (server,) = (pid for pid in one.bench.servers() if pid != one.server)
    os.kill(server, signal.SIGKILL)
    until(lambda: json.loads(one.fusevol("inspect", "web@one", "--json"))["mounted_on"] == [], "nobody to serve it")
    assert "is gone" in one.fusevol("status")
    one.fusevol("mount", "web@one", path)
    assert holds_one(path)
    one.fusevol("umount", path)
    one.fusevol("rm", "web@one")


def test_a_snapshot_is_mounted_in_the_foreground_and_unmounted_by_sigterm(one: Volume, bench: Bench) -> None:
    path = spot(one, "old")
    process = bench.start(FUSEVOL, "mount", "web@one", path, "--foreground", env={"FUSEVOL_HOME": str(one.home)})
    until(lambda: find(path) is not None and process.poll() is None, "it to be mounted")
    assert holds_one(path)
    process.terminate()
    assert 'snapshot "web@one" is mounted on' in bench.finish(process)
    assert find(path) is None
