"""Whatever goes wrong is one line on stderr, and an exit status; never a traceback, and nothing is changed."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fusevol.api import to_json
from fusevol.cli.run import failure_of, hoist_home, main
from fusevol.errors import ERRNO, BackendError, InvalidArgument, VolumeNotFound
from fusevol.store import Process
from tests.cli.command import FUSEVOL, Fusevol


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command in this process, which is faster; return status, stdout and stderr."""
    monkeypatch.setenv("FUSEVOL_HOME", str(tmp_path / "home"))

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


# -- wrong calls --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("frobnicate", "no such command 'frobnicate'", "fusevol --help"),
        ("ls --frob", "no such option: --frob", "fusevol ls --help"),
        ("create", "missing argument 'NAME'", "fusevol create --help"),
        ("rename web", "missing argument 'NEW'", "fusevol rename --help"),
        ("create web --size", "option '--size' requires an argument", "fusevol --help"),
        ("ls --home", "option '--home' requires an argument", "fusevol"),
        ("pool", "missing command", "fusevol pool --help"),
        ("create web --size 10X", "invalid value for '--size': '10X' is not a size", "fusevol create --help"),
        ("create web --size -5", "invalid value for '--size': '-5' is not a size", "fusevol create --help"),
        ("create web --size 1.5", "invalid value for '--size': '1.5' is not a whole number", "fusevol create --help"),
        ("create web --size 99999999T", "invalid value for '--size': '99999999T' is more", "fusevol create --help"),
        ("create web --label app", "label 'app' is not of the form KEY=VALUE", None),
        ("create web --label a=1 --label a=2", "label 'a' is given twice", None),
        ("create web --label fusevol.pool=x", None, None),
        ("create web --pool nope", 'there is no pool "nope"; known: default', "to describe it: fusevol pool add nope"),
        ("set web", "there is nothing to change", "fusevol set --help"),
        ("top --interval 0", "--interval 0 is not between 0.1 and 3600 seconds", None),
        ("top --count 0", "--count 0 is less than 1", None),
        ("du web --depth -1", "--depth -1 is less than 0", None),
        ("du web --sort colour", "invalid value for '--sort'", "fusevol du --help"),
        ("snapshot web", '"web" names no snapshot', "write it as web@NAME"),
        ("restore web", '"web" names no snapshot', "write it as web@NAME"),
        ("snapshot web@", "snapshot '' is not a valid name", "use 1 to 128"),
        ("snapshot web@a@b", "snapshot 'a@b' is not a valid name", "use 1 to 128"),
        ("completion tcsh", "invalid value for", "fusevol completion --help"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_with_it(
    called: Callable[..., Any], line: str, message: str | None, hint: str | None
) -> None:
    status, out, err = called(*line.split())
    assert (status, out) == (2, ""), err
    first, *more = err.splitlines()
    assert first.startswith(f"fusevol: {message or ''}")
    assert len(more) <= 1
    if hint is not None:
        assert more[0].startswith(f"hint: {hint}")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "x" * 300, "a\nb", "a\x1b[31m", "ä", "a b", "/", "-x"])
def test_a_bad_name_is_refused_wherever_a_name_is_given(called: Callable[..., Any], name: str) -> None:
    for command in (["create"], ["inspect"], ["rm"], ["snapshots"], ["clone", "web"], ["rename", "web"]):
        status, out, err = called(*command, "--", name)
        first = err.splitlines()[0]
        assert out == ""
        assert first.isprintable()
        # What is to be renamed or cloned comes first, and does not exist.
        assert (status == 2 and "is not a valid name" in first) or (status == 1 and 'volume "web" does not' in first)


@pytest.mark.parametrize(
    "line",
    [
        "inspect web", "rm web", "rename web www", "set web --size 1G", "snapshot web@a", "snapshots web",
        "restore web@a", "clone web copy", "clone web@a copy", "create copy --from web", "usage web", "check web",
        "scrub web", "gc web", "inspect web@a", "rm web@a",
    ],
)  # fmt: skip
def test_an_unknown_volume_is_named_and_nothing_is_made(called: Callable[..., Any], line: str) -> None:
    assert called(*line.split()) == (
        1, "", 'fusevol: volume "web" does not exist\nhint: to see those that do: fusevol ls\n',
    )  # fmt: skip
    assert called("ls", "--json") == (0, "[]\n", "")


def test_an_unknown_snapshot_is_named(called: Callable[..., Any]) -> None:
    called("create", "web")
    for line in ("inspect web@a", "rm web@a", "restore web@a", "clone web@a copy"):
        status, _, err = called(*line.split())
        assert status == 1
        assert err == 'fusevol: volume "web" has no snapshot "a"\nhint: to see those it has: fusevol snapshots web\n'


def test_what_is_in_the_way_is_named(called: Callable[..., Any]) -> None:
    for line in ("create web --sticky", "create db", "snapshot web@a", "clone web@a copy"):
        assert called(*line.split())[0] == 0
    for line, message in {
        "create web": 'volume "web" exists already',
        "rename db web": 'volume "web" exists already',
        "clone web db": 'volume "db" exists already',
        "snapshot web@a": 'volume "web" has a snapshot "a" already',
        "rm web": 'volume "web" is sticky',
        "rm web@a": 'snapshot "web@a" has clones: copy',
    }.items():
        status, out, err = called(*line.split())
        assert (status, out, err.splitlines()[0]) == (1, "", f"fusevol: {message}")
    called("set", "web", "--no-sticky")
    assert called("rm", "--snapshots", "web")[2].startswith('fusevol: volume "web" has clones: copy\n')
    called("rm", "copy")
    assert called("rm", "web")[2].startswith('fusevol: volume "web" has snapshots: a\n')


# -- a broken state directory -------------------------------------------------------------------------


def test_a_state_directory_that_cannot_be_used_is_one_line(fusevol: Fusevol, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for home in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/fusevol")):
        error = fusevol.fails("create", "web", "--home", str(home))
        assert f"the state directory {home} cannot be" in error
    assert (tmp_path / "file").read_text() == "x"


def test_a_corrupt_database_is_one_line_and_left_as_it_is(fusevol: Fusevol) -> None:
    fusevol("create", "web")
    database = fusevol.home / "fusevol.db"
    for leftover in fusevol.home.glob("fusevol.db-*"):
        leftover.unlink()
    database.write_bytes(b"garbage" * 1000)
    for line in ("ls", "create db", "rm web", "status"):
        error = fusevol.fails(*line.split())
        assert "fusevol.db are damaged" in error
        assert "backup" in error
    assert database.read_bytes() == b"garbage" * 1000


def test_a_corrupt_record_is_one_line(fusevol: Fusevol) -> None:
    fusevol("create", "web")
    with sqlite3.connect(fusevol.home / "fusevol.db") as db:
        db.execute("update volumes set record = x'7b7d'")
    db.close()
    assert "does not match its checksum" in fusevol.fails("ls")


def test_a_corrupt_manifest_is_one_line_and_named_by_check(fusevol: Fusevol) -> None:
    volume = fusevol.json("create", "web")
    fusevol("create", "db")
    manifest = fusevol.home / "volumes" / volume["id"] / "manifest"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    for line in ("snapshot web@a", "usage web", "scrub web", "clone web copy"):
        assert "manifest" in fusevol.fails(*line.split())
    checked = fusevol.call("check", "web")
    assert (checked.status, checked.err) == (1, "")
    assert "manifest" in checked.out
    # The others are not affected, and this one can be deleted.
    fusevol("snapshot", "db@a")
    assert [item["name"] for item in fusevol.json("ls")] == ["db", "web"]
    fusevol("rm", "web")


def test_a_mistake_in_the_configuration_is_named(fusevol: Fusevol) -> None:
    fusevol.home.mkdir()
    (fusevol.home / "config.toml").write_text("lock_timeout = 5\npool = 3\n")
    error = fusevol.fails("ls", status=2)
    assert f"{fusevol.home}/config.toml, line 2: pool: there is no such key" in error


def test_missing_data_is_one_line(fusevol: Fusevol) -> None:
    volume = fusevol.json("create", "web")
    shutil.rmtree(fusevol.home / "volumes" / volume["id"])
    assert 'the data of volume "web" is missing from pool "default"' in fusevol.fails("snapshot", "web@a")
    fusevol("rm", "web")


# -- two at once, and dying ---------------------------------------------------------------------------


def test_of_commands_that_create_one_volume_at_once_one_succeeds(real: Fusevol) -> None:
    processes = [real.start("create", "web") for _ in range(4)]
    results = [(process.communicate()[1], process.returncode) for process in processes]
    assert sorted(status for _, status in results) == [0, 1, 1, 1]
    assert {error for error, status in results if status} == {'fusevol: volume "web" exists already\n'}
    assert len(real.json("ls")) == 1


def test_commands_on_one_volume_at_once_all_take_effect(fusevol: Fusevol) -> None:
    fusevol("create", "web")
    processes = [fusevol.start("snapshot", f"web@s{number}") for number in range(4)]
    processes += [fusevol.start("clone", "web", f"copy-{number}") for number in range(2)]
    for process in processes:
        assert process.communicate()[1] == ""
    assert len(fusevol.json("ls")) == 3
    named = [item["name"] for item in fusevol.json("snapshots", "web") if not item["automatic"]]
    assert sorted(named) == ["s0", "s1", "s2", "s3"]


def test_a_volume_that_cannot_be_read_does_not_keep_gc_from_the_others(fusevol: Fusevol) -> None:
    for name in ("a", "b", "c"):
        volume = fusevol.json("create", name)
        if name == "b":
            manifest = fusevol.home / "volumes" / volume["id"] / "manifest"
            manifest.write_bytes(manifest.read_bytes()[:-1])
    result = fusevol.call("gc", "--json")
    assert (result.status, result.err) == (1, "")
    notes = {item["name"]: item["note"] for item in json.loads(result.out)}
    assert (notes["a"], notes["c"]) == ("", "")
    assert notes["b"].startswith("failed: ")
    assert "manifest" in notes["b"]
    assert "manifest" in fusevol.fails("gc", "b")


@pytest.mark.parametrize("line", ["create new", "clone web new", "snapshot web@new", "rm --snapshots web"])
def test_a_command_that_is_killed_leaves_what_the_next_one_copes_with(fusevol: Fusevol, line: str) -> None:
    fusevol("create", "web")
    fusevol("snapshot", "web@a")
    for milliseconds in (150, 300):
        process = fusevol.start(*line.split())
        time.sleep(milliseconds / 1000)
        process.kill()
        process.communicate()
    result = fusevol.call(*line.split())
    assert result.status == 0 or "already" in result.err or "does not exist" in result.err, result
    fusevol("gc")
    assert fusevol.json("status")["problems"] == []
    for volume in fusevol.json("ls"):
        assert volume["state"] == "available"
        assert fusevol.json("check", volume["name"])["problems"] == []


def test_an_interrupted_command_says_nothing(fusevol: Fusevol) -> None:
    fusevol.home.mkdir()
    (fusevol.home / "config.toml").write_text("lock_timeout = 60\n")
    volume = fusevol.json("create", "web")
    with sqlite3.connect(fusevol.home / "fusevol.db") as db:
        owner = to_json(Process.current("test"))
        db.execute("insert into locks values (?, 'x', ?, 0)", [volume["id"], owner])
    db.close()
    process = fusevol.start("snapshot", "web@a")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    # Without the interrupt it would have named who is in the way.
    (fusevol.home / "config.toml").write_text("lock_timeout = 0.1\n")
    assert f'volume "web" is in use by process {os.getpid()} (test)' in fusevol.fails("snapshot", "web@a")


def test_a_reader_that_goes_away_is_no_error_worth_a_word(real: Fusevol) -> None:
    real("create", "web")
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([FUSEVOL, "ls"], stdout=writer, stderr=subprocess.PIPE, env=real.environment) as gone:
        os.close(writer)
        assert gone.stderr
        assert gone.stderr.read() == b""
    assert gone.returncode != 0


# -- the frame ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (VolumeNotFound('volume "web" does not exist'), 1, 'volume "web" does not exist'),
        (InvalidArgument("no"), 2, "no"),
        (BackendError("two\nlines\x1b"), 1, "two lines "),
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 1, "out of memory"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: permission denied"),
        (ZeroDivisionError("division by zero"), 1, "internal error: ZeroDivisionError: division by zero"),
        (ExceptionGroup("several", [ValueError("x"), VolumeNotFound("gone")]), 1, "gone"),
        (BaseExceptionGroup("several", [VolumeNotFound("gone"), KeyboardInterrupt()]), 130, ""),
    ],
)
def test_every_kind_of_error_has_its_line_and_status(error: BaseException, status: int, message: str) -> None:
    failure = failure_of(error)
    assert (failure.status, failure.message) == (status, message)


def test_every_named_error_has_an_exit_status() -> None:
    assert {failure_of(kind()).status for kind in ERRNO} == {1, 2}


def test_the_traceback_is_there_for_those_who_ask(called: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in called("inspect", "web")[2]
    monkeypatch.setenv("FUSEVOL_DEBUG", "1")
    assert "Traceback" in called("inspect", "web")[2]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("ls --home /x", "--home /x ls"),
        ("ls --home=/x --json", "--home=/x ls --json"),
        ("rm -- --home /x", "rm -- --home /x"),
        ("ls --home", "--home"),
        ("ls", "ls"),
    ],
)
def test_home_is_moved_before_the_command(given: str, made: str) -> None:
    assert hoist_home(given.split()) == made.split()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["colour=red"], "there is no option 'colour'; known: size, pool, from, sticky, ephemeral, group, "),
        (["size"], "option 'size' is not of the form size=VALUE"),
        (["size="], "option 'size' is not of the form size=VALUE"),
        (["size=10X"], "option 'size': '10X' is not a size"),
        (["size=1G", "size=2G"], "option 'size' is given twice"),
        (["sticky=yes"], "option 'sticky': 'yes' is neither true nor false"),
        (["control=maybe"], 'mount option "control=maybe" is not known'),
        (["mount=fast"], 'mount option "fast" is not known'),
        (["mount=control=ro"], "option 'mount': the control directory has an option of its own"),
        (["pool=nope"], 'there is no pool "nope"; known: default'),
        (["mount=ro", "mount_options=ro"], "option 'mount' is given twice"),
        (["labels=a"], "label 'a' is not of the form KEY=VALUE"),
        (["snap_schedule=hourly"], "snapshot_schedule: 'hourly' is not part of a schedule"),
        (["snap_schedule="], "option 'snap_schedule' is not of the form snap_schedule=VALUE"),
        (["snap_interval=-5"], "option 'snap_interval': '-5' is not a number from 0"),
        (["snap_interval=1000000"], "snapshot_interval: 1000000 is not between 1 and 527040 minutes"),
        (["read_iops=many"], "option 'read_iops': 'many' is not a number from 0"),
        (["readahead=maybe"], "option 'readahead': 'maybe' is neither true nor false"),
    ],
)
def test_options_of_create_are_strict(fusevol: Fusevol, options: list[str], said: str) -> None:
    assert said in fusevol.fails("create", "web", *(f"--opt={option}" for option in options), status=2)
    assert fusevol.json("ls") == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("snap_schedule=policy=gold", "snapshot_schedule: there are no policies here"),
        ("block_size=512", "block_size: this driver does not support 512"),
        ("fs=ext4", "fs: this driver does not support ext4"),
        ("io_profile=db", "io_profile: this driver does not support db"),
        ("cos=high", "cos: this driver does not support high"),
        ("shared=true", "shared: this driver does not support true"),
        ("secure=true", "encrypted: its pool does not encrypt"),
        ("compressed=true", "compressed: this driver does not support true"),
        ("dedupe=true", "dedupe: this driver does not support true"),
    ],
)
def test_what_openstorage_has_and_this_does_not_is_refused_by_name(fusevol: Fusevol, option: str, said: str) -> None:
    assert said in fusevol.fails("create", "web", "--opt", option)
    fusevol("create", "web")
    before = fusevol.json("inspect", "web")
    assert said in fusevol.fails("set", "web", "--opt", option)
    assert fusevol.json("inspect", "web") == before


def test_what_openstorage_has_and_this_does_not_may_be_said_not_to_be_wanted(fusevol: Fusevol) -> None:
    words = ("fs=fuse", "block_size=4096", "shared=false", "secure=false", "compressed=false", "dedupe=false")
    assert fusevol("create", "web", *(f"--opt={word}" for word in words))


def test_an_option_and_its_flag_are_not_both_taken(fusevol: Fusevol) -> None:
    assert "--size and --opt size= are both given" in fusevol.fails(
        "create", "web", "--size", "1G", "--opt", "size=2G", status=2
    )


def test_options_of_create_say_the_same_as_flags(fusevol: Fusevol) -> None:
    words = ["size=1G", "pool=default", "sticky=true", "control=ro", "mount=noatime,nosuid"]
    made = fusevol.json("create", "web", *(f"--opt={word}" for word in words))
    assert (made["size"], made["pool"], made["sticky"]) == (1 << 30, "default", True)
    assert made["mount_options"] == {"noatime": "", "nosuid": "", "control": "ro"}
    assert "noatime,nosuid,control=ro" in fusevol("inspect", "web")
    assert fusevol.json("create", "copy", "--opt", "from=web")["parent"] == "web"


def test_schedule_bounds_and_group_are_set_shown_and_taken_back(fusevol: Fusevol) -> None:
    flags = ("--snap-schedule", "daily=03:00,2", "--snap-interval", "15", "--throttle", "read_iops=9,write_bw_mbytes=3",
             "--no-readahead", "--group", "shop")  # fmt: skip
    made = fusevol.json("create", "web", *flags, "--opt", "labels=a=b,c=d", "--label", "e=f")
    assert (made["snapshot_schedule"], made["snapshot_interval"], made["next_snapshot"]) == ("daily=03:00,2", 15, None)
    assert made["io_throttle"] == {"read_iops": 9, "write_iops": 0, "read_bw_mbytes": 0, "write_bw_mbytes": 3}
    assert (made["readahead"], made["group"], made["labels"]) == (False, "shop", {"a": "b", "c": "d", "e": "f"})
    shown = fusevol("inspect", "web")
    for line in (r"group: +shop", r"snapshot interval: +15 min", r"snapshot schedule: +daily=03:00,2",
                 r"next snapshot: +when it is mounted", r"throttle: +read_iops=9,write_bw_mbytes=3",
                 r"readahead: +no"):  # fmt: skip
        assert re.search(f"^{line}$", shown, re.MULTILINE), shown
    changed = fusevol.json("set", "web", "--opt", "write_iops=7", "--throttle", "read_iops=0", "--opt", "control=ro")
    assert changed["io_throttle"] == {"read_iops": 0, "write_iops": 7, "read_bw_mbytes": 0, "write_bw_mbytes": 3}
    assert changed["mount_options"] == {"control": "ro"}
    changed = fusevol.json("set", "web", "--opt", "mount=noatime", "--snap-interval", "0", "--snap-schedule", "",
                           "--throttle", "none", "--readahead", "--group", "")  # fmt: skip
    assert changed["mount_options"] == {"noatime": "", "control": "ro"}
    assert changed["io_throttle"] is None
    assert (changed["snapshot_schedule"], changed["snapshot_interval"], changed["group"]) == ("", 0, "")
    assert changed["readahead"] is True
    assert "is no bound" in fusevol.fails("set", "web", "--throttle", "speed=9", status=2)
    assert "'pool' can only be given when a volume is made" in fusevol.fails("set", "web", "--opt=pool=x", status=2)
    assert "'a' is given twice" in fusevol.fails("set", "web", "--opt=labels=a=b", "--label", "a=c", status=2)
