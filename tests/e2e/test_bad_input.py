"""What cannot be done is refused with one line and an exit status, and nothing is changed by it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import FUSEVOL, Bench, Volume, as_user, public_directory, until


def picture(volume: Volume) -> object:
    """What must not change when something is refused: the records, and what is mounted."""
    listed = volume.fusevol("ls", "--json")
    return listed, sorted(volume.bench.mountpoints()), sorted(volume.bench.servers())


def test_a_mountpoint_that_is_none_is_refused(created: Volume, bench: Bench, place: Path) -> None:
    before = picture(created)
    (place / "file").write_text("")
    (place / "loop").symlink_to("loop")
    for path, words in (
        (place / "file", "is not a directory"),
        (place / "missing", "does not exist"),
        (place / "file" / "below", "does not exist"),
        (place / "loop", "does not exist"),
        (place / ("x" * 300), "does not exist"),
        (Path("/proc"), "is a mount already"),
    ):
        said = created.refused("mount", created.name, path)
        assert words in said, (path, said)
    assert picture(created) == before
    assert not (place / "missing").exists()
    created.mount()
    (created.path / "file").write_text("and it works")


def test_a_mountpoint_that_records_cannot_name_is_refused(created: Volume, place: Path) -> None:
    odd = place / os.fsdecode(b"\xff\xfe")
    odd.mkdir()
    assert "is not UTF-8" in created.refused("mount", created.name, odd)
    fine = place / "line\nbreak \u00fc"
    fine.mkdir()
    created.fusevol("mount", created.name, fine)
    created.fusevol("umount", fine)


def test_a_mountpoint_that_is_a_link_is_where_it_leads(created: Volume, bench: Bench, place: Path) -> None:
    real, link = place / "real", place / "link"
    real.mkdir()
    link.symlink_to("real")
    created.fusevol("mount", created.name, link)
    assert created.inspected()["mounted_on"] == [str(real)]
    (link / "file").write_text("here")
    created.fusevol("mount", created.name, link)  # it is mounted there
    created.fusevol("umount", link)
    assert bench.servers() == []
    assert os.listdir(real) == []


def test_a_second_mount_of_a_volume_and_a_second_volume_on_a_mount_are_refused(
    volume: Volume, bench: Bench, place: Path
) -> None:
    other = Volume(bench, volume.home, "other").create()
    (volume.path / "file").write_text("here")
    before = picture(volume)
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    assert "mounted" in volume.refused("mount", volume.name, elsewhere)
    assert "is a mount already" in other.refused("mount", other.name, volume.path)
    assert "not mounted" in other.refused("umount", other.name)
    assert "no volume is mounted" in other.refused("umount", elsewhere)
    assert "mounted" in volume.refused("rm", volume.name)
    assert picture(volume) == before
    assert (volume.path / "file").read_text() == "here"
    assert os.listdir(elsewhere) == []
    volume.fusevol("mount", volume.name, volume.path)  # where it is mounted already, that is no error
    assert len(bench.servers()) == 1


NAMES = ["a/b", "..", "", "-", "a b", "a\x01b", "x" * 300, "é"]


def test_names_that_are_none_are_refused_everywhere(volume: Volume) -> None:
    before = picture(volume)
    for name in NAMES:
        said = volume.refused("create", "--", name)
        assert said.splitlines()[0].isprintable(), said
    for name in ("x" * 300, "../a\nb"):
        volume.refused("rename", volume.name, name)
        volume.refused("snapshot", f"{volume.name}@{name}")
        volume.refused("clone", volume.name, name)
    assert picture(volume) == before


def test_names_of_files_are_taken_or_refused_as_posix_says(volume: Volume) -> None:
    root = os.fsencode(volume.path)
    for name in (b"\x01\x02", b"\xff\xfe", b"a\nb", b"x" * 255, b"-rf", b"*", b" ", b"...", "é".encode()):
        with open(os.path.join(root, name), "wb") as file:
            file.write(name)
        assert Path(os.fsdecode(os.path.join(root, name))).read_bytes() == name
    assert len(os.listdir(root)) == 9
    for name in (b"x" * 256, b"x" * 300):
        with pytest.raises(OSError, match="File name too long"):
            os.open(os.path.join(root, name), os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match="File name too long"):
            os.mkdir(os.path.join(root, name))
    assert len(os.listdir(root)) == 9


def test_what_does_not_exist_is_said_to_be_missing(volume: Volume, place: Path) -> None:
    before = picture(volume)
    for words in (
        ("mount", "nothing", str(place)),
        ("umount", "nothing"),
        ("inspect", "nothing"),
        ("check", "nothing"),
        ("rm", "nothing"),
        ("snapshot", "nothing@a"),
        ("restore", f"{volume.name}@nothing"),
        ("clone", f"{volume.name}@nothing", "new"),
        ("clone", "nothing", "new"),
    ):
        said = volume.refused(*words)
        assert "does not exist" in said or "has no snapshot" in said, said
    assert picture(volume) == before


def test_mount_options_that_are_none_are_refused(created: Volume) -> None:
    for options in ("bogus", "control=maybe", "ro=1"):
        assert "is not known" in created.refused("mount", created.name, created.path, "-o", options)
    assert not created.mounted


def test_a_record_store_that_is_damaged_is_reported_and_left_as_it_is(created: Volume) -> None:
    database = created.home / "fusevol.db"
    for damaged in (os.urandom(8192), b"", b"SQLite format 3\0" + bytes(5000)):
        for extra in ("-wal", "-shm"):
            (created.home / f"fusevol.db{extra}").unlink(missing_ok=True)
        database.write_bytes(damaged)
        if damaged:
            for words in (("ls",), ("mount", created.name, str(created.path)), ("create", "other"), ("status",)):
                assert "fusevol.db" in created.refused(*words)
            assert database.read_bytes() == damaged
        else:
            assert created.name not in created.fusevol("ls")
    assert not created.mounted


def test_records_that_were_deleted_under_a_mount_are_made_anew_once_it_is_unmounted(volume: Volume) -> None:
    (volume.path / "file").write_bytes(b"kept")
    (volume.home / "fusevol.db").unlink()
    said = volume.refused("ls")
    assert "umount PATH" in said
    assert "fusevol.db-wal" in said
    assert "fusevol import --all" in said
    # As it says.
    volume.bench.run("umount", volume.path)
    until(lambda: not volume.bench.servers(), "the mount process to end")
    for path in volume.home.glob("fusevol.db*"):
        path.unlink()
    volume.fusevol("import", "--all")
    volume.mount()
    assert (volume.path / "file").read_bytes() == b"kept"


def test_here_is_a_path(created: Volume, bench: Bench) -> None:
    home = {"FUSEVOL_HOME": os.fspath(created.home)}
    bench.run(FUSEVOL, "mount", created.name, ".", cwd=created.path, env=home)
    assert created.mounted
    # Whoever is there keeps it busy.
    assert "in use" in bench.run(FUSEVOL, "umount", ".", cwd=created.path, env=home, status=1)
    bench.run(FUSEVOL, "umount", f"{created.path}/../{created.path.name}", env=home)
    assert not created.mounted


@pytest.fixture
def public() -> Iterator[Path]:
    with public_directory() as path:
        yield path


def test_a_state_directory_that_cannot_be_written_is_named(public: Path, bench: Bench) -> None:
    """As an ordinary user; and where there is a file in its place."""
    home = public / "home"
    home.mkdir(mode=0o755)
    for state in (home, home / "below"):
        process = bench.start(*as_user("nobody"), FUSEVOL, "--home", state, "create", "web", cwd=Path("/"))
        said = bench.finish(process)
        assert process.returncode == 1, said
        assert len(said.splitlines()) <= 2, said
        assert str(home) in said, said
    assert os.listdir(home) == []
    (public / "file").write_text("")
    said = Volume(bench, public / "file", path=public / "mnt").refused("create", "web")
    assert str(public / "file") in said, said


def test_of_many_mounts_at_once_exactly_one_wins(created: Volume, bench: Bench, place: Path) -> None:
    """On different directories, so that being mounted already is an error for all others."""
    paths = [place / f"at-{number}" for number in range(5)]
    for path in paths:
        path.mkdir()
    home = {"FUSEVOL_HOME": os.fspath(created.home)}
    running = [bench.start(FUSEVOL, "mount", created.name, path, env=home, cwd=Path("/")) for path in paths]
    said = [bench.finish(process) for process in running]
    winners = [path for path, process in zip(paths, running, strict=True) if process.returncode == 0]
    assert len(winners) == 1, said
    for text, process in zip(said, running, strict=True):
        if process.returncode:
            assert process.returncode == 1, text
            assert "mounted" in text or "in use" in text, text
            assert len(text.splitlines()) <= 2, text
    assert bench.mountpoints() == winners
    assert len(bench.servers()) == 1
    (winners[0] / "file").write_text("served")
    created.fusevol("umount", created.name)
    created.check()


@pytest.mark.slow
def test_a_command_that_is_interrupted_while_it_mounts_leaves_all_or_nothing(created: Volume, bench: Bench) -> None:
    home = {"FUSEVOL_HOME": os.fspath(created.home)}
    for kill_after in (0.2, 0.5, 0.8):
        process = bench.start(FUSEVOL, "mount", created.name, created.path, env=home, cwd=Path("/"))
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.terminate()
        bench.finish(process)
        until(lambda: created.mounted == bool(bench.servers()), "a mount with a server, or neither")
        created.mount()
        created.umount()
    created.check()
