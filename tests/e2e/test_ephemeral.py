"""Volumes whose content goes with their mount, however that ends."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fusevol.driver import LocalDriver
from fusevol.home import Home
from tests.e2e.harness import Volume, until

SECRET = os.urandom(1 << 20)


@pytest.fixture
def scratch(created: Volume) -> Volume:
    """A volume that is ephemeral, mounted, and has something in it, also in a snapshot."""
    volume = Volume(created.bench, created.home, "scratch").create("--ephemeral", "--size", "1G").mount()
    fill(volume)
    return volume


def fill(volume: Volume) -> None:
    (volume.path / "file").write_bytes(SECRET)
    volume.command("snapshot", "before")
    (volume.path / "file").write_bytes(SECRET[::-1])
    volume.command("flush", "1")


def is_empty(volume: Volume) -> bool:
    """Whether it is as new when it is mounted."""
    volume.mount()
    try:
        inside = volume.path / ".fusevol" / "snapshots"
        return os.listdir(volume.path) == [] and os.listdir(inside) == [] and volume.told("used_size") < 1 << 20
    finally:
        volume.umount()


def stored(volume: Volume) -> int:
    """Bytes that its data takes up on disk."""
    files = (volume.home / "volumes").rglob("*")
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


def raw(volume: Volume, size: int = 8 << 20) -> bytes:
    """What is to be read below its filesystem."""

    async def read() -> bytes:
        async with LocalDriver(Home(volume.home)) as driver:
            return bytes(await driver.read((await driver.resolve(volume.name)).id, size, 0))

    return trio.run(read)


def test_it_is_a_volume_like_any_other_while_it_is_mounted(scratch: Volume) -> None:
    assert "ephemeral: " in scratch.fusevol("inspect", "scratch")
    (scratch.path / "file").write_text("damaged")
    scratch.fusevol("restore", "scratch@before")
    assert (scratch.path / "file").read_bytes() == SECRET
    scratch.check()
    scratch.umount()
    assert is_empty(scratch)


def test_unmounting_empties_it(scratch: Volume) -> None:
    scratch.umount()
    assert stored(scratch) < 1 << 20
    assert raw(scratch) == bytes(8 << 20)
    assert json.loads(scratch.fusevol("snapshots", "scratch", "--json")) == []
    assert is_empty(scratch)
    fill(scratch.mount())
    scratch.umount()
    assert is_empty(scratch)
    scratch.check()
    scratch.fusevol("rm", "scratch")


def test_ending_its_process_empties_it(scratch: Volume) -> None:
    os.kill(scratch.server, signal.SIGTERM)
    until(lambda: not scratch.bench.servers(), "the process to end")
    assert stored(scratch) < 1 << 20
    assert is_empty(scratch)


def commands(volume: Volume) -> dict[str, Callable[[], object]]:
    """What comes first after its process was killed."""
    return {
        "mount": lambda: None,
        "gc": lambda: volume.fusevol("gc"),
        "read": lambda: raw(volume),
        "keep": lambda: volume.fusevol("set", "scratch", "--no-ephemeral"),
    }


@pytest.mark.parametrize("first", ["mount", "gc", "read", "keep"])
def test_killing_its_process_empties_it_for_whoever_comes_next(scratch: Volume, first: str) -> None:
    scratch.kill()
    commands(scratch)[first]()
    if first != "mount":
        assert raw(scratch) == bytes(8 << 20)
        assert stored(scratch) < 1 << 20
        assert json.loads(scratch.fusevol("inspect", "scratch", "--json"))["snapshots"] == 0
    assert is_empty(scratch)


def test_what_is_to_be_kept_after_all_is_kept(scratch: Volume) -> None:
    scratch.fusevol("set", "scratch", "--no-ephemeral")
    scratch.umount()
    scratch.mount()
    assert (scratch.path / "file").read_bytes() == SECRET[::-1]
    scratch.kill()
    scratch.mount()
    assert (scratch.path / ".fusevol/snapshots/before/file").read_bytes() == SECRET


def test_what_makes_no_sense_with_it_is_refused(scratch: Volume, created: Volume, place: Path) -> None:
    path = place / "snap"
    path.mkdir()
    for words in (
        ("create", "x", "--ephemeral", "--snap-interval", "5"),
        ("create", "x", "--ephemeral", "--snap-schedule", "daily=03:00"),
        ("create", "x", "--ephemeral", "--opt", "mount=ro"),
        ("create", "x", "--ephemeral", "--from", created.name),
        ("create", "x", "--from", "scratch"),
        ("clone", "scratch@before", "x"),
        ("set", "scratch", "--snap-interval", "5"),
        ("set", "web", "--opt", "ephemeral=true"),
        ("mount", "scratch@before", path),
    ):
        assert "ephemeral" in scratch.refused(*words)
    assert [volume["name"] for volume in json.loads(scratch.fusevol("ls", "--json"))] == ["scratch", "web"]
