"""Snapshots by schedule: taken when they are due, kept as long as they are to be, and never at the cost of others."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
import trio
from trio.testing import MockClock

from fusevol.backends.memory import MemoryBackend
from fusevol.errors import NoSpace, VolumeBusy
from fusevol.log import LogVolume, Snapshot, clone_volume, create_volume, delete_volume, open_volume
from fusevol.mount.schedule import SCHEDULE_LABEL, parse_schedule
from fusevol.mount.scheduler import Scheduler
from fusevol.mount.served import Served
from fusevol.mount.settings import Outside, Settings

ZONE = ZoneInfo("Europe/Berlin")
#: A Friday, at a moment when nothing is due.
START = datetime(2026, 11, 20, 12, 0, 30, tzinfo=ZONE).timestamp()
HOUR, DAY = 3600.0, 86400.0


class Record(Outside):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    async def note(self, failure: str) -> None:
        self.notes.append(failure)


class Mount:
    """Stands for `Served`: a volume, without a mount of it."""

    def __init__(self, volume: LogVolume) -> None:
        self.volume = volume
        self.name = "web"
        self.failure: Exception | None = None
        self.in_use: set[str] = set()

    async def snapshot_if_changed(self, name: str, labels: dict[str, str], since: Snapshot | None) -> Snapshot | None:
        if self.failure:
            raise self.failure
        await self.volume.flush()
        if since is not None and self.volume.unchanged_since(since):
            return None
        return await self.volume.snapshot(name, labels)

    async def delete_snapshot(self, name: str) -> None:
        if name in self.in_use:
            raise VolumeBusy("mounted by itself")
        await self.volume.delete_snapshot(name)


class World:
    """A volume with a schedule, on a day that passes as fast as the test wants it."""

    def __init__(self, backend: MemoryBackend, mount: Mount) -> None:
        self.backend = backend
        self.mount = mount
        self.volume = mount.volume
        self.record = Record()
        self.ahead = 0.0
        self.scheduler: Scheduler | None = None

    def now(self) -> float:
        return START + trio.current_time() + self.ahead

    async def write(self) -> None:
        await self.volume.write(trio.current_time().hex().encode().ljust(4096), 0)

    def names(self) -> list[str]:
        return [snapshot.name for snapshot in self.volume.snapshots()]

    @asynccontextmanager
    async def mounted(self, schedule: str = "", interval: int = 0, created: float = START) -> AsyncIterator[Scheduler]:
        settings = Settings(snapshot_schedule=schedule, snapshot_interval=interval, created=created)
        scheduler = Scheduler(cast(Served, self.mount), self.record.note, settings, self.now)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            yield scheduler
            nursery.cancel_scope.cancel()


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    backend = MemoryBackend()
    await create_volume(backend, "web")
    async with open_volume(backend, "web") as volume:
        world = World(backend, Mount(volume))
        stamped: Any = SimpleNamespace(time_ns=lambda: int(world.now() * 1e9))
        monkeypatch.setattr("fusevol.log.commit.time", stamped)
        yield world
    monkeypatch.undo()
    time.tzset()


async def test_snapshots_are_taken_at_their_times_and_only_so_many_kept(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.mounted("daily=03:00,2"):
        for day in range(5):
            await world.write()
            await trio.sleep(DAY)
            assert len(world.names()) == min(day + 1, 2)
    assert world.names() == ["daily-20261124-0300", "daily-20261125-0300"]
    assert all(snapshot.labels == {SCHEDULE_LABEL: "daily"} for snapshot in world.volume.snapshots())
    assert world.record.notes == []


async def test_nothing_is_taken_where_nothing_was_written(world: World, autojump_clock: MockClock) -> None:
    await world.write()
    async with world.mounted("daily=03:00", interval=60):
        await trio.sleep(3 * DAY)
        assert world.names() == ["interval-20261120-1300", "daily-20261121-0300"]
        await world.write()
        await trio.sleep(DAY)
        assert world.names()[2:] == ["interval-20261123-1300", "daily-20261124-0300"]


async def test_each_kind_has_its_snapshots_though_another_has_just_taken_one(
    world: World, autojump_clock: MockClock
) -> None:
    await world.write()
    async with world.mounted("daily=04:00,1;weekly=Sunday@04:00,3;monthly=22@04:00"):
        await trio.sleep(2 * DAY)
        await world.write()
        await trio.sleep(DAY)
    assert world.names() == ["weekly-20261122-0400", "monthly-20261122-0400", "daily-20261123-0400"]


async def test_parts_of_one_kind_keep_theirs_together(world: World, autojump_clock: MockClock) -> None:
    async with world.mounted("daily=03:00,1;daily=15:00,2"):
        for _ in range(6):
            await world.write()
            await trio.sleep(DAY / 2)
    assert world.names() == ["daily-20261122-0300", "daily-20261122-1500", "daily-20261123-0300"]


async def test_snapshots_of_others_are_neither_deleted_nor_in_the_way(world: World, autojump_clock: MockClock) -> None:
    await world.volume.snapshot("daily-20261121-0300")
    await world.volume.snapshot("mine", {"schedule": "daily"})
    async with world.mounted("daily=03:00,1"):
        for made in ("daily-20261121-0300-2", "daily-20261122-0300", "daily-20261123-0300"):
            await world.write()
            await trio.sleep(DAY)
            assert world.names() == ["daily-20261121-0300", "mine", made]


async def test_a_snapshot_that_is_in_use_stays_until_it_is_not(world: World, autojump_clock: MockClock) -> None:
    async with world.mounted("daily=03:00,1"):
        await world.write()
        await trio.sleep(DAY)
        await clone_volume(world.backend, "web", "daily-20261121-0300", "copy")
        await world.write()
        await trio.sleep(DAY)
        world.mount.in_use.add("daily-20261122-0300")
        await world.write()
        await trio.sleep(DAY)
        assert world.names() == ["daily-20261121-0300", "daily-20261122-0300", "daily-20261123-0300"]
        assert world.record.notes == []
        await delete_volume(world.backend, "copy")
        world.mount.in_use.clear()
        await trio.sleep(DAY)
        assert world.names() == ["daily-20261123-0300"]


async def test_what_fails_is_told_and_tried_again_until_it_is_done(world: World, autojump_clock: MockClock) -> None:
    async with world.mounted("daily=03:00") as scheduler:
        await world.write()
        world.mount.failure = NoSpace("the disk is full")
        await trio.sleep(DAY)
        said = "the daily snapshot of 2026-11-21T02:00:00Z could not be taken: the disk is full"
        assert world.record.notes == [said]
        assert scheduler.state()["error"] == said
        assert scheduler.state()["next"] == "2026-11-21T02:00:00Z"
        world.mount.failure = None
        await trio.sleep(120)
        assert world.record.notes == [said, ""]
        assert world.names() in (["daily-20261121-1201"], ["daily-20261121-1200"])
        assert scheduler.state() == {"next": "2026-11-22T02:00:00Z", "last": world.names()[0], "error": None}


async def test_what_came_due_while_the_volume_was_not_mounted_is_made_up_for_once(
    world: World, autojump_clock: MockClock
) -> None:
    await world.write()
    async with world.mounted("daily=03:00;periodic=60"):
        await trio.sleep(DAY)
    before = world.names()
    assert before == ["periodic-20261120-1300", "daily-20261121-0300"]
    await trio.sleep(3 * DAY)
    await world.write()
    async with world.mounted("daily=03:00;periodic=60"):
        await trio.sleep(60)
        assert world.names() == [*before, "daily-20261124-1200", "periodic-20261124-1200"]
        await world.write()
        await trio.sleep(HOUR)
        assert world.names()[4:] == ["periodic-20261124-1300"]
    await trio.sleep(DAY)
    async with world.mounted("daily=03:00"):
        await trio.sleep(60)
        assert world.names()[5:] == ["daily-20261125-1301"]
    await trio.sleep(DAY)
    async with world.mounted("daily=03:00"):
        # Nothing was written since.
        await trio.sleep(60)
        assert len(world.names()) == 6


async def test_a_schedule_that_changes_holds_from_then_on(world: World, autojump_clock: MockClock) -> None:
    await world.write()
    async with world.mounted("daily=03:00", created=START - 30 * DAY) as scheduler:
        await trio.sleep(1)
        assert world.names() == ["daily-20261120-1200"]
        await world.write()
        scheduler.follow(parse_schedule("daily=03:00;weekly=Sunday@04:00;monthly=1@05:00"))
        await trio.sleep(1)
        assert len(world.names()) == 1
        scheduler.follow(parse_schedule("weekly=Saturday@05:00", interval=600))
        await trio.sleep(DAY)
        assert world.names()[1:] == ["interval-20261120-1300", "weekly-20261121-0500"]
        scheduler.follow(parse_schedule(""))
        await world.write()
        await trio.sleep(30 * DAY)
        assert len(world.names()) == 3
        assert scheduler.next() is None


async def test_a_clock_that_is_set_back_or_forward_does_not_stop_it(world: World, autojump_clock: MockClock) -> None:
    async with world.mounted("periodic=60,9"):
        world.ahead = 400 * DAY
        await world.write()
        await trio.sleep(2 * HOUR)
        assert world.names() == ["periodic-20271225-1200"]
        world.ahead = 0
        await trio.sleep(60)
        await world.write()
        await trio.sleep(2 * HOUR)
        assert world.names()[1:] == ["periodic-20261120-1500"]


async def test_an_idle_schedule_looks_at_the_clock_once_a_minute_and_none_never(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def counted(now: Callable[[], float] = world.now) -> float:
        nonlocal looks
        looks += 1
        return now()

    monkeypatch.setattr(world, "now", counted)
    async with world.mounted("monthly=1@00:00"):
        await trio.sleep(DAY)
        assert looks < 5 * 24 * 60
    async with world.mounted():
        looks = 0
        await trio.sleep(DAY)
        assert looks <= 2
