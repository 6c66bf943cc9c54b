"""Random calls on a mounted volume have the results that they have on ext4, and leave the same tree behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness import Volume, mounted_volume, needs_fuse, reference_directory
from tests.mount.randomcalls import LONG_AGO, RandomCalls
from tests.mount.worlds import World

pytestmark = needs_fuse

SEEDS = range(int(os.environ.get("FUSEVOL_SEEDS", "4")))
STEPS = 1500


@pytest.fixture(scope="module")
def volume() -> Iterator[Volume]:
    before = os.umask(0)
    try:
        with mounted_volume() as mounted:
            yield mounted
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def reference(volume: Volume) -> Iterator[Path]:
    with reference_directory() as directory:
        yield directory


@pytest.mark.parametrize("seed", SEEDS)
def test_random_calls_have_the_results_that_they_have_on_ext4(volume: Volume, reference: Path, seed: int) -> None:
    worlds = []
    for parent in (volume.mountpoint, reference):
        # So deep that no symbolic link to `..` leads out of what belongs to this seed.
        directory = Path(parent, f"seed {seed}", *"deeperdown")
        directory.mkdir(parents=True)
        worlds.append(World(directory))
    ours, theirs = worlds
    calls = RandomCalls(seed)
    done: list[str] = []
    try:
        for number in range(STEPS):
            step = calls.step()
            results = step.do(ours), step.do(theirs)
            done.append(step.text)
            assert results[0] == results[1], f"seed {seed}, step {number}, after {done[-12:]}"
            if number % 100 == 99:
                compare_trees(ours, theirs, f"seed {seed} after step {number}: {done[-100:]}")
    finally:
        for world in worlds:
            world.close()
    compare_trees(ours, theirs, f"seed {seed} at its end")


def compare_trees(ours: World, theirs: World, when: str) -> None:
    mine, other = (world.tree(explicit_times=LONG_AGO) for world in (ours, theirs))
    assert mine.keys() == other.keys(), when
    different = {path: (facts, other[path]) for path, facts in mine.items() if facts != other[path]}
    assert not different, when


def test_a_mount_later_everything_is_as_it_was(volume: Volume) -> None:
    world = World(volume.mountpoint)
    before = everything(world)
    volume.unmount()
    volume.mount()
    after = everything(world)
    assert len(before) > 20
    assert after.keys() == before.keys()
    different = [
        (path, fact, value, after[path][fact])
        for path, facts in before.items()
        for fact, value in facts.items()
        if value != after[path][fact]
    ]
    assert not different


def everything(world: World) -> dict[bytes, Any]:
    """Facts and times of all there is."""
    return {path: facts | {"times": world.times(path)} for path, facts in world.tree().items()}
