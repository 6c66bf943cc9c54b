"""Volumes whose records are lost, or in another state directory, come back from what is in their pool."""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from fusevol.api import LocatorUpdate, SpecUpdate, Volume, VolumeLocator, VolumeSpec, VolumeState, from_json
from fusevol.driver import LocalDriver
from fusevol.driver.about import about
from fusevol.driver.claims import claim
from fusevol.driver.importing import Importable
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    InvalidArgument,
    NoSpace,
    VolumeAttachedOnRemoteNode,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeNotFound,
)
from fusevol.home import Home
from fusevol.log import describe_volume, open_volume
from fusevol.store import Process
from tests.unit.driving import BLOCK, create, get, names, read, snapshot, write

Open = Callable[[str], AbstractAsyncContextManager[LocalDriver]]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    """The driver of a state directory by name; all of them have their volumes in one pool."""

    @asynccontextmanager
    async def open_driver(name: str) -> AsyncIterator[LocalDriver]:
        home = Home(tmp_path / name)
        home.path.mkdir(exist_ok=True)
        home.config_path.write_text(
            f'lock_timeout = 0.2\n[pools.default]\nbackend = "file"\npath = "{tmp_path}/shared"\n'
        )
        async with LocalDriver(home) as driver:
            yield driver

    return open_driver


async def the_one(driver: LocalDriver, name: str = "web") -> Importable:
    [item] = [item for item in await driver.importing.found() if item.name == name]
    return item


async def test_a_volume_comes_back_as_it_was_with_its_snapshots_and_data(opened: Open) -> None:
    async with opened("first") as first:
        spec = VolumeSpec(size=1 << 30, snapshot_interval=60, sticky=True)
        locator = VolumeLocator(name="web", volume_labels={"app": "shop"})
        web = await first.create(locator, None, spec)
        await write(first, web, b"before")
        kept = await snapshot(first, web, "s", why="test")
        await write(first, web, b"after")
        was, snapshot_was = await get(first, web), await get(first, kept)
    async with opened("second") as second:
        item = await the_one(second)
        assert (item.id, item.pool, item.held_by, item.problem) == (web, "default", "", "")
        await second.importing.import_volume(item)
        assert await second.importing.found() == []
        now = await get(second, web)
        assert (now.locator, now.spec, now.ctime, now.state) == (was.locator, was.spec, was.ctime, was.state)
        assert await get(second, kept) == snapshot_was
        assert [await read(second, web), await second.read(kept, 6, 0)] == [b"after", b"before"]


async def test_what_was_changed_since_it_was_made_is_known(opened: Open) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        await first.set(web, LocatorUpdate(name="shop"), SpecUpdate(size=1 << 30, sticky=True))
    async with opened("second") as second:
        shop = await second.importing.import_volume(await the_one(second, "shop"))
        assert (shop.locator.name, shop.spec.size, shop.spec.sticky) == ("shop", 1 << 30, True)


async def test_a_change_that_the_store_does_not_take_is_undone(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        backend = first.context.backend("default")

        async def away(*_: object) -> str:
            raise BackendError("the store is away")

        with monkeypatch.context() as store:
            store.setattr(backend, "put_manifest", away)
            with pytest.raises(BackendError, match="away"):
                await first.set(web, LocatorUpdate(name="shop"), None)
        assert (await get(first, web)).locator.name == "web"
        await first.store.delete_vol(web)
        assert [item.name for item in await first.importing.found()] == ["web"]


async def test_a_full_store_keeps_nobody_from_changing_a_record(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("first") as first:
        web = await first.create(VolumeLocator(name="web"), None, VolumeSpec(sticky=True))
        gone = await first.create(VolumeLocator(name="gone"), None, VolumeSpec(ephemeral=True))

        async def full(*_: object) -> str:
            raise NoSpace("the store is full")

        with monkeypatch.context() as store:
            store.setattr(first.context.backend("default"), "put_manifest", full)
            await first.set(web, None, SpecUpdate(sticky=False))
            # But where data would be lost by it.
            with pytest.raises(NoSpace):
                await first.set(gone, None, SpecUpdate(ephemeral=False))
        assert (await get(first, gone)).spec.ephemeral
        await first.delete(web)


async def test_what_is_kept_of_an_ephemeral_one_stays_with_whoever_had_it_before_too(opened: Open) -> None:
    async with opened("first") as first, opened("second") as second:
        web = await first.create(VolumeLocator(name="web"), None, VolumeSpec(ephemeral=True))
        await second.importing.import_volume(await the_one(second))
        await second.set(web, None, SpecUpdate(ephemeral=False))
        await write(second, web, b"data")
        await first.context.empty(await get(first, web))
        assert await read(second, web) == b"data"
        assert not (await get(first, web)).spec.ephemeral


async def test_what_a_later_version_says_of_an_ephemeral_one_is_no_reason_to_empty_it(opened: Open) -> None:
    async with opened("first") as first:
        web = await first.create(VolumeLocator(name="web"), None, VolumeSpec(ephemeral=True))
        backend = first.context.backend("default")
        for said, kept in (
            ('{"version":9,"spec":{"ephemeral":true,"more":1}}', False),
            ('{"version":9,"spec":{"ephemeral":false,"more":1}}', True),
            ("as nobody knows it", True),
        ):
            await first.context.change(web, lambda now: msgspec.structs.replace(now, spec=VolumeSpec(ephemeral=True)))
            async with open_volume(backend, web) as log:
                await log.write(b"data".ljust(BLOCK, b"\0"), 0)
            await describe_volume(backend, web, said)
            await first.context.empty(await get(first, web))
            assert await read(first, web) == (b"data" if kept else b"")
            assert (await get(first, web)).spec.ephemeral is not kept


@pytest.mark.parametrize("used", [True, False])
async def test_what_an_interrupted_creation_left_is_not_deleted_once_somebody_else_uses_it(
    opened: Open, used: bool
) -> None:
    async with opened("first") as first, opened("second") as second:
        web = await create(first, "web")
        await second.importing.import_volume(await the_one(second))
        before = await get(first, web)
        await first.store.update_vol(msgspec.structs.replace(before, state=VolumeState.PENDING), before)
        if used:
            async with second.context.hold(web) as volume, second.context.writing(volume) as log:
                await log.write(b"data".ljust(BLOCK, b"\0"), 0)
                await log.flush()
                with pytest.raises(VolumeBusy):
                    await snapshot(first, web, "s")
        with pytest.raises(VolumeNotFound, match="another state directory has it" if used else "is removed now"):
            await snapshot(first, web, "s")
        assert await names(first) == []
        if used:
            assert await read(second, web) == b"data"
        else:
            with pytest.raises(CorruptData, match="missing"):
                await read(second, web)


async def test_one_that_was_never_attached_has_the_name_it_was_made_with(opened: Open) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        await create(first, "copy", parent=web)
    async with opened("second") as second:
        assert [item.name for item in await second.importing.found()] == ["web", "copy"]


async def test_an_ephemeral_one_that_was_emptied_still_says_what_it_was_called(opened: Open) -> None:
    async with opened("first") as first:
        web = await first.create(VolumeLocator(name="web"), None, VolumeSpec(ephemeral=True))
        await first.context.empty(await get(first, web))
    async with opened("second") as second:
        assert (await second.importing.import_volume(await the_one(second))).spec.ephemeral


async def test_clones_are_clones_again_in_whatever_order_they_come(opened: Open) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        await write(first, web, b"data")
        await create(first, "of-snapshot", parent=await snapshot(first, web, "s"))
        await create(first, "of-live", parent=web)
    async with opened("second") as second:
        found = await second.importing.found()
        assert [item.name for item in found] == ["web", "of-snapshot", "of-live"]
        for item in reversed(found):
            await second.importing.import_volume(item)
        assert await names(second, locator=VolumeLocator(name="of-.*")) == ["of-live", "of-snapshot"]
        for name in ("of-live", "of-snapshot"):
            clone = await second.resolve(name)
            assert clone.is_clone
            assert await read(second, clone.id) == b"data"
        with pytest.raises(VolumeHasSnapshots, match="has clones: of-live, of-snapshot"):
            await second.delete(web, with_snapshots=True)


async def test_a_clone_without_a_record_keeps_what_it_was_made_from(opened: Open) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        await write(first, web, b"data")
        live = await create(first, "live", parent=web)
    async with opened("second") as second:
        record = await second.importing.import_volume(await the_one(second))
        await second.upkeep.gc(record)
        with pytest.raises(VolumeHasSnapshots):
            await second.delete(web, with_snapshots=True)
        assert await read(second, web) == b"data"
        await second.importing.import_volume(await the_one(second, "live"))
        assert await read(second, live) == b"data"


async def test_a_name_that_is_taken_is_refused_and_another_one_is_not(opened: Open) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
    async with opened("second") as second:
        await second.set(await create(second, "shop"), LocatorUpdate(name="web"), None)
        item = await the_one(second)
        with pytest.raises(AlreadyExists, match='volume "web" exists already'):
            await second.importing.import_volume(item)
        assert await second.importing.found() == [item]
        for bad in ("a/b", "..", "x" * 300):
            with pytest.raises(InvalidArgument):
                await second.importing.import_volume(item, bad)
        await second.importing.import_volume(item, "other")
        assert (await second.resolve("other")).id == web
        with pytest.raises(AlreadyExists, match="has a record"):
            await second.importing.import_volume(item, "more")


async def test_a_volume_is_not_made_anew_where_it_only_lacks_its_record(opened: Open) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
    async with opened("second") as second:
        await create(second, "other")
        with pytest.raises(AlreadyExists, match='has a volume "web" already, that has no record') as caught:
            await create(second, "web")
        assert f"fusevol import {web}" in str(caught.value.hint)
        assert await names(second) == ["other"]
        await second.importing.import_volume(await the_one(second))
        assert await create(second, "web") == web


async def test_what_a_process_of_this_host_has_open_is_refused(opened: Open) -> None:
    async with opened("first") as first, opened("second") as second:
        web = await create(first, "web")
        async with first.context.hold(web) as volume, first.context.writing(volume):
            item = await the_one(second)
            assert item.held_by.startswith("process ")
            with pytest.raises(VolumeBusy, match=r'volume "web" is in use by process .* state directory .*/first'):
                await second.importing.import_volume(item)
        await second.importing.import_volume(await the_one(second))


async def test_a_lost_record_is_no_reason_to_take_a_volume_from_its_own_process(opened: Open) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        async with first.context.hold(web) as volume, first.context.writing(volume):
            await first.store.delete_vol(web)
            with pytest.raises(VolumeBusy):
                await first.importing.import_volume(await the_one(first))


async def test_what_cannot_be_seen_to_have_ended_is_said_and_has_to_be_broken(opened: Open, tmp_path: Path) -> None:
    contained = msgspec.structs.replace(Process.current("serving /mnt"), namespace="pid:[1]")
    async with opened("first") as first:
        web = await create(first, "web")
        backend, mine = first.context.backend("default"), claim(await get(first, web), contained, tmp_path, force=False)
        async with open_volume(backend, web, claim=mine) as log:
            log.abandon()
    async with opened("second") as second:
        item = await the_one(second)
        assert item.held_by.startswith("process ")
        await second.importing.import_volume(item)
        with pytest.raises(VolumeAttachedOnRemoteNode):
            await snapshot(second, web, "s")
        await second.break_lease(web)
        await snapshot(second, web, "s")


async def test_a_lost_record_is_no_reason_to_take_a_volume_from_a_container_either(opened: Open) -> None:
    contained = msgspec.structs.replace(Process.current("serving /mnt"), namespace="pid:[1]")
    async with opened("first") as first:
        web = await create(first, "web")
        mine = claim(await get(first, web), contained, first.context.home.path, force=False)
        async with open_volume(first.context.backend("default"), web, claim=mine) as log:
            log.abandon()
        await first.store.delete_vol(web)
        item = await the_one(first)
        with pytest.raises(VolumeAttachedOnRemoteNode, match="cannot be seen from here") as caught:
            await first.importing.import_volume(item)
        assert f"fusevol import --force {web}" in str(caught.value.hint)
        await first.importing.import_volume(item, force=True)


async def test_copies_of_one_volume_in_two_pools_are_for_the_user_to_choose_from(opened: Open, tmp_path: Path) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
    shutil.copytree(tmp_path / "shared", tmp_path / "copy")
    async with opened("second"):
        pass
    config = tmp_path / "second" / "config.toml"
    config.write_text(f'{config.read_text()}[pools.copy]\nbackend = "file"\npath = "{tmp_path}/copy"\n')
    async with LocalDriver(Home(tmp_path / "second")) as second:
        found = await second.importing.found()
        assert {(item.id, item.pool, item.problem) for item in found} == {
            (web, pool, "it is in several pools: default, copy") for pool in ("default", "copy")
        }
        [item] = await second.importing.found("copy")
        assert (await second.importing.import_volume(item)).locator.volume_labels["fusevol.pool"] == "copy"


async def test_a_damaged_one_is_listed_needs_a_name_and_can_be_deleted(opened: Open, tmp_path: Path) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        await write(first, web, b"data")
    [manifest] = [path for path in (tmp_path / "shared" / web).iterdir() if "manifest" in path.name]
    manifest.write_bytes(manifest.read_bytes()[:-1])
    async with opened("second") as second:
        [item] = await second.importing.found()
        assert (item.id, item.name, item.record) == (web, "", None)
        assert "manifest" in item.problem
        with pytest.raises(InvalidArgument, match="needs a name"):
            await second.importing.import_volume(item)
        await second.importing.import_volume(item, "broken")
        with pytest.raises(CorruptData, match="manifest"):
            await snapshot(second, web, "s")
        await second.delete(web)
        assert not (tmp_path / "shared" / web).exists()


async def test_what_the_driver_did_not_make_is_not_imported(opened: Open) -> None:
    async with opened("first") as first:
        await first.context.backend("default").create("mine")
        [item] = await first.importing.found()
        assert item.problem == "no driver made it: its id is no UUID"
        with pytest.raises(InvalidArgument, match="no UUID"):
            await first.importing.import_volume(item, "web")


async def test_one_that_is_gone_by_now_is_missing_as_any_other(opened: Open, tmp_path: Path) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
    async with opened("second") as second:
        item = await the_one(second)
        shutil.rmtree(tmp_path / "shared" / web)
        await second.importing.import_volume(item)
        with pytest.raises(CorruptData, match='data of volume "web" is missing'):
            await snapshot(second, web, "s")


async def test_only_pools_that_there_are_can_be_looked_into(opened: Open) -> None:
    async with opened("first") as first:
        with pytest.raises(InvalidArgument):
            await first.importing.found("nope")


def test_what_a_volume_says_of_itself_is_no_more_than_what_lasts() -> None:
    """Where it is mounted, and by whom, is of this host alone."""
    record = Volume(id="v", locator=VolumeLocator(name="web"), ctime=datetime.now(UTC), spec=VolumeSpec(size=1 << 20))
    mounted = msgspec.structs.replace(
        record, attached_on="here", attach_path=("/mnt",), state=VolumeState.ATTACHED, error="it is mounted"
    )
    assert from_json(about(mounted), Volume) == record


async def test_nothing_is_made_where_a_pool_has_lost_all_its_volumes_as_when_its_disk_is_not_mounted(
    opened: Open, tmp_path: Path
) -> None:
    async with opened("first") as first:
        web = await create(first, "web")
        (tmp_path / "shared").rename(tmp_path / "disk")
        (tmp_path / "shared").mkdir()
        with pytest.raises(CorruptData, match="has none of the 1 volumes that are on record in it") as caught:
            await create(first, "new")
        assert "is its disk mounted" in str(caught.value.hint)
        assert await first.store.named("new") is None
        assert list((tmp_path / "shared").iterdir()) == []
        (tmp_path / "shared").rmdir()
        (tmp_path / "disk").rename(tmp_path / "shared")
        await create(first, "new")
        # Where they are lost for good, their records go first.
        for name in ("web", "new"):
            shutil.rmtree(tmp_path / "shared" / (await first.resolve(name)).id)
        await first.delete(web)
        await first.delete((await first.resolve("new")).id)
        await create(first, "web")
