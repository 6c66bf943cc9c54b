"""A directory that is changed while it is read: the listing ends, and what was there all the time is in it once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.harness import mounted_volume, needs_fuse
from tests.mount.worlds import EXCHANGE, renameat2

pytestmark = needs_fuse

#: More than the kernel asks for at once.
COUNT = 300


@pytest.fixture(scope="module")
def mount() -> Iterator[Path]:
    with mounted_volume() as volume:
        yield volume.mountpoint
        volume.unmount()


@pytest.fixture
def directory(mount: Path, request: pytest.FixtureRequest) -> Path:
    made = mount / str(request.node.name)
    made.mkdir()
    for number in range(COUNT):
        (made / f"name{number}").touch()
    return made


def seen(directory: Path, change: Callable[[str, int], object]) -> list[str]:
    """The names that reading a directory shows, where `change` is called for each; at most ten times as many."""
    names: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            names.append(entry.name)
            change(entry.name, len(names))
            if len(names) == 10 * COUNT:
                break
    return names


def test_names_that_are_made_while_a_directory_is_read_do_not_prolong_it(directory: Path) -> None:
    names = seen(directory, lambda name, number: (directory / f"new{number}").touch())
    assert sorted(names) == sorted(f"name{number}" for number in range(COUNT))
    assert len(os.listdir(directory)) == 2 * COUNT


def test_files_that_are_renamed_while_a_directory_is_read_are_not_met_again(directory: Path) -> None:
    names = seen(directory, lambda name, number: (directory / name).rename(directory / f"new{number}"))
    assert sorted(names) == sorted(f"name{number}" for number in range(COUNT))


def test_names_that_are_replaced_while_a_directory_is_read_are_all_met_once(directory: Path) -> None:
    def replace_another(name: str, number: int) -> None:
        (directory / "new").write_text(name)
        (directory / "new").rename(directory / f"name{(number * 7) % COUNT}")

    names = seen(directory, replace_another)
    assert sorted(names) == sorted(f"name{number}" for number in range(COUNT))


def test_names_that_change_places_while_a_directory_is_read_are_all_met_once(directory: Path) -> None:
    def exchange(name: str, number: int) -> None:
        one, other = (os.fsencode(directory / f"name{(number * factor) % COUNT}") for factor in (7, 11))
        renameat2(one, other, EXCHANGE)

    names = seen(directory, exchange)
    assert sorted(names) == sorted(f"name{number}" for number in range(COUNT))


def test_an_open_directory_that_is_read_from_the_beginning_again_shows_what_was_made_since(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        before = set(os.listdir(fd))
        (directory / "new").touch()
        os.fsync(fd)
        assert set(os.listdir(fd)) - before == {"new"}
    finally:
        os.close(fd)
