"""Copies that are interrupted, or get in each other's way: nothing needed is lost, and there is always a way on."""

import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from fusevol.api import LocatorUpdate, SpecUpdate, VolumeLocator, VolumeSpec, VolumeState
from fusevol.driver import LocalDriver, snapmounts
from fusevol.driver.snapshots import HALF_LABEL
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    NoSpace,
    SnapshotNotFound,
    VolumeAttachedOnRemoteNode,
    VolumeBusy,
)
from fusevol.home import Home
from fusevol.log import LogVolume, Manifest, read_manifest
from fusevol.log.attachment import update_manifest
from fusevol.store import Process
from tests.unit.copies import breaking, contents, copy, home_with_far, snapshots, unfinished
from tests.unit.driving import BLOCK, create, get, read, snapshot, write
from tests.unit.volumes import block_bytes


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_far(tmp_path)


async def test_a_copy_that_was_interrupted_goes_on(driver: LocalDriver) -> None:
    await unfinished(driver)
    done = await copy(driver, "web@second")
    # What was on its way when it failed may not have been there.
    assert 20 * BLOCK <= done.written < 40 * BLOCK
    assert await snapshots(driver, "copy") == ["first", "second"]

    async def same(log: LogVolume) -> None:
        for leaf in range(40):
            assert await log.read(BLOCK, leaf * 1024 * BLOCK) == block_bytes(("second", leaf))
        async with log.view("first") as view:
            assert await view.read(BLOCK, 0) == block_bytes(("first", 0))

    await driver.context.look(await driver.resolve("copy"), same)
    assert (await driver.resolve("copy")).state is VolumeState.AVAILABLE


async def test_an_unfinished_copy_is_used_by_its_snapshots_alone(driver: LocalDriver, tmp_path: Path) -> None:
    await unfinished(driver)
    made = await driver.resolve("copy")
    assert made.state is VolumeState.RESTORE
    assert any("unfinished copy" in problem for problem in (await driver.upkeep.overview()).problems)
    (tmp_path / "mnt").mkdir()
    with pytest.raises(VolumeBusy, match='"copy" is an unfinished copy') as caught:
        await driver.mount(made.id, str(tmp_path / "mnt"))
    assert "fusevol copy SOURCE copy" in str(caught.value.hint)
    for refused in (
        driver.read(made.id, BLOCK, 0),
        driver.write(made.id, b"x", 0),
        create(driver, "clone", made.id),
        snapshot(driver, made.id, "mine"),
        driver.contents.shares(made),
        copy(driver, "copy", "another"),
    ):
        with pytest.raises(VolumeBusy, match="unfinished copy"):
            await refused
    assert (await driver.upkeep.scrub(made)).problems == ()
    first = (await driver.resolve("copy@first")).id
    assert await driver.read(first, BLOCK, 0) == block_bytes(("first", 0))
    clone = await create(driver, "clone", first)
    assert await driver.read(clone, BLOCK, 0) == block_bytes(("first", 0))
    await driver.delete(clone)
    await driver.set(made.id, LocatorUpdate(name="kept"), None)
    await driver.delete(made.id, with_snapshots=True)


async def test_an_unfinished_copy_is_known_for_one_in_another_home(driver: LocalDriver, tmp_path: Path) -> None:
    await unfinished(driver)
    home = Home(tmp_path / "other")
    home.path.mkdir()
    home.config_path.write_text(f'[pools.far]\nbackend = "file"\npath = "{tmp_path}/far"\n')
    async with LocalDriver(home) as other:
        [item] = await other.importing.found()
        record = await other.importing.import_volume(item)
        assert record.state is VolumeState.RESTORE
        with pytest.raises(VolumeBusy, match="unfinished copy"):
            await other.write(record.id, b"x", 0)


async def test_one_on_its_way_to_a_snapshot_that_is_gone_starts_from_the_last_one(
    driver: LocalDriver,
) -> None:
    web = await unfinished(driver)
    await driver.delete((await driver.resolve("web@second")).id)
    await driver.restore(web, (await driver.resolve("web@first")).id)
    await write(driver, web, b"third", 5)
    await snapshot(driver, web, "third")
    await copy(driver, "web@third")
    live, held = await contents(driver, "copy")
    assert live == held["third"] == (await contents(driver, "web"))[0]
    assert not any(found.locator.volume_labels.get("fusevol.copy") for found in await driver.snapshots.of(
        await driver.resolve("copy")
    ))  # fmt: skip


async def test_the_first_copy_of_a_live_volume_goes_on_where_it_was(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    async with driver.context.hold(web) as held, driver.context.writing(held) as log:
        for leaf in range(60):
            await log.write(block_bytes(leaf), leaf * 1024 * BLOCK)
    await driver.create(VolumeLocator(name="copy", volume_labels={"fusevol.pool": "far"}), None, VolumeSpec())
    for _ in range(2):
        with breaking(NoSpace("full")), pytest.raises(NoSpace):
            await copy(driver, "web")
    # The one that it began with is kept; that of the second attempt is not.
    assert len(await snapshots(driver, "web")) == 1
    await write(driver, web, b"new", 5)
    done = await copy(driver, "web")
    assert len(done.copied) == 2
    assert 41 * BLOCK <= done.written < 60 * BLOCK
    assert len(await snapshots(driver, "web")) == len(await snapshots(driver, "copy")) == 1
    assert (await contents(driver, "copy"))[0] == (await contents(driver, "web"))[0]


async def test_damage_in_the_source_is_not_copied(driver: LocalDriver, tmp_path: Path) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await snapshot(driver, web, "first")
    await copy(driver, "web@first")
    await write(driver, web, b"precious", 1)
    await snapshot(driver, web, "second")
    damaged = False
    for segment in (driver.context.home.path / "volumes" / web).rglob("*"):
        if segment.is_file():
            data = segment.read_bytes()
            if (at := data.find(b"precious")) >= 0:
                segment.write_bytes(data[:at] + b"P" + data[at + 1 :])
                damaged = True
    assert damaged
    with pytest.raises(CorruptData, match='volume "web"'):
        await copy(driver, "web@second")
    assert await snapshots(driver, "copy") == ["first"]


async def test_a_failure_after_the_last_step_does_not_cost_what_both_have_in_common(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = await create(driver, "web")
    for number in range(3):
        await write(driver, web, b"%d" % number, number)
        with monkeypatch.context() as patch:
            if number == 1:
                patch.setattr(driver.snapshots, "refuse_if_mounted", _fail)
            await (_fails(copy(driver, "web")) if number == 1 else copy(driver, "web"))
    done = await copy(driver, "web")
    assert done.written == 0
    assert await read(driver, done.volume.id, 2) == b"2"


async def _fail(*_: Any, **__: Any) -> None:
    raise ZeroDivisionError


async def _fails(work: Awaitable[Any]) -> None:
    with pytest.raises(ZeroDivisionError):
        await work


async def test_an_unfinished_copy_can_be_given_up(driver: LocalDriver) -> None:
    web = await unfinished(driver)
    await driver.delete(web, with_snapshots=True)
    made = (await driver.resolve("copy")).id
    assert await driver.restore_keeping(made, (await driver.resolve("copy@first")).id) is None
    assert (await get(driver, made)).state is VolumeState.AVAILABLE
    assert await snapshots(driver, "copy") == ["first"]
    assert await driver.read(made, BLOCK, 0) == block_bytes(("first", 0))
    assert await driver.restore_keeping(made, (await driver.resolve("copy@first")).id) is not None


async def test_room_can_be_made_in_an_unfinished_copy(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for name in ("old", "first"):
        await write(driver, web, name.encode())
        await snapshot(driver, web, name)
    await copy(driver, "web@first")
    await write(driver, web, b"second", 5000)
    await snapshot(driver, web, "second")
    with breaking(NoSpace("full"), 0), pytest.raises(NoSpace):
        await copy(driver, "web@second")
    await driver.delete((await driver.resolve("copy@old")).id)
    assert (await driver.upkeep.gc(await driver.resolve("copy"))).note == ""
    await copy(driver, "web@second")
    assert await snapshots(driver, "copy") == ["first", "second"]


async def test_the_way_out_is_said_where_what_both_had_in_common_is_gone(driver: LocalDriver) -> None:
    await unfinished(driver)
    await driver.delete((await driver.resolve("web@first")).id)
    with pytest.raises(AlreadyExists, match="no snapshot in common") as caught:
        await copy(driver, "web@second")
    assert "fusevol rm --snapshots copy" in str(caught.value.hint)


async def test_an_unfinished_copy_of_another_home_can_be_taken_over(driver: LocalDriver, tmp_path: Path) -> None:
    await unfinished(driver)
    made = (await driver.resolve("copy")).id
    gone = Process(pid=1, start=1, boot="another", node="far", machine="another")
    place = {"process": msgspec.to_builtins(gone), "home": "/elsewhere", "place": "1:2"}

    def hold(manifest: Manifest) -> Manifest:
        return msgspec.structs.replace(manifest, holder=json.dumps(place))

    backend = driver.context.backend("far")
    await update_manifest(backend, made, hold)
    with pytest.raises(VolumeAttachedOnRemoteNode):
        await copy(driver, "web@second")
    (tmp_path / "mnt").mkdir()
    with pytest.raises(VolumeBusy, match="unfinished copy"):
        await driver.mounting.mount(made, str(tmp_path / "mnt"), force=True)
    await copy(driver, "web@second")
    await update_manifest(backend, made, hold)
    await driver.break_lease(made)
    assert not (await read_manifest(backend, made))[0].holder


async def test_what_somebody_else_made_of_a_new_copy_is_kept(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")

    async def take(volume: Any, target: Any, name: str) -> Any:
        async with driver.context.writing(target) as log:
            await log.write(bytes(range(256)) * 16, 0)
        raise VolumeBusy("in use")

    monkeypatch.setattr(driver.copying, "_take", take)
    with pytest.raises(VolumeBusy):
        await copy(driver, "web")
    assert (await driver.resolve("copy")).state is VolumeState.AVAILABLE


async def test_a_snapshot_of_the_copy_that_is_in_use_stays_until_the_next_time(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await copy(driver, "web")
    [name] = await snapshots(driver, "copy")
    record = await driver.resolve(f"copy@{name}")
    await driver.context.change(record.id, lambda now: snapmounts.mounted(now, "/mnt/old", driver.store.owner))
    await write(driver, web, b"two")
    await copy(driver, "web")
    assert name in await snapshots(driver, "copy")
    await driver.context.change(record.id, lambda now: snapmounts.unmounted(now, "/mnt/old"))
    await write(driver, web, b"three")
    await copy(driver, "web")
    assert len(await snapshots(driver, "copy")) == 1


async def test_one_that_cannot_be_deleted_does_not_keep_the_others(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"0")
    await copy(driver, "web")
    [name] = await snapshots(driver, "web")
    await create(driver, "clone", (await driver.resolve(f"web@{name}")).id)
    for number in range(4):
        await write(driver, web, b"%d" % number)
        await copy(driver, "web")
    assert len(await snapshots(driver, "web")) == 2


async def test_a_copy_that_went_back_is_not_taken_for_what_it_was_becoming(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two volumes share a snapshot with a copy that is on its way to one of them, and goes to the other meanwhile."""
    web = await create(driver, "web")
    for name in ("base", "shared", "goal"):
        for leaf in range(2 if name == "goal" else 1):
            await write(driver, web, name.encode(), leaf * 1024 + (name == "goal"))
        await snapshot(driver, web, name)
    await copy(driver, "web@shared", "other", only=True)
    await copy(driver, "web@shared")
    await driver.restore((await driver.resolve("copy")).id, (await driver.resolve("copy@base")).id)
    with breaking(BackendError("no line"), 1), pytest.raises(BackendError):
        await copy(driver, "web@goal")
    # From here on it goes to the other one, and fails right after it went back.
    with monkeypatch.context() as patch:
        patch.setattr(LogVolume, "delete_snapshot", _fail)
        with pytest.raises(ZeroDivisionError):
            await copy(driver, "other@shared")
    assert HALF_LABEL not in str(await driver.snapshots.of(await driver.resolve("copy")))
    await driver.delete((await driver.resolve("web@shared")).id)
    await copy(driver, "web@goal")
    assert (await contents(driver, "copy"))[0] == (await contents(driver, "web"))[0]
    assert (await contents(driver, "copy"))[1]["goal"] == (await contents(driver, "web"))[0]


async def test_no_record_is_made_of_what_was_half_a_copy(driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    await unfinished(driver)
    with monkeypatch.context() as patch:
        patch.setattr(LogVolume, "delete_snapshot", _fail)
        with pytest.raises(ZeroDivisionError):
            await copy(driver, "web@first")
    assert await snapshots(driver, "copy") == ["first"]
    with pytest.raises(SnapshotNotFound):
        await driver.resolve("copy@before-restore-2")
    await copy(driver, "web@second")

    async def names(log: LogVolume) -> list[str]:
        return [found.name for found in log.snapshots()]

    assert await driver.context.look(await driver.resolve("copy"), names) == ["first", "second"]


async def test_a_copy_of_the_live_volume_can_go_on_after_the_users_snapshot_is_gone(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await copy(driver, "web")
    await write(driver, web, b"two")
    mine = await snapshot(driver, web, "mine")
    await copy(driver, "web@mine")
    await driver.delete(mine)
    await write(driver, web, b"three")
    done = await copy(driver, "web")
    assert await read(driver, done.volume.id) == b"three"
    assert "mine" in await snapshots(driver, "copy")


async def test_gc_elsewhere_leaves_the_snapshot_of_a_copy_it_does_not_know(driver: LocalDriver, tmp_path: Path) -> None:
    await create(driver, "web")
    await copy(driver, "web")
    other_home = Home(tmp_path / "other")
    other_home.path.mkdir()
    other_home.config_path.write_text(
        f'[pools.default]\nbackend = "file"\npath = "{driver.context.home.path}/volumes"\n'
    )
    async with LocalDriver(other_home) as other:
        [item] = await other.importing.found()
        await other.importing.import_volume(item)
        await other.upkeep.gc(await other.resolve("web"))
    assert len(await snapshots(driver, "web")) == 1


async def test_the_size_grows_along(driver: LocalDriver) -> None:
    web = await driver.create(VolumeLocator(name="web"), None, VolumeSpec(size=1 << 20))
    await write(driver, web, b"one")
    made = (await copy(driver, "web")).volume.id
    for wanted, found in ((1 << 30, 1 << 30), (1 << 25, 1 << 30), (0, 0)):
        await driver.set(web, None, SpecUpdate(size=wanted))
        await write(driver, web, b"%d" % wanted)
        await copy(driver, "web")
        assert (await get(driver, made)).spec.size == found


async def test_a_snapshot_that_the_copy_has_is_what_it_becomes(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for name in ("first", "second"):
        await write(driver, web, name.encode())
        await snapshot(driver, web, name)
    made = (await copy(driver, "web@second")).volume.id
    for name in ("first", "second"):
        done = await copy(driver, f"web@{name}")
        assert (str(done.source), done.copied) == (f"web@{name}", ())
        assert await read(driver, made) == name.encode()
    assert await snapshots(driver, "copy") == ["first", "second"]


async def test_a_moved_volume_has_what_its_other_copies_need(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await copy(driver, "web", "backup")
    await copy(driver, "web", "moved")
    await driver.delete(web, with_snapshots=True)
    moved = (await driver.resolve("moved")).id
    await driver.set(moved, LocatorUpdate(name="web"), None)
    await write(driver, moved, b"two", 1)
    done = await copy(driver, "web", "backup")
    assert done.written == BLOCK
    # Besides what the two have in common now there is what was taken of the volume that is gone.
    assert len(await snapshots(driver, "backup")) == 2


async def test_a_copy_of_what_has_not_changed_leaves_no_snapshot(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    first = await copy(driver, "web")
    for _ in range(3):
        done = await copy(driver, "web")
        assert (done.source, done.copied, done.written) == (first.source, (), 0)
    assert len(await snapshots(driver, "web")) == len(await snapshots(driver, "copy")) == 1


async def test_copies_at_once_to_one_volume_wait_or_are_refused(driver: LocalDriver, home: Home) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    refused = []

    async def run() -> None:
        async with LocalDriver(home) as another:
            try:
                await copy(another, "web")
            except VolumeBusy as error:
                refused.append(error)

    for number in range(5):
        await write(driver, web, b"%d" % number)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run)
        assert len(refused) < 3 * (number + 1)
        assert await read(driver, (await driver.resolve("copy")).id) == b"%d" % number
        assert await snapshots(driver, "web") == await snapshots(driver, "copy")


async def test_what_was_written_to_the_source_is_not_lost_by_copying_the_wrong_way_round(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await copy(driver, "web")
    await write(driver, web, b"precious", 3)
    with breaking(BackendError("no line"), 0), pytest.raises(BackendError):
        await copy(driver, "web")
    [first] = await snapshots(driver, "copy")
    await driver.restore((await driver.resolve("copy")).id, (await driver.resolve(f"copy@{first}")).id)
    with pytest.raises(AlreadyExists, match="has been written to"):
        await driver.copying.copy(await driver.resolve("copy"), "web")
    assert await read(driver, web, 3) == b"precious"


async def test_a_copy_of_a_copy_leaves_what_that_needs_itself(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for number in range(4):
        await write(driver, web, b"%d" % number)
        done = await copy(driver, "web", "one")
        assert done.written == BLOCK
        assert (await copy(driver, "one", "two")).written == BLOCK
    assert await read(driver, (await driver.resolve("two")).id) == b"3"
    assert (len(await snapshots(driver, "web")), len(await snapshots(driver, "one"))) == (1, 2)


async def test_snapshots_come_along_where_nothing_was_written_since(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    first = await snapshot(driver, web, "first")
    await copy(driver, "web")
    await write(driver, web, b"monday")
    await snapshot(driver, web, "monday")
    await driver.restore(web, first)
    done = await copy(driver, "web")
    assert "monday" in done.copied
    assert (await driver.read((await driver.resolve("copy@monday")).id, 6, 0)) == b"monday"


async def test_another_snapshot_can_be_copied_first_where_the_first_one_failed(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for leaf in (0, 1024, 2048):
        await write(driver, web, b"first", leaf)
    await snapshot(driver, web, "first")
    async with driver.context.hold(web) as held, driver.context.writing(held) as log:
        await log.discard(1 << 63, 0)
    await write(driver, web, b"second", 4096)
    await snapshot(driver, web, "second")
    with breaking(BackendError("no line"), 2), pytest.raises(BackendError):
        await copy(driver, "web@first")
    await copy(driver, "web@second", only=True)
    assert await snapshots(driver, "copy") == ["second"]


async def test_what_fails_on_the_way_back_can_be_given_up(driver: LocalDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    web = await create(driver, "web")
    for name in ("first", "second"):
        await write(driver, web, name.encode())
        await snapshot(driver, web, name)
    made = (await copy(driver, "web@second")).volume.id
    with monkeypatch.context() as patch:
        patch.setattr(LogVolume, "restore", _fail)
        with pytest.raises(ZeroDivisionError):
            await copy(driver, "web@first")
    assert (await get(driver, made)).state is VolumeState.RESTORE
    assert await driver.restore_keeping(made, (await driver.resolve("copy@second")).id) is None
    assert await read(driver, made) == b"second"
