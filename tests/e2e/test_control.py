"""The control directory and the extended attributes of a mounted volume, with programs at work on it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xattr

from tests.e2e.harness import Bench, Volume, as_user, public_directory, raised, until

LOAD = """
import os, sys, time
root, number = sys.argv[1], 0
while True:
    number += 1
    try:
        path = f"{root}/{number % 50}"
        with open(path, "wb") as file: file.write(b"%d" % number * 3000)
        if number % 7 == 0: os.rename(path, path + "-renamed")
        if number % 11 == 0: os.unlink(path)
        os.listdir(root)
    except FileNotFoundError: pass
    except OSError as error:
        # Of a file that a restore took away: ESTALE; close(2) can only say EIO of what it could not write out.
        if error.errno not in (5, 116): raise
        os.makedirs(root, exist_ok=True)
"""


@contextlib.contextmanager
def load(volume: Volume, name: str = "load") -> Iterator[None]:
    """Two programs at work on the volume until they are ended, which must not have failed."""
    (volume.path / name).mkdir(exist_ok=True)
    running = [volume.bench.start(sys.executable, "-c", LOAD, volume.path / name) for _ in range(2)]
    until(lambda: len(os.listdir(volume.path / name)) > 5, "the load")
    yield
    for process in running:
        assert process.poll() is None, volume.bench.finish(process)
        process.terminate()
        volume.bench.finish(process)


@pytest.fixture
def busy(volume: Volume) -> Iterator[Volume]:
    """A mounted volume with programs at work."""
    with load(volume):
        yield volume


# -- snapshots --------------------------------------------------------------------------------------------------


def test_a_snapshot_has_every_write_that_returned_before_it_and_none_after(busy: Volume) -> None:
    """Nothing is synced; some of it is only in the kernel's cache."""
    busy.path.joinpath("data").mkdir()
    for number in range(8):
        with open(busy.path / "data" / "big", "r+b" if number else "wb") as file:
            file.seek(number * 100_000)
            file.write(b"%d" % number * 100_000)
        (busy.path / "data" / f"small-{number}").write_text(f"{number}")
        busy.command("snapshot", f"s{number}")
    for number in range(8):
        inside = busy.path / ".fusevol" / "snapshots" / f"s{number}" / "data"
        assert (inside / "big").read_bytes() == b"".join(b"%d" % n * 100_000 for n in range(number + 1))
        assert sorted(os.listdir(inside)) == ["big", *(f"small-{n}" for n in range(number + 1))]


def test_the_shell_takes_snapshots_and_sees_why_they_fail(busy: Volume, bench: Bench) -> None:
    control = busy.path / ".fusevol"
    bench.shell(f"echo before app=shop tier=1 > {control}/snapshot")
    told = busy.told("snapshot")
    assert (told["name"], told["labels"], told["auto"]) == ("before", {"app": "shop", "tier": "1"}, False)
    for text, said in (
        ("before", "File exists"),
        ("", "Invalid argument"),
        ("a/b", "Invalid argument"),
        ("..", "Invalid argument"),
        ("x" * 300, "Invalid argument"),
        ("ok label", "Invalid argument"),
        ("ok =v", "Invalid argument"),
    ):
        output = bench.shell(f"LC_ALL=C echo '{text}' > {control}/snapshot", status=1)
        assert said in output, (text, output)
    for file, text, said in (
        ("restore", "nothing", "No such file or directory"),
        ("delete-snapshot", "nothing", "No such file or directory"),
        ("size", "much", "Invalid argument"),
        ("size", "4096", "Invalid argument"),
    ):
        assert said in bench.shell(f"LC_ALL=C echo {text} > {control}/{file}", status=1), (file, text)
    assert [snapshot["name"] for snapshot in busy.told("volume")["snapshots"]] == ["before"]
    bench.shell(f"echo before > {control}/delete-snapshot")
    assert busy.told("volume")["snapshots"] == []
    assert os.listdir(control / "snapshots") == []


def test_a_snapshot_in_the_mount_is_right_and_cannot_be_changed(volume: Volume, bench: Bench) -> None:
    tree = volume.path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"1" * 50_000)
    os.symlink("file", tree / "link")
    os.link(tree / "file", tree / "hard")
    os.setxattr(tree / "file", "user.a", b"value")
    (tree / "file").chmod(0o640)
    volume.command("snapshot", "one")
    before = bench.shell(f"cd {tree} && tar --xattrs -cf - . | sha256sum")
    bench.shell(f"rm -rf {tree}/*")
    inside = volume.path / ".fusevol" / "snapshots" / "one" / "tree"
    with load(volume):
        assert bench.shell(f"cd {inside} && tar --xattrs -cf - . | sha256sum") == before
        assert os.stat(inside / "file").st_nlink == 2
        for call in (
            lambda: (inside / "file").write_bytes(b""),
            lambda: (inside / "new").touch(),
            lambda: (inside / "new").mkdir(),
            lambda: (inside / "file").unlink(),
            lambda: (inside / "file").rename(inside / "other"),
            lambda: (inside / "file").chmod(0o777),
            lambda: os.utime(inside / "file"),
            lambda: os.truncate(inside / "file", 0),
            lambda: os.open(inside / "file", os.O_RDONLY | os.O_TRUNC),
            lambda: os.setxattr(inside / "file", "user.b", b""),
            lambda: os.symlink("x", inside / "new"),
            lambda: os.chown(inside / "file", 1, 1),
        ):
            assert raised(call) == "EROFS"
        assert raised(lambda: os.link(inside / "file", inside / "new")) == "EROFS"
        assert raised(lambda: (inside / "file").rename(volume.path / "stolen")) in ("EROFS", "EXDEV")
        assert bench.shell(f"cd {inside} && tar --xattrs -cf - . | sha256sum") == before
    volume.command("delete-snapshot", "one")
    assert raised(lambda: os.stat(inside.parent)) in ("ENOENT", "ESTALE")


# -- restore ----------------------------------------------------------------------------------------------------


def test_a_restore_turns_the_live_tree_back_under_running_programs(busy: Volume) -> None:
    root = busy.path
    (root / "kept").write_text("old")
    (root / "deleted").write_text("was there")
    (root / "dir" / "sub").mkdir(parents=True)
    (root / "dir" / "sub" / "deep").write_text("deep old")
    (root / "was-a-file").write_text("file")
    busy.command("snapshot", "before")
    (root / "kept").write_text("new, and longer")
    (root / "deleted").unlink()
    assert raised(lambda: os.stat(root / "deleted")) == "ENOENT"
    (root / "dir" / "sub" / "deep").write_text("deep new text")
    (root / "dir" / "sub" / "added").write_text("")
    (root / "was-a-file").unlink()
    (root / "was-a-file").mkdir()
    (root / "late").write_text("late")
    held = os.open(root / "kept", os.O_RDWR)
    held_directory = os.open(root / "dir", os.O_RDONLY)
    for path in ("kept", "dir/sub/deep", "late"):
        (root / path).read_text()
    try:
        busy.command("restore", "before")
        # By name: what the snapshot has, without anything the kernel remembered.
        assert (root / "kept").read_text() == "old"
        assert (root / "kept").stat().st_size == 3
        assert (root / "deleted").read_text() == "was there"
        assert raised(lambda: os.stat(root / "late")) == "ENOENT"
        assert (root / "dir" / "sub" / "deep").read_text() == "deep old"
        assert os.listdir(root / "dir" / "sub") == ["deep"]
        assert (root / "was-a-file").read_text() == "file"
        # By what was open: stale.
        assert raised(lambda: _written(held)) == "ESTALE"
        assert raised(lambda: os.fsync(held)) == "ESTALE"
        assert raised(lambda: os.listdir(held_directory)) == "ESTALE"
        assert raised(lambda: os.open("sub", os.O_RDONLY, dir_fd=held_directory)) == "ESTALE"
    finally:
        os.close(held)
        os.close(held_directory)
    told = busy.told("restore")
    assert told["restored"] == "before"
    safety = told["safety_snapshot"]
    inside = root / ".fusevol" / "snapshots" / safety
    assert (inside / "kept").read_text() == "new, and longer"
    assert (inside / "late").read_text() == "late"
    assert not (inside / "deleted").exists()
    busy.command("restore", safety)
    assert (root / "late").read_text() == "late"
    assert (root / "kept").read_text() == "new, and longer"
    assert not (root / "deleted").exists()


def _written(fd: int) -> None:
    """The kernel takes what is written, and only then asks the file system."""
    os.pwrite(fd, b"x", 0)
    os.fsync(fd)


def test_what_was_restored_is_what_is_mounted_next(volume: Volume) -> None:
    (volume.path / "a").write_text("old")
    volume.command("snapshot", "before")
    (volume.path / "a").write_text("new")
    with load(volume):
        for _ in range(3):
            volume.command("restore", "before")
            assert (volume.path / "a").read_text() == "old"
    volume.kill()
    volume.mount()
    assert (volume.path / "a").read_text() == "old"
    volume.check()
    volume.umount()
    volume.check()


@pytest.mark.slow
def test_a_process_whose_directory_was_replaced_gets_an_error_and_a_new_one_works(volume: Volume, bench: Bench) -> None:
    (volume.path / "work").mkdir()
    volume.command("snapshot", "empty")
    shell = bench.start("bash", "-c", f"cd {volume.path}/work; touch a; read; ls; echo status $?; touch b; echo $?",
                        stdin=subprocess.PIPE)  # fmt: skip
    until((volume.path / "work" / "a").exists, "the shell to be there")
    volume.command("restore", "empty")
    said = bench.finish(shell, text="\n")
    assert "Stale file handle" in said, said
    assert os.listdir(volume.path / "work") == []
    bench.shell(f"cd {volume.path}/work && touch c && ls")


# -- what it tells ----------------------------------------------------------------------------------------------


def test_the_files_to_read_tell_what_is_so(busy: Volume) -> None:
    (busy.path / "file").write_bytes(os.urandom(1 << 20))
    busy.command("flush", "1")
    volume, status, stats = busy.told("volume"), busy.told("status"), busy.told("stats")
    inspected = json.loads(busy.fusevol("inspect", busy.name, "--json"))
    assert (volume["id"], volume["name"]) == (inspected["id"], busy.name)
    assert (status["state"], status["error"]) == ("mounted", None)
    assert stats["write_bytes"] >= 1 << 20
    assert stats["requests"] > stats["writes"] > 0
    assert busy.told("used_size") >= 1 << 20
    flushed = busy.told("flush")
    assert all(isinstance(value, int | float) and value >= 0 for value in flushed.values()), flushed
    for file in ("volume", "status", "stats", "used_size", "active_requests"):
        assert raised(lambda file=file: busy.command(file, "1")) == "EACCES"  # type: ignore[misc]
    assert raised(lambda: busy.told("delete-snapshot")) == "EACCES"
    assert raised(lambda: (busy.path / ".fusevol" / "new").touch()) in ("EACCES", "EPERM", "EROFS", "ENOTSUP")
    assert raised(lambda: (busy.path / ".fusevol" / "status").unlink()) in ("EACCES", "EPERM", "EROFS")
    assert raised(lambda: (busy.path / ".fusevol" / "snapshots" / "x").mkdir()) in ("EACCES", "EPERM", "EROFS")
    assert raised(lambda: (busy.path / ".fusevol").rmdir()) in (
        "EACCES",
        "EPERM",
        "EROFS",
        "EBUSY",
        "ENOENT",
        "ENOTEMPTY",
    )
    assert raised(lambda: (busy.path / ".fusevol").rename(busy.path / "other")) in (
        "EACCES",
        "EPERM",
        "EBUSY",
        "ENOENT",
    )
    assert (busy.path / ".fusevol" / "status").exists()


READS = ["volume_id", "name", "size", "used_size", "active_requests", "stats", "state", "snapshots"]


def attribute(path: Path, name: str) -> bytes:
    """The attribute as the package gives it, which asks for its length first: getxattr(2) says what to do then."""
    while True:
        try:
            value: bytes = xattr.getxattr(os.fspath(path), name)
        except OSError as error:
            # It became longer in between, as a counter does.
            if error.errno != errno.ERANGE:
                raise
        else:
            return value


def test_getfattr_and_the_package_xattr_read_the_same_as_the_control_files(volume: Volume, bench: Bench) -> None:
    (volume.path / "file").write_bytes(b"1" * 100_000)
    volume.command("snapshot", "one")
    with load(volume):
        for name in READS:
            said = bench.run("getfattr", "--absolute-names", "--only-values", "-n", f"user.fusevol.{name}", volume.path)
            assert said, name
            assert attribute(volume.path, f"user.fusevol.{name}"), name
    attributes = xattr.xattr(os.fspath(volume.path))
    assert attributes["user.fusevol.volume_id"].decode() == volume.told("volume")["id"]
    assert attributes["user.fusevol.name"].decode() == volume.name
    assert json.loads(attributes["user.fusevol.snapshots"]) == ["one"]
    assert attributes["user.fusevol.state"] == b"mounted"
    assert int(attributes["user.fusevol.used_size"]) == volume.told("used_size")
    assert int(attributes["user.fusevol.size"]) == 0
    assert set(json.loads(attributes["user.fusevol.stats"])) == set(volume.told("stats"))
    assert raised(lambda: os.getxattr(volume.path, "user.fusevol.other")) == "ENODATA"
    assert raised(lambda: os.getxattr(volume.path / "file", "user.fusevol.name")) == "ENODATA"


def test_setfattr_and_the_package_xattr_take_snapshots_and_restore(busy: Volume, bench: Bench) -> None:
    root = busy.path
    (root / "file").write_text("old")
    bench.run("setfattr", "-n", "user.fusevol.snapshot", "-v", "before app=shop", root)
    assert busy.told("snapshot")["labels"] == {"app": "shop"}
    (root / "file").write_text("new")
    xattr.setxattr(os.fspath(root), "user.fusevol.snapshot", b"after")
    bench.run("setfattr", "-n", "user.fusevol.restore", "-v", "before", root)
    assert (root / "file").read_text() == "old"
    xattr.setxattr(os.fspath(root), "user.fusevol.restore", b"after")
    assert (root / "file").read_text() == "new"
    said = bench.run("setfattr", "-n", "user.fusevol.restore", "-v", "nothing", root, status=1)
    assert "No such file or directory" in said
    assert "File exists" in bench.run("setfattr", "-n", "user.fusevol.snapshot", "-v", "before", root, status=1)
    assert raised(lambda: os.setxattr(root, "user.fusevol.name", b"x")) == "EPERM"
    assert raised(lambda: os.setxattr(root, "user.fusevol.snapshot", b"")) == "EINVAL"


def test_nothing_of_it_is_listed_or_copied_by_programs_that_take_all_there_is(volume: Volume, bench: Bench,
                                                                             place: Path) -> None:  # fmt: skip
    root = volume.path
    (root / "dir").mkdir()
    (root / "dir" / "file").write_text("x")
    (root / ".hidden").write_text("y")
    os.setxattr(root, "user.mine", b"1")
    volume.command("snapshot", "one")
    assert sorted(os.listdir(root)) == [".hidden", "dir"]
    assert os.listxattr(root) == ["user.mine"]
    assert xattr.listxattr(os.fspath(root)) == ("user.mine",) or list(xattr.listxattr(os.fspath(root))) == ["user.mine"]
    assert "fusevol" not in bench.run("getfattr", "--absolute-names", "-d", "-m", "-", root)
    copy = place / "copy"
    for script in (
        f"ls -A {root}", f"find {root} -mindepth 1 -printf '%P\\n'", f"du -a {root} | sed 's#.*mnt/{volume.name}##'",
        f"tar -C {root} -cf - . | tar -tf -", f"cp -a {root} {copy} && find {copy} -printf '%P\\n'",
        f"rsync -aHAX {root}/ {copy}-2/ && find {copy}-2 && getfattr --absolute-names -d -m - {copy}-2",
        f"cd {root} && echo * .[!.]*",
    ):  # fmt: skip
        assert ".fusevol" not in bench.shell(script), script
    bench.shell(f"cd {root} && rm -rf -- * .[!.]*")
    assert os.listdir(root) == []
    bench.shell(f"rm -rf {root}", status=1)
    assert volume.told("volume")["snapshots"][0]["name"] == "one"
    assert stat.S_ISDIR(os.stat(root / ".fusevol").st_mode)
    assert (root / ".fusevol" / "snapshots" / "one" / "dir" / "file").read_text() == "x"


@pytest.mark.slow
def test_programs_that_want_an_empty_directory_find_the_root_empty(volume: Volume, bench: Bench) -> None:
    assert os.listdir(volume.path) == []
    bench.run("find", volume.path, "-maxdepth", "0", "-empty", "-exec", "true", "{}", "+")
    assert bench.run("find", volume.path, "-maxdepth", "0", "-empty").strip() == os.fspath(volume.path)


@pytest.mark.parametrize("mode", ["ro", "off"])
def test_control_can_be_for_reading_only_or_not_there(created: Volume, mode: str) -> None:
    created.mount().command("snapshot", "one")
    created.umount()
    volume = created.mount("-o", f"control={mode}")
    control = volume.path / ".fusevol"
    (volume.path / "file").write_text("the volume itself can be written to")
    if mode == "ro":
        assert volume.told("status")["state"] == "mounted"
        assert os.listdir(control / "snapshots") == ["one"]
        assert raised(lambda: volume.command("snapshot", "two")) in ("EROFS", "EACCES")
        assert raised(lambda: volume.command("restore", "one")) in ("EROFS", "EACCES")
        assert raised(lambda: os.setxattr(volume.path, "user.fusevol.snapshot", b"two")) == "EROFS"
        assert os.getxattr(volume.path, "user.fusevol.name") == volume.name.encode()
    else:
        assert raised(lambda: os.stat(control)) == "ENOENT"
        assert raised(lambda: os.setxattr(volume.path, "user.fusevol.snapshot", b"two")) == "EROFS"
        control.mkdir()
        (control / "mine").write_text("an ordinary directory")
        assert os.listdir(volume.path / ".fusevol") == ["mine"]
    said = volume.fusevol("snapshots", volume.name)
    assert "two" not in said


def test_control_files_belong_to_the_administrator(bench: Bench, place: Path) -> None:
    """Another user reads state, but takes no snapshot, and restores nothing."""
    with public_directory() as public:
        volume = Volume(bench, place / "home", path=public / "mnt").create().mount()
        try:
            volume.path.chmod(0o777)
            control = volume.path / ".fusevol"
            said = bench.run(*as_user("nobody"), "bash", "-c", f"cat {control}/status; touch {volume.path}/mine")
            assert json.loads(said)["state"] == "mounted"
            said = bench.run(*as_user("nobody"), "bash", "-c", f"LC_ALL=C echo x > {control}/snapshot", status=1)
            assert "Permission denied" in said
            # The root is as writable for them as its mode says; it is not the volume's owner that makes commands.
            bench.run(*as_user("nobody"), "setfattr", "-n", "user.fusevol.snapshot", "-v", "x", volume.path, status=1)
            assert volume.told("volume")["snapshots"] == []
        finally:
            volume.umount()


def test_a_volume_is_mounted_as_it_was_created_to_be_unless_the_mount_says_otherwise(bench: Bench, place: Path) -> None:
    volume = Volume(bench, place / "home").create("--opt", "control=off", "--opt", "mount=ro").mount("-o", "rw")
    (volume.path / "file").write_text("x")
    assert not (volume.path / ".fusevol").exists()
    volume.umount()
    volume.mount("-o", "control=ro")
    assert raised(lambda: (volume.path / "file").write_text("y")) == "EROFS"
    assert volume.told("status")["state"] == "mounted"
    volume.umount()


def test_a_mounted_volume_is_not_mounted_a_second_time_and_the_error_says_where_it_is(
    volume: Volume, place: Path
) -> None:
    second = place / "second"
    second.mkdir()
    said = volume.refused("mount", volume.name, second)
    assert f'volume "web" is mounted on {volume.path}, and cannot be mounted twice' in said
    assert volume.mounted
    assert os.listdir(second) == []
