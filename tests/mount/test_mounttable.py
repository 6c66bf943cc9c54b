"""The table of mounts, and options as words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fusevol.errors import InvalidArgument
from fusevol.mount import mounttable
from fusevol.mount.mounttable import Mount, find, mounts, resolve
from fusevol.mount.options import MountOptions

LINE = (
    rb"36 35 98:0 /mnt1 /mnt\0402/new\012line\134040\303\251 rw,noatime master:1 shared:4"
    rb" - fuse.fusevol web\054\043 rw,user_id=0"
)


def test_a_line_is_read_with_all_escapes() -> None:
    assert mounttable._parse(LINE) == Mount(
        id=36,
        parent=35,
        device=(98, 0),
        root="/mnt1",
        mountpoint=Path("/mnt 2/new\nline\\040é"),
        options=frozenset({"rw", "noatime"}),
        fstype="fuse.fusevol",
        source="web,#",
        super_options=frozenset({"rw", "user_id=0"}),
    )


def test_a_line_without_optional_fields_is_read() -> None:
    mount = mounttable._parse(b"1 2 0:3 / /proc rw - proc proc rw")
    assert (mount.mountpoint, mount.fstype) == (Path("/proc"), "proc")


def test_names_that_are_no_text_are_kept() -> None:
    mount = mounttable._parse(rb"1 2 0:3 / /a\377 rw - proc proc rw")
    assert os.fsencode(mount.mountpoint) == b"/a\xff"


def test_the_real_table_is_read() -> None:
    assert find(Path("/proc")) in mounts()
    assert find(Path("/proc/self")) is None


def test_the_mount_on_top_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        b"10 1 0:3 / /m rw - tmpfs below rw",
        b"12 10 0:4 / /m rw - tmpfs above rw",
        b"13 12 0:5 / /m/x rw - t x rw",
    ]
    # Also where the table is not in the order of mounting.
    for order in (lines, lines[::-1]):
        monkeypatch.setattr(mounttable, "mounts", lambda order=order: [mounttable._parse(line) for line in order])
        found = find(Path("/m"))
        assert found is not None
        assert found.source == "above"


def test_paths_are_resolved_as_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "link").symlink_to("dir")
    monkeypatch.chdir(tmp_path)
    for path in ("dir", "link", "./link/", "dir/.", "dir/../link", str(tmp_path / "link")):
        assert resolve(Path(path)) == tmp_path / "dir"
    assert resolve(Path("/")) == Path("/")


def test_mount_options_come_as_words() -> None:
    options = MountOptions().with_words(["ro", "nosuid", "noatime", "allow_other"])
    assert (options.read_only, options.nosuid, options.noatime, options.allow_other) == (True, True, True, True)
    assert options.with_words(["rw"]).read_only is False


@pytest.mark.parametrize("words", ["suidd", "ro,fd=3", "rootmode=40000", "ro rw"])
def test_unknown_mount_options_are_refused(words: str) -> None:
    with pytest.raises(InvalidArgument, match="is not known"):
        MountOptions().with_words(words.split(","))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_request": 5000},
        {"max_request": 2 << 20},
        {"max_tasks": 0},
        {"read_ahead_kb": -1},
        {"dirty_share": 101},
        {"fsname": ""},
    ],
    ids=str,
)
def test_impossible_limits_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument):
        MountOptions(**wrong)  # type: ignore[arg-type]
