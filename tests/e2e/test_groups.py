"""Snapshots of several volumes that are one cut, while programs write to all of them in an order."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fusevol.api import VolumeLocator
from fusevol.driver import LocalDriver
from fusevol.errors import AlreadyExists
from fusevol.home import Home
from tests.e2e.harness import Bench, Volume, until

#: Writes a number to the one volume and then to the other, each time synced; and makes names in the same manner.
WRITER = """
import itertools, os, sys
roots = sys.argv[1:]
for number in itertools.count(1):
    for root in roots:
        fd = os.open(f"{root}/number", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, b"%020d" % number, 0)
        os.fsync(fd)
        os.close(fd)
    for root in roots:
        os.mkdir(f"{root}/{number}")
        if number > 1: os.rmdir(f"{root}/{number - 1}")
"""


#: Begins a snapshot of the group, and dies when its volumes are held still.
DOOMED = """
import os, signal, sys, trio
from fusevol.api import VolumeLocator
from fusevol.driver import LocalDriver, together
from fusevol.home import Home
async def die(*_): os.kill(os.getpid(), signal.SIGKILL)
async def main():
    together._STILL_SECONDS = 2.0
    async with LocalDriver(Home(sys.argv[1])) as driver:
        driver.snapshots.take = die
        await driver.snapshot_group(VolumeLocator(name="s"), group="shop")
trio.run(main)
"""


@pytest.fixture
def group(bench: Bench, place: Path) -> list[Volume]:
    """Three volumes of the group `shop`; the last one is not mounted."""
    found = [Volume(bench, place / "home", name).create("--opt", "group=shop") for name in ("one", "two", "three")]
    for volume in found[:2]:
        volume.mount()
    return found


@contextlib.contextmanager
def writing(bench: Bench, *volumes: Volume) -> Iterator[None]:
    """A program at work on them."""
    process = bench.start(sys.executable, "-c", WRITER, *(volume.path for volume in volumes))
    until(lambda: numbers(volumes[-1].path)[0] > 3, "the writer")
    yield
    assert process.poll() is None, bench.finish(process)
    process.terminate()
    bench.finish(process)


def numbers(path: Path) -> tuple[int, int, int]:
    """What was written last, and the least and the last of the names that were made last."""
    try:
        names = [int(name) for name in os.listdir(path) if name != "number"]
        return int((path / "number").read_text() or 0), min(names, default=0), max(names, default=0)
    except FileNotFoundError:
        return 0, 0, 0


def snapshots_of(volume: Volume) -> list[str]:
    return [snapshot["name"] for snapshot in json.loads(volume.fusevol("snapshots", volume.name, "--json"))]


def test_no_snapshot_of_a_group_has_a_later_write_without_the_earlier_one(group: list[Volume], bench: Bench) -> None:
    one, two, three = group
    with writing(bench, one, two):
        for turn in range(8):
            before = numbers(one.path)[0]
            said = one.fusevol("snapshot", "--group", "shop", f"s{turn}")
            assert said.splitlines() == [f'snapshot "{name}@s{turn}" is taken' for name in ("one", "three", "two")]
            (written, made, _), (other, other_made, _) = (
                numbers(volume.path / ".fusevol" / "snapshots" / f"s{turn}") for volume in (one, two)
            )
            # First to the one, then to the other; and the next to the first only after that.
            assert other <= written <= other + 1
            assert other_made <= made <= other_made + 1
            assert written >= before
            # All goes on.
            until(lambda written=written: numbers(two.path)[0] > written + 2, "the writer to go on")  # type: ignore[misc]
    assert snapshots_of(three) == [f"s{turn}" for turn in range(8)]
    for volume in (one, two):
        assert volume.told("quiesce")["ended"] == "unquiesced"
        volume.check()


def test_where_one_snapshot_cannot_be_taken_none_is_left_and_nothing_stays_held(
    group: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = group
    two.command("snapshot", "there")
    assert 'volume "two" has a snapshot "there" already' in one.refused("snapshot", "--group", "shop", "there")
    assert (snapshots_of(one), snapshots_of(two), snapshots_of(three)) == ([], ["there"], [])

    async def fail_at_each() -> None:
        async with LocalDriver(Home(one.home)) as driver:
            take = driver.snapshots.take
            for failing in ("one", "two", "three"):

                async def broken(volume, name, labels, failing=failing):  # type: ignore[no-untyped-def]
                    found = await take(volume, name, labels)
                    if volume.locator.name == failing:
                        raise AlreadyExists("only said so")
                    return found

                monkeypatch.setattr(driver.snapshots, "take", broken)
                with pytest.raises(AlreadyExists, match="only said so"):
                    await driver.snapshot_group(VolumeLocator(name="new"), group="shop")

    trio.run(fail_at_each)
    for volume in group:
        assert "new" not in snapshots_of(volume)
    for volume in (one, two):
        assert not volume.told("quiesce")["quiesced"]
        (volume.path / "goes on").mkdir()


def test_a_volume_that_somebody_holds_still_stays_so(group: list[Volume]) -> None:
    one, two, _ = group
    (one.path / "before").mkdir()
    one.command("quiesce", "60")
    one.fusevol("snapshot", "--group", "shop", "s")
    assert (one.told("quiesce")["quiesced"], two.told("quiesce")["quiesced"]) == (True, False)
    assert os.listdir(one.path / ".fusevol" / "snapshots" / "s") == ["before"]
    one.command("unquiesce", "")


@pytest.mark.slow
def test_a_volume_that_was_let_go_on_too_early_fails_the_whole(group: list[Volume]) -> None:
    one, two, three = group

    async def let_go() -> None:
        async with LocalDriver(Home(one.home)) as driver:
            take = driver.snapshots.take

            async def meddled(volume, name, labels):  # type: ignore[no-untyped-def]
                await trio.to_thread.run_sync(two.command, "unquiesce", "")
                return await take(volume, name, labels)

            driver.snapshots.take = meddled  # type: ignore[method-assign]
            await driver.snapshot_group(VolumeLocator(name="s"), group="shop")

    with pytest.raises(Exception, match='volume "two" could not be held still: unquiesced'):
        trio.run(let_go)
    assert [snapshots_of(volume) for volume in group] == [[], [], []]
    assert not one.told("quiesce")["quiesced"]
    assert three.refused("snapshot", "--group", "nope", "s")


@pytest.mark.slow
def test_a_mount_that_does_not_answer_keeps_no_other_volume_held(group: list[Volume], bench: Bench) -> None:
    one, two, _ = group
    os.kill(two.server, signal.SIGSTOP)
    try:
        process = bench.start(
            "timeout", "-s", "INT", "3", sys.executable, "-m", "fusevol", "snapshot", "--group", "shop", "s",
            env={"FUSEVOL_HOME": str(one.home)},
        )  # fmt: skip
        bench.finish(process)
        assert process.returncode != 0
        (one.path / "goes on").mkdir()
    finally:
        os.kill(two.server, signal.SIGCONT)
    assert not one.told("quiesce")["quiesced"]
    assert snapshots_of(one) == []


def test_when_the_command_is_killed_everything_goes_on_by_itself(group: list[Volume], bench: Bench) -> None:
    one, two, _ = group
    process = bench.start(sys.executable, "-c", DOOMED, one.home)
    bench.finish(process)
    assert process.returncode == -signal.SIGKILL
    for volume in (one, two):
        # Waits, for as long as that is held.
        (volume.path / "goes on").mkdir()
        assert volume.told("quiesce")["ended"] == "its time was over"
    one.fusevol("snapshot", "--group", "shop", "s")
    assert [snapshots_of(volume) for volume in group] == [["s"]] * 3
