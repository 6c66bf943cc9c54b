"""Storage directives: a machine asks for what it is to have at each of its starts, and has it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Bench, Volume


@pytest.fixture
def machine(bench: Bench, place: Path) -> Volume:
    """A state directory without volumes, and with a second pool."""
    found = Volume(bench, place / "home")
    found.fusevol("pool", "add", "fast", "file", f"path={place}/fast")
    return found


def provision(machine: Volume, place: Path, *words: str, status: int = 0) -> list[dict[str, Any]]:
    out = machine.fusevol("provision", *words, "--at", place / "srv", "--json", status=status)
    return list(json.loads(out))


def test_a_machine_has_its_storage_again_after_each_start(machine: Volume, bench: Bench, place: Path) -> None:
    wanted = ("data=fast,2,64M", "logs=16M")
    made = provision(machine, place, *wanted)
    paths = [place / "srv" / name for name in ("data-0", "data-1", "logs-0")]
    assert [item["path"] for item in made] == [str(path) for path in paths]
    assert all(os.path.ismount(path) for path in paths)
    (paths[0] / "file").write_text("kept")
    bench.run("sync", paths[0])
    servers = sorted(bench.servers())
    # It is asked for again while all is there,
    assert provision(machine, place, *wanted) == made
    assert sorted(bench.servers()) == servers
    # and after one was unmounted, and the process of another has died.
    machine.fusevol("umount", paths[2])
    for path in paths[:2]:
        # So that the kernel does not know any more what the root of the mount is.
        (path / "more").write_text("more")
    os.kill(servers[0], 9)
    again = provision(machine, place, *wanted)
    assert again == made
    assert all(os.path.ismount(path) for path in paths)
    assert (paths[0] / "file").read_text() == "kept"


def test_what_is_smaller_than_asked_for_grows_while_it_is_mounted(machine: Volume, place: Path) -> None:
    provision(machine, place, "data=fast,16M")
    path = place / "srv" / "data-0"
    with pytest.raises(OSError, match="No space left"):
        (path / "file").write_bytes(bytes(40 << 20))
    assert [item["size"] for item in provision(machine, place, "data=fast,64M")] == [64 << 20]
    (path / "file").write_bytes(bytes(40 << 20))


def test_a_directory_that_is_in_use_keeps_one_from_being_mounted_and_no_other(machine: Volume, place: Path) -> None:
    (place / "srv" / "data-0").mkdir(parents=True)
    (place / "srv" / "data-0" / "mine").write_text("mine")
    made = provision(machine, place, "data=fast,2", status=1)
    assert [item["path"] for item in made] == [None, str(place / "srv" / "data-1")]
    assert made[0]["error"] == f'"{place}/srv/data-0" is not empty'
    assert (place / "srv" / "data-0" / "mine").read_text() == "mine"
    # It was made, and is there for the next time.
    (place / "srv" / "data-0" / "mine").unlink()
    assert provision(machine, place, "data=fast,2")[0]["path"] == str(place / "srv" / "data-0")


def test_the_example_of_the_docs_does_what_it_says(bench: Bench, place: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "storage.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    code = code.replace("/mnt/shop", f"{place}/shop")
    for _ in range(2):
        said = bench.run(sys.executable, "-c", code, env={"FUSEVOL_HOME": str(place / "home")})
        assert said == f"{place}/shop\n"
    assert bench.servers() == []
