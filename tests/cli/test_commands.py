"""What the commands do, and what they print."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.cli.app import _COMMANDS
from tests.cli.command import FUSEVOL, Fusevol

VOLUME_KEYS = {
    "name", "id", "kind", "parent", "state", "size", "pool", "labels", "sticky", "created", "mounted_on",
    "snapshots", "error", "mount_options", "lease",
    "copied", "encrypted", "ephemeral", "group", "snapshot_interval", "snapshot_schedule", "next_snapshot",
    "io_throttle", "readahead",
}  # fmt: skip
SNAPSHOT_KEYS = {"name", "id", "volume", "created", "automatic", "labels", "mounted_on", "schedule"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def test_a_volume_through_its_life(real: Fusevol) -> None:
    assert real("create", "web", "--size", "10G", "--label", "app=shop") == 'volume "web" is ready\n'
    assert real("snapshot", "web@before") == 'snapshot "web@before" is taken\n'
    assert real("clone", "web@before", "test") == 'volume "test" is ready\n'
    restored = real("restore", "web@before")
    kept = re.fullmatch(r'volume "web" is as it was at "before"; what was there before is "(web@[\w-]+)"\n', restored)
    assert kept
    assert real("rename", "web", "www") == 'volume "web" is called "www" now\n'
    assert real("set", "www", "--size", "20G", "--label", "app=") == 'volume "www" is changed\n'
    assert real("check", "www") == 'volume "www": no problems; 0 B verified\n'
    lines = [re.split(r"  +", line) for line in real("ls").splitlines()]
    assert [line[:6] for line in lines] == [
        ["NAME", "SIZE", "STATE", "MOUNTED ON", "SNAPSHOTS", "POOL"],
        ["test", "10 GiB", "available", "-", "0", "default"],
        ["www", "20 GiB", "available", "-", "2", "default"],
    ]
    assert real("rm", "test", "www@before") == 'volume "test" is deleted\nsnapshot "www@before" is deleted\n'
    assert real("rm", "www", "--snapshots") == 'volume "www" is deleted\n'
    assert real.json("ls") == []


def test_the_json_objects_are_as_documented(fusevol: Fusevol) -> None:
    made = fusevol.json("create", "web", "--size", "1536K", "--label", "app=shop", "--sticky")
    assert set(made) == VOLUME_KEYS
    assert TIME.fullmatch(made["created"])
    assert made["size"] == 1536 << 10
    assert made["sticky"] is True
    assert made["labels"] == {"app": "shop"}
    assert (made["kind"], made["parent"], made["state"], made["pool"]) == ("volume", None, "available", "default")
    taken = fusevol.json("snapshot", "web@before", "--label", "why=test")
    assert set(taken) == SNAPSHOT_KEYS
    assert (taken["name"], taken["volume"], taken["automatic"]) == ("before", "web", False)
    assert TIME.fullmatch(taken["created"])
    assert fusevol.json("snapshots", "web") == [taken]
    assert fusevol.json("inspect", "web@before") == taken
    copy = fusevol.json("clone", "web@before", "copy")
    assert set(copy) == VOLUME_KEYS
    assert (copy["kind"], copy["parent"], copy["size"]) == ("clone", "web@before", 1536 << 10)
    restored = fusevol.json("restore", "web@before")
    assert set(restored) == {"volume", "restored", "kept"}
    assert set(restored["kept"]) == SNAPSHOT_KEYS
    assert restored["kept"]["automatic"] is True
    assert [volume["name"] for volume in fusevol.json("ls")] == ["copy", "web"]
    assert fusevol.json("ls", "--label", "why=test") == [copy]
    assert fusevol.json("ls", "c*") == [copy]
    assert fusevol.json("inspect", made["id"]) == made | {"snapshots": 2}
    assert fusevol.json("copy", "web@before", "kept") == {
        "volume": "kept", "source": "web@before", "copied": ["before"], "written": 0,
    }  # fmt: skip
    fusevol("rm", "--snapshots", "kept")
    used = fusevol.json("usage", "web")
    assert set(used) == {
        "live", "inherited", "data", "in_snapshots", "metadata", "reclaimable", "total", "snapshots",
    }  # fmt: skip
    assert [set(snapshot) for snapshot in used["snapshots"]] == [{"name", "referenced", "exclusive"}] * 2
    assert fusevol.json("check", "web") == {"volume": "web", "verified": 0, "problems": []}
    assert fusevol.json("scrub", "web") == {"volume": "web", "verified": 0, "problems": []}
    assert [set(item) for item in fusevol.json("gc", "web")] == [{"name", "freed", "note"}]
    pool_keys = {"name", "backend", "attributes", "volumes", "size", "free", "orphans", "missing", "error", "encrypted"}
    assert [set(pool) for pool in fusevol.json("pool", "ls")] == [pool_keys]
    assert set(fusevol.json("status")) == {
        "home", "version", "volumes", "snapshots", "mounted", "in_use", "pools", "problems",
    }  # fmt: skip
    assert fusevol.json("rename", "web", "www")["name"] == "www"
    assert fusevol.json("set", "www", "--no-sticky")["sticky"] is False
    assert fusevol.json("rm", "copy", "www@before") == {"deleted": ["copy", "www@before"]}


def test_a_volume_without_files_has_nothing_to_compare_or_to_add_up(fusevol: Fusevol) -> None:
    for name in ("web", "db"):
        fusevol("create", name)
        fusevol("snapshot", f"{name}@a")
    assert fusevol("diff", "web@a") == fusevol("diff", "web@a", "web") == ""
    assert fusevol.json("diff", "web@a", "web@a") == []
    assert "both must be of one volume" in fusevol.fails("diff", "web@a", "db@a", status=2)
    assert 'no snapshot "b"' in fusevol.fails("diff", "web@a", "web@b")
    assert fusevol.json("du", "web@a") == [{"path": "/", "depth": 0, "size": 0, "used": 0, "inodes": 0}]
    assert "there is no file in it yet" in fusevol.fails("du", "web", "/x", status=2)


def test_a_volume_is_named_by_its_id_as_well(fusevol: Fusevol) -> None:
    volume_id = fusevol.json("create", "web")["id"]
    fusevol("snapshot", f"{volume_id}@before")
    assert fusevol.json("inspect", "web@before")["volume"] == "web"
    fusevol("rm", f"{volume_id}@before", volume_id)


def test_home_may_stand_anywhere_on_the_command_line(fusevol: Fusevol, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    fusevol("create", "web", "--home", other)
    assert len(fusevol.json(f"--home={other}", "ls")) == 1
    assert fusevol.json("ls") == []


def test_creating_what_exists_is_fine_where_that_is_said(fusevol: Fusevol) -> None:
    first = fusevol.json("create", "web", "--size", "1G")
    assert fusevol.json("create", "web", "--size", "1G", "--exist-ok") == first
    assert "exists already" in fusevol.fails("create", "web", "--size", "2G", "--exist-ok")


def test_volumes_are_made_in_the_pool_that_is_asked_for(fusevol: Fusevol, tmp_path: Path) -> None:
    fusevol.home.mkdir()
    (fusevol.home / "config.toml").write_text(f'[pools.fast]\nbackend = "file"\npath = "{tmp_path}/fast"\n')
    volume = fusevol.json("create", "web", "--pool", "fast")
    assert volume["pool"] == "fast"
    assert [path.name for path in (tmp_path / "fast").iterdir()] == [volume["id"]]
    lines = fusevol("pool", "ls").splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["NAME", "BACKEND", "VOLUMES"], ["default", "file", "0"], ["fast", "file", "1"],
    ]  # fmt: skip


def test_drivers_are_listed_as_documented(fusevol: Fusevol) -> None:
    fusevol.home.mkdir()
    (fusevol.home / "config.toml").write_text("[drivers.nope]\n")
    local, nope = fusevol.json("driver", "ls")
    assert set(local) == {"name", "packages", "configured", "parameters", "type", "volumes", "error"}
    assert (local["name"], local["type"], local["volumes"]) == ("local", "file", 0)
    assert nope["error"].endswith('config.toml, line 1: drivers.nope: there is no driver "nope"')
    assert [line.split()[0] for line in fusevol("driver", "ls").splitlines()] == ["NAME", "local", "nope"]


def test_volumes_whose_records_are_lost_are_listed_and_imported(fusevol: Fusevol) -> None:
    for name in ("web", "shop", "desk"):
        made = fusevol.json("create", name, "--size", "1G")
        fusevol("snapshot", f"{name}@s")
        if name == "desk":
            fusevol("rename", name, "shop")
        for path in fusevol.home.glob("fusevol.db*"):
            path.unlink()
    listed = fusevol.json("import")
    assert [item["name"] for item in listed] == ["web", "shop", "shop"]
    assert listed[-1] == {
        "id": made["id"], "name": "shop", "pool": "default", "size": 1 << 30, "created": made["created"],
        "held_by": "", "problem": "2 volumes were called so: import it by id",
    }  # fmt: skip
    assert listed[0]["problem"] == ""
    lines = [re.split(r"  +", line) for line in fusevol("import").splitlines()]
    assert lines[0] == ["ID", "NAME", "POOL", "SIZE", "CREATED", "IN USE BY", "PROBLEM"]
    assert lines[1][1:4] == ["web", "default", "1 GiB"]
    said = 'fusevol: there are 2 volumes "shop" without a record\nhint: say the id of one, as fusevol import lists it\n'
    assert fusevol.call("import", "shop") == (2, "", said)
    assert fusevol.call("import", "nope").err.startswith('fusevol: no pool has a volume "nope" without a record here\n')
    assert fusevol.call("import", "web", "--all").status == 2
    assert fusevol.call("import", "--force").status == 2
    assert fusevol.call("import", "--pool", "nope").status == 2
    done = fusevol.call("import", "--all")
    assert done.status == 1
    assert done.out == 'volume "web" is imported from pool "default"\n'
    assert done.err == 2 * 'fusevol: volume "shop" is not imported: 2 volumes were called so: import it by id\n'
    assert fusevol("import", made["id"], "other") == 'volume "other" is imported from pool "default"\n'
    assert fusevol.call("import", "--all").status == 0
    assert [(volume["name"], volume["snapshots"]) for volume in fusevol.json("ls")] == [
        ("other", 1), ("shop", 1), ("web", 1),
    ]  # fmt: skip
    assert fusevol.json("import", "--all") == []


def test_scripts_for_completion_are_printed(real: Fusevol) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_FUSEVOL_COMPLETE" in real("completion", shell)
    real("create", "web-1")
    asked = {"_FUSEVOL_COMPLETE": "complete_bash", "COMP_WORDS": "fusevol inspect w", "COMP_CWORD": "2"}
    assert real.run(env=real.environment | asked).out.split() == ["web-1"]
    asked["COMP_WORDS"] = "fusevol ins"
    asked["COMP_CWORD"] = "1"
    assert real.run(env=real.environment | asked).out.split() == ["inspect"]


def test_it_runs_as_a_module_too(real: Fusevol) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fusevol", "--version"],
        env=real.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == real("--version")


# -- help ---------------------------------------------------------------------------------------------


def test_help_loads_nothing_heavy(real: Fusevol) -> None:
    code = (
        "import sys; from fusevol.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'numpy', 'obstore', 'apsw', 'trio', 'msgspec', 'sqlite3', 'rich', 'pyfuse3', 'pydantic'}; "
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    for arguments in (["--help"], ["create", "--help"]):
        result = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=real.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == "[]\n"
        assert "Usage: fusevol" in result.stdout
    assert not real.home.exists()


def test_without_arguments_it_prints_its_help(real: Fusevol) -> None:
    assert real() == real("--help")


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help_with_an_example_and_json(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fusevol.cli import main

    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"Example:\n\n +(\w.*\n +)*?.*fusevol {name}\b", text), text
    assert name in ("completion", "serve") or "--json" in text
    # Its first line is whole in the list of all commands.
    assert main(["--help"]) == 0
    listed = re.search(rf"^  {name} +(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert listed
    assert not listed[1].endswith("...")


# -- on a terminal ------------------------------------------------------------------------------------


def test_on_a_terminal_tables_are_drawn(fusevol: Fusevol) -> None:
    fusevol("create", "web", "--size", "1G")
    outside, inside = pty.openpty()
    with subprocess.Popen([FUSEVOL, "ls"], stdout=inside, env=fusevol.environment) as process:
        assert process.wait(timeout=60) == 0
    os.close(inside)
    text = b""
    try:
        while piece := os.read(outside, 65536):
            text += piece
    except OSError:
        # The other side is closed.
        pass
    os.close(outside)
    assert "─" in text.decode()
    assert "1 GiB" in text.decode()


def test_status_has_an_exit_status_for_those_who_ask(fusevol: Fusevol) -> None:
    fusevol("create", "web")
    assert fusevol.call("status", "--check").status == 0
    (fusevol.home / "volumes").rename(fusevol.home / "elsewhere")
    assert fusevol.call("status").status == 0
    found = fusevol.call("status", "--check")
    assert found.status == 1
    assert 'volume "web": its data is missing' in found.out
