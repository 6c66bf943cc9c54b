"""What the local driver does with volumes that are not mounted."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from fusevol.api import (
    IoStrategy,
    LocatorUpdate,
    Source,
    SpecUpdate,
    Volume,
    VolumeLocator,
    VolumeRef,
    VolumeSpec,
    VolumeState,
    VolumeStatus,
)
from fusevol.driver import LocalDriver, overview
from fusevol.driver.labels import POOL_LABEL
from fusevol.driver.snapshots import AUTO_LABEL
from fusevol.errors import (
    AlreadyExists,
    InvalidArgument,
    NotSupported,
    SnapshotNotFound,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
)
from fusevol.home import Home, Pool
from tests.unit.driving import BLOCK, create, get, names, read, snapshot, write


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "config.toml").write_text(
        f'lock_timeout = 0.05\n[pools.other]\nbackend = "file"\npath = "{tmp_path}/other"\n'
        '[pools.ram]\nbackend = "memory"\n[pools.wrong]\nbackend = "file"\npaht = "/x"\n'
    )
    return Home(tmp_path)


@pytest.fixture
async def driver(home: Home) -> AsyncIterator[LocalDriver]:
    async with LocalDriver(home, command="test") as driver:
        yield driver


def in_pool(name: str) -> dict[str, Any]:
    return {"fusevol.pool": name}


# -- create -------------------------------------------------------------------------------------------


async def test_volumes_are_listed_without_reading_the_records_of_their_snapshots(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = await create(driver, "web")
    for number in range(5):
        await snapshot(driver, web, f"s{number}")
    read: list[str] = []
    decode = driver.store._decode

    def counted(row: Any) -> Volume:
        read.append(row[0])
        return decode(row)

    monkeypatch.setattr(driver.store, "_decode", counted)
    [(volume, count)] = await driver.store.volumes()
    assert (volume.id, count) == (web, 5)
    overview = await driver.upkeep.overview()
    assert (overview.volumes, overview.snapshots) == (1, 5)
    assert set(read) == {web}


async def test_a_new_volume_is_available_and_empty(driver: LocalDriver) -> None:
    volume = await get(driver, await create(driver, "web", size=1 << 30, app="shop"))
    assert (volume.state, volume.status) == (VolumeState.AVAILABLE, VolumeStatus.UP)
    assert (volume.locator.name, volume.spec.size) == ("web", 1 << 30)
    assert volume.locator.volume_labels == {"app": "shop", "fusevol.pool": "default"}
    assert await read(driver, volume.id) == b""


async def test_creating_it_again_gives_the_same_volume(driver: LocalDriver) -> None:
    first = await create(driver, "web", size=1 << 30)
    assert await create(driver, "web", size=1 << 30) == first
    with pytest.raises(AlreadyExists, match='"web"'):
        await create(driver, "web", size=2 << 30)
    with pytest.raises(AlreadyExists, match='"web"'):
        await driver.create(VolumeLocator(name="web"), None, VolumeSpec(size=1 << 30), exist_ok=False)


async def test_of_many_who_create_one_name_at_once_one_wins(driver: LocalDriver, home: Home) -> None:
    results: list[object] = []

    async def attempt() -> None:
        async with LocalDriver(home) as other:
            try:
                locator = VolumeLocator(name="web")
                results.append(await other.create(locator, None, VolumeSpec(), exist_ok=False))
            except (AlreadyExists, VolumeBusy) as error:
                results.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(attempt)
    assert sum(isinstance(result, str) for result in results) == 1
    assert await names(driver) == ["web"]
    assert len(await driver.context.backend("default").list()) == 1


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-a", "a\n", "ä", "x" * 129, "a@b"])
async def test_a_bad_name_is_refused_and_nothing_is_made(driver: LocalDriver, name: str) -> None:
    with pytest.raises(InvalidArgument):
        await create(driver, name)
    assert await names(driver) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", 512), ("snapshot_schedule", "policy=gold"),
        ("shared", True), ("encrypted", True), ("compressed", True), ("dedupe", True), ("checksummed", False),
        ("format", "ext4"), ("io_strategy", IoStrategy(direct_io=True)),
        ("cos", "high"), ("io_profile", "db"),
    ],
)  # fmt: skip
async def test_what_would_have_no_effect_is_refused_by_name(driver: LocalDriver, field: str, value: Any) -> None:
    with pytest.raises(NotSupported, match=f"^{field}: "):
        await driver.create(VolumeLocator(name="web"), None, VolumeSpec(**{field: value}))
    assert await names(driver) == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"snapshot_schedule": "hourly"}, "^snapshot_schedule: "),
        ({"snapshot_interval": 1 << 40}, "^snapshot_interval: "),
        ({"ephemeral": True, "snapshot_interval": 5}, "^ephemeral: "),
        ({"ephemeral": True, "snapshot_schedule": "daily=03:00"}, "^ephemeral: "),
        ({"ephemeral": True, "mount_options": {"ro": ""}}, "^ephemeral: "),
    ],
)
async def test_what_makes_no_sense_is_refused_when_it_is_made_and_when_it_is_changed(
    driver: LocalDriver, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said):
        await driver.create(VolumeLocator(name="web"), None, VolumeSpec(**fields))
    web = await driver.create(VolumeLocator(name="web"), None, VolumeSpec(ephemeral=fields.get("ephemeral", False)))
    with pytest.raises(InvalidArgument, match=said):
        await driver.set(web, LocatorUpdate(name="www"), SpecUpdate(**fields))
    assert await names(driver) == ["web"]


async def test_an_ephemeral_volume_is_made_so_and_has_no_clones_and_no_bytes_of_its_own(driver: LocalDriver) -> None:
    web = await driver.create(VolumeLocator(name="web"), None, VolumeSpec(block_size=4096))
    scratch = await driver.create(VolumeLocator(name="scratch"), None, VolumeSpec(ephemeral=True))
    with pytest.raises(NotSupported, match=r"^ephemeral: "):
        await driver.set(web, None, SpecUpdate(ephemeral=True))
    with pytest.raises(NotSupported, match=r"^ephemeral: "):
        await driver.create(VolumeLocator(name="x"), Source(parent=web), VolumeSpec(ephemeral=True))
    with pytest.raises(NotSupported, match=r"^ephemeral: "):
        await driver.create(VolumeLocator(name="x"), Source(parent=scratch), VolumeSpec())
    with pytest.raises(NotSupported, match=r"^ephemeral: "):
        await driver.snapshot(scratch, readonly=False, locator=VolumeLocator(name="x"))
    with pytest.raises(NotSupported, match="scratch"):
        await driver.write(scratch, b"x", 0)
    assert sorted(await names(driver)) == ["scratch", "web"]
    await driver.set(scratch, None, SpecUpdate(ephemeral=False))
    assert await driver.write(scratch, b"x", 0) == 1


@pytest.mark.parametrize("label", ["fusevol.clone", "-x", "a b", "", "x" * 129])
async def test_a_bad_or_reserved_label_is_refused(driver: LocalDriver, label: str) -> None:
    with pytest.raises(InvalidArgument):
        await create(driver, "web", **dict[str, Any]({label: "1"}))
    with pytest.raises(InvalidArgument):
        await create(driver, "web", label="line\nbreak")


async def test_a_volume_is_made_in_the_pool_that_its_label_names(driver: LocalDriver, home: Home) -> None:
    volume_id = await create(driver, "web", **in_pool("other"))
    assert (home.path / "other" / volume_id).is_dir()
    with pytest.raises(InvalidArgument, match='no pool "nope"'):
        await create(driver, "db", **in_pool("nope"))
    with pytest.raises(InvalidArgument, match=r'pool "wrong".*paht'):
        await create(driver, "db", **in_pool("wrong"))
    with pytest.raises(NotSupported, match='pool "ram"'):
        await create(driver, "db", **in_pool("ram"))
    assert await names(driver) == ["web"]


# -- snapshots, clones, restore -----------------------------------------------------------------------


async def test_a_snapshot_keeps_what_was_there(driver: LocalDriver) -> None:
    web = await create(driver, "web", size=1 << 20)
    await write(driver, web, b"one")
    taken = await get(driver, await snapshot(driver, web, "before", why="upgrade"))
    assert taken.is_snapshot
    assert (taken.locator.name, taken.source.parent, taken.spec.size) == ("before", web, 1 << 20)
    assert taken.locator.volume_labels["why"] == "upgrade"
    assert await driver.snap_enumerate([web], {"why": "upgrade"}) == [taken]
    assert await driver.resolve("web@before") == taken


async def test_a_snapshots_name_is_given_once_per_volume(driver: LocalDriver) -> None:
    web, db = await create(driver, "web"), await create(driver, "db")
    await snapshot(driver, web, "before")
    await snapshot(driver, db, "before")
    with pytest.raises(AlreadyExists, match='volume "web" has a snapshot "before" already'):
        await snapshot(driver, web, "before")


async def test_restore_brings_back_what_was_there_and_keeps_what_is(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    before = await snapshot(driver, web, "before")
    await write(driver, web, b"two")
    kept = await driver.restore_keeping(web, before)
    assert kept
    assert await read(driver, web) == b"one"
    assert kept.locator.volume_labels[AUTO_LABEL] == "restore"
    await driver.restore(web, kept.id)
    assert await read(driver, web) == b"two"


async def test_a_volume_cannot_be_restored_to_what_is_not_its_snapshot(driver: LocalDriver) -> None:
    web, db = await create(driver, "web"), await create(driver, "db")
    of_db = await snapshot(driver, db, "before")
    for wrong in (of_db, db):
        with pytest.raises(InvalidArgument, match='not a snapshot of volume "web"'):
            await driver.restore(web, wrong)


async def test_a_clone_of_a_snapshot_goes_its_own_way(driver: LocalDriver) -> None:
    web = await create(driver, "web", size=1 << 20, app="shop", tier="gold")
    await write(driver, web, b"one")
    before = await snapshot(driver, web, "before", why="test")
    clone = await get(driver, await create(driver, "copy", parent=before, tier="lead"))
    assert clone.is_clone
    assert clone.spec.size == 1 << 20
    assert clone.locator.volume_labels == {"why": "test", "tier": "lead", "fusevol.pool": "default"}
    await write(driver, clone.id, b"two")
    assert [await read(driver, web), await read(driver, clone.id)] == [b"one", b"two"]


async def test_a_clone_of_a_live_volume_starts_as_it_is_now(driver: LocalDriver) -> None:
    web = await create(driver, "web", app="shop")
    await write(driver, web, b"one")
    copy = await driver.snapshot(web, readonly=False, locator=VolumeLocator(name="copy"))
    await write(driver, web, b"two")
    assert await read(driver, copy) == b"one"
    assert (await get(driver, copy)).source.parent == web
    [automatic] = await driver.snapshots.of(await get(driver, web))
    with pytest.raises(VolumeHasSnapshots, match="copy"):
        await driver.delete(automatic.id)
    # It goes with the clone it was taken for.
    await driver.delete(copy)
    assert await driver.snapshots.of(await get(driver, web)) == []
    await driver.delete(web)


async def test_a_clone_is_no_smaller_than_its_parent_and_in_the_same_pool(driver: LocalDriver) -> None:
    web = await create(driver, "web", size=1 << 30)
    with pytest.raises(InvalidArgument, match="smaller"):
        await create(driver, "copy", parent=web, size=1 << 20)
    with pytest.raises(NotSupported, match="same pool"):
        await create(driver, "copy", parent=web, **in_pool("other"))
    with pytest.raises(VolumeNotFound):
        await create(driver, "copy", parent="nope")
    assert await names(driver) == ["web"]


async def test_snapshots_cannot_be_changed_or_snapshotted(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    before = await snapshot(driver, web, "before")
    with pytest.raises(NotSupported):
        await driver.set(before, LocatorUpdate(name="after"), None)
    with pytest.raises(NotSupported):
        await snapshot(driver, before, "again")
    with pytest.raises(NotSupported):
        await driver.restore(before, before)


async def test_snapshots_that_were_taken_behind_the_records_are_found(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    async with driver.context.hold(web) as volume, driver.context.writing(volume) as log:
        await log.snapshot("inside", {"by": "mount"})
    found = await driver.resolve("web@inside")
    assert found.locator.volume_labels["by"] == "mount"
    async with driver.context.hold(web) as volume, driver.context.writing(volume) as log:
        await log.delete_snapshot("inside")
        await log.snapshot("inside")
    again = await driver.resolve("web@inside")
    assert again.id != found.id
    assert await driver.snap_enumerate() == [again]


# -- resolving ----------------------------------------------------------------------------------------


async def test_what_does_not_exist_is_named_in_the_error(driver: LocalDriver) -> None:
    await create(driver, "web")
    with pytest.raises(VolumeNotFound, match='volume "db" does not exist'):
        await driver.resolve("db")
    with pytest.raises(SnapshotNotFound, match='volume "web" has no snapshot "before"'):
        await driver.resolve(VolumeRef("web", "before"))
    with pytest.raises(VolumeNotFound):
        await driver.delete("nope")


# -- set ----------------------------------------------------------------------------------------------


async def test_a_volume_is_renamed_and_labelled_in_place(driver: LocalDriver) -> None:
    web = await create(driver, "web", a="1", b="2")
    await create(driver, "db")
    await driver.set(web, LocatorUpdate(name="www", volume_labels={"a": "", "c": "3"}), None)
    volume = await driver.resolve("www")
    assert volume.id == web
    assert volume.locator.volume_labels == {"b": "2", "c": "3", "fusevol.pool": "default"}
    with pytest.raises(AlreadyExists, match='"db"'):
        await driver.set(web, LocatorUpdate(name="db"), None)
    with pytest.raises(InvalidArgument):
        await driver.set(web, LocatorUpdate(volume_labels={"fusevol.pool": "other"}), None)


async def test_a_volume_grows_and_shrinks_to_what_it_holds(driver: LocalDriver) -> None:
    web = await create(driver, "web", size=10 * BLOCK)
    for block in range(5):
        await write(driver, web, b"x", block)
    for size in (20 * BLOCK, 5 * BLOCK, 0, 7 * BLOCK):
        await driver.set(web, None, SpecUpdate(size=size))
        assert (await get(driver, web)).spec.size == size
    with pytest.raises(InvalidArgument, match="cannot be made smaller"):
        await driver.set(web, None, SpecUpdate(size=4 * BLOCK))
    with pytest.raises(NotSupported, match=r"^compressed: "):
        await driver.set(web, None, SpecUpdate(size=9 * BLOCK, compressed=True))
    assert (await get(driver, web)).spec.size == 7 * BLOCK


# -- delete -------------------------------------------------------------------------------------------


async def test_a_deleted_volume_leaves_nothing(driver: LocalDriver, home: Home) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await driver.delete(web)
    assert await names(driver) == []
    assert list((home.path / "volumes").iterdir()) == []
    assert await create(driver, "web") != web


async def test_a_volume_with_snapshots_goes_only_together_with_them(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    before = await snapshot(driver, web, "before")
    with pytest.raises(VolumeHasSnapshots, match='volume "web" has snapshots: before'):
        await driver.delete(web)
    await driver.delete(web, with_snapshots=True)
    assert await driver.inspect([web, before]) == []


async def test_a_volume_with_clones_does_not_go_at_all(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    before = await snapshot(driver, web, "before")
    copy = await create(driver, "copy", parent=before)
    for victim in (web, before):
        with pytest.raises(VolumeHasSnapshots, match="clones: copy"):
            await driver.delete(victim, with_snapshots=True)
    await driver.delete(copy)
    await driver.delete(before)
    await driver.delete(web)
    assert await names(driver) == []


async def test_a_sticky_volume_stays_until_it_is_not(driver: LocalDriver) -> None:
    web = await driver.create(VolumeLocator(name="web"), None, VolumeSpec(sticky=True))
    with pytest.raises(VolumeBusy, match='"web" is sticky'):
        await driver.delete(web)
    await driver.set(web, None, SpecUpdate(sticky=False))
    await driver.delete(web)


async def test_a_volume_in_use_by_another_command_is_busy(driver: LocalDriver, home: Home) -> None:
    web = await create(driver, "web")
    async with driver.context.hold(web), LocalDriver(home) as other:
        for attempt in (
            other.delete(web),
            snapshot(other, web, "before"),
            other.set(web, LocatorUpdate(name="x"), None),
        ):
            with pytest.raises(VolumeBusy, match=r'volume "web" is in use by process \d+ \(test\)'):
                await attempt
        # What only reads does not wait.
        assert (await other.upkeep.check(await get(other, web))).problems == ()
        assert (await other.upkeep.gc(await get(other, web))).note.startswith('volume "web" is in use')


# -- overview ----------------------------------------------------------------------------------------


async def test_the_overview_names_what_nobody_has_a_record_of(driver: LocalDriver) -> None:
    await create(driver, "web")
    await driver.context.backend("default").create("stray")
    overview = await driver.upkeep.overview()
    assert (overview.volumes, overview.snapshots, overview.mounted) == (1, 0, 0)
    assert 'pool "default": no record here of the data of volume "stray"; see fusevol import' in overview.problems
    assert any(problem.startswith('pool "wrong": ') for problem in overview.problems)
    assert dict(await driver.status())["volumes"] == "1"


async def test_the_overview_names_volumes_without_data_and_without_a_pool(driver: LocalDriver, home: Home) -> None:
    lost, elsewhere = await create(driver, "lost"), await create(driver, "elsewhere")
    (home.path / "volumes" / lost).rename(home.path / "away")

    def moved(volume: Volume) -> Volume:
        locator = msgspec.structs.replace(volume.locator, volume_labels={POOL_LABEL: "gone"})
        return msgspec.structs.replace(volume, locator=locator)

    await driver.context.change(elsewhere, moved)
    problems = (await driver.upkeep.overview()).problems
    assert 'volume "lost": its data is missing from pool "default"; is its disk mounted?' in problems
    assert f'volume "elsewhere": there is no pool "gone" in {home.config_path}' in problems
    [default] = [pool for pool in await driver.upkeep.pools() if pool.name == "default"]
    assert default.missing == ("lost",)


async def test_a_pool_that_does_not_answer_keeps_nobody_from_seeing_the_others(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "_PATIENCE", 0.1)
    await create(driver, "web")
    monkeypatch.setattr(driver.context.backend("default"), "list", trio.sleep_forever)
    found = {pool.name: pool.error for pool in await driver.upkeep.pools()}
    assert found["default"] == "it has not answered for 0.1 seconds"
    assert len(found) > 1


def test_a_pool_on_this_host_is_known_by_its_parameters() -> None:
    for attributes, directory in (
        ({"path": "/data"}, Path("/data")),
        ({"url": "file:///data/objects"}, Path("/data/objects")),
        ({"url": "s3://bucket/folder"}, None),
        ({"path": "folder"}, None),
        ({}, None),
    ):
        assert Pool("a", "any", attributes).directory == directory


@pytest.mark.parametrize("place", ["", "volumes", "cache", "volumes/below", "cache/below", ".."])
async def test_nothing_is_mounted_over_what_its_mount_needs(driver: LocalDriver, home: Home, place: str) -> None:
    web = await create(driver, "web")
    path = home.path / place
    path.mkdir(parents=True, exist_ok=True)
    with pytest.raises(InvalidArgument, match="cannot be a mountpoint"):
        await driver.mount(web, str(path))


async def test_shutting_down_twice_is_harmless(driver: LocalDriver) -> None:
    await create(driver, "web")
    await driver.shutdown()
    await driver.shutdown()
