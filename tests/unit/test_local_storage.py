"""What sources of filesystems do with volumes that are not, or no longer, theirs; and what they are asked for."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from fusevol.api import LocatorUpdate, SpecUpdate, VolumeLocator, VolumeSpec, VolumeState
from fusevol.driver import LocalDriver
from fusevol.driver.labels import TAG_LABEL
from fusevol.errors import AlreadyExists, InvalidArgument, NotSupported, VolumeHasSnapshots
from fusevol.home import Home
from fusevol.storage import (
    Config,
    Directive,
    LocalFilesystemSource,
    LocalProvider,
    Scope,
    StorageKind,
    local_provider_registry,
    parse_directives_map,
    provision,
)
from fusevol.storage.localsource import RESOURCE_LABELS
from fusevol.testing.storage import create as make
from fusevol.testing.storage import raised, wanted
from tests.unit.copies import home_with_far
from tests.unit.driving import create, get, names, snapshot

FAR = Config("far", "file", {})
DEFAULT = Config("default", "file", {})
GIB = 1 << 30


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[LocalDriver]:
    async with LocalDriver(home_with_far(tmp_path)) as driver:
        yield driver


@pytest.fixture
def source(driver: LocalDriver) -> LocalFilesystemSource:
    return LocalProvider(driver, "file").filesystem_source(FAR)


# -- providers ------------------------------------------------------------------------------------


async def test_there_is_a_provider_for_each_backend_that_keeps_what_it_is_given(driver: LocalDriver) -> None:
    registry = local_provider_registry(driver)
    assert registry.storage_provider_types() == ["device", "file", "object"]
    file, far = registry.storage_provider("file"), registry.storage_provider("object")
    assert (file.scope, far.scope) == (Scope.MACHINE, Scope.ENVIRON)
    assert file.dynamic
    assert file.releasable
    assert file.supports(StorageKind.FILESYSTEM)
    assert not file.supports(StorageKind.BLOCK)
    assert [pool.name for pool in file.default_pools()] == ["default", "far"]
    assert far.default_pools() == []


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (Config("nope", "file", {}), 'pool "nope" not found'),
        (Config("far", "object", {}), 'pool "far" has the provider "object"'),
        (Config("far", "file", {"path": "/another"}), 'pool "far" has another "path"'),
        (Config("far", "file", {"storage-dir": "/another"}), 'pool "far" has another "storage-dir"'),
        (Config("far", "file", {"speed": 9}), 'pool "far" has another "speed"'),
    ],
)
async def test_a_source_is_a_pool_that_there_is(driver: LocalDriver, config: Config, error: str) -> None:
    with pytest.raises(InvalidArgument, match=error):
        LocalProvider(driver, "file").filesystem_source(config)


async def test_a_pool_may_be_described_as_it_is(driver: LocalDriver, tmp_path: Path) -> None:
    provider = LocalProvider(driver, "file")
    for config in (FAR, *provider.default_pools(), Config("far", "file", {"storage-dir": f"{tmp_path}/far"})):
        provider.filesystem_source(config)


async def test_pods_get_what_has_one_writer(driver: LocalDriver) -> None:
    provider = LocalProvider(driver, "file")
    for attributes in ({}, {"storage-mode": "RWO"}, {"storage-mode": "ReadWriteOnce", "path": "/x"}):
        provider.validate_for_k8s(attributes)
    with pytest.raises(NotSupported, match='storage mode "RWX" not supported'):
        provider.validate_for_k8s({"storage-mode": "RWX"})
    for key, value in (("storage-class", "gold"), ("storage-medium", "Memory")):
        with pytest.raises(NotSupported, match=f"^{key} not supported"):
            provider.validate_for_k8s({key: value})
    with pytest.raises(InvalidArgument, match='storage medium "foo" not valid'):
        provider.validate_for_k8s({"storage-medium": "foo"})


# -- whose they are -------------------------------------------------------------------------------


async def test_somebody_elses_volume_of_that_name_is_not_taken(
    driver: LocalDriver, source: LocalFilesystemSource
) -> None:
    theirs = await create(driver, "filesystem-0", size=64 << 20)
    with pytest.raises(AlreadyExists, match='volume "filesystem-0" of pool "default" exists already, and is nobody'):
        await make(source, wanted(FAR))
    for results in (
        await source.destroy_filesystems([theirs]),
        await source.release_filesystems([theirs]),
    ):
        assert f'"{theirs}" is not a volume of pool "far"' in str(raised(results))
    assert await names(driver) == ["filesystem-0"]


async def test_a_filesystem_is_its_own_pools_alone(driver: LocalDriver, source: LocalFilesystemSource) -> None:
    made = await make(source, wanted(FAR))
    other = LocalProvider(driver, "file").filesystem_source(DEFAULT)
    assert isinstance(raised(await other.destroy_filesystems([made.filesystem_id])), InvalidArgument)
    with pytest.raises(InvalidArgument, match='is not a volume of pool "default"'):
        await other.import_filesystem(made.filesystem_id, {})
    with pytest.raises(AlreadyExists, match='filesystem-0 is volume "filesystem-0" of pool "far"'):
        await make(other, wanted(DEFAULT))


async def test_a_filesystem_that_was_renamed_is_the_same_and_its_name_is_not_made_again(
    driver: LocalDriver, source: LocalFilesystemSource
) -> None:
    made = await make(source, wanted(FAR))
    await driver.set(made.filesystem_id, LocatorUpdate(name="database"), None)
    assert await make(source, wanted(FAR)) == made
    assert await names(driver) == ["database"]


async def test_clones_and_copies_of_a_filesystem_are_nobodys(
    driver: LocalDriver, source: LocalFilesystemSource
) -> None:
    made = await make(source, wanted(FAR))
    clone = await create(driver, "clone", parent=made.filesystem_id)
    copy = (await driver.copying.copy(await driver.resolve(made.filesystem_id), "copy", pool="far")).volume.id
    for volume in (clone, copy):
        for results in (await source.destroy_filesystems([volume]), await source.release_filesystems([volume])):
            assert f'"{volume}" is nobody\'s, or was released' in str(raised(results))
    assert await make(source, wanted(FAR)) == made


async def test_two_that_make_it_at_once_make_one_of_the_larger_size(driver: LocalDriver) -> None:
    provider = LocalProvider(driver, "file")
    made = []

    async def one(size: int) -> None:
        made.append(await make(provider.filesystem_source(FAR), wanted(FAR, size=size)))

    for _ in range(5):
        async with trio.open_nursery() as nursery:
            for size in (20, 40, 30):
                nursery.start_soon(one, size)
        assert len({found.filesystem_id for found in made}) == 1
        assert (await make(provider.filesystem_source(FAR), wanted(FAR, size=1))).size >= 40


async def test_one_with_snapshots_is_not_destroyed(driver: LocalDriver, source: LocalFilesystemSource) -> None:
    made = await make(source, wanted(FAR))
    before = await snapshot(driver, made.filesystem_id, "before")
    error = raised(await source.destroy_filesystems([made.filesystem_id]))
    assert isinstance(error, VolumeHasSnapshots)
    assert error.hint == "to delete them as well: fusevol rm --snapshots filesystem-0"
    with pytest.raises(InvalidArgument, match="is not a volume of pool"):
        await source.import_filesystem(before, {})


async def test_resource_tags_come_and_go_and_other_labels_stay(
    driver: LocalDriver, source: LocalFilesystemSource
) -> None:
    params = msgspec.structs.replace(
        wanted(FAR), resource_tags={"juju-model-uuid": "m1", "unit": "db/0"}, attributes={"labels": "app=shop"}
    )
    made = (await make(source, params)).filesystem_id

    async def labels() -> dict[str, str]:
        found = (await get(driver, made)).locator.volume_labels
        return {key: value for key, value in found.items() if key != "fusevol.pool"}

    mine = {TAG_LABEL: "filesystem-0", f"{RESOURCE_LABELS}juju-model-uuid": "m1", f"{RESOURCE_LABELS}unit": "db/0"}
    assert await labels() == {"app": "shop", **mine}
    with pytest.raises(AlreadyExists, match='volume "filesystem-0" is filesystem-0 already'):
        await source.import_filesystem(made, {})
    assert await source.release_filesystems([made]) == [None]
    assert await labels() == {"app": "shop"}
    await source.import_filesystem(made, {"juju-model-uuid": "m2"})
    assert await labels() == {"app": "shop", TAG_LABEL: "imported", f"{RESOURCE_LABELS}juju-model-uuid": "m2"}
    with pytest.raises(AlreadyExists, match='volume "filesystem-0" of pool "far" exists already, and is imported'):
        await make(source, params)
    # Whoever has it made with the same tags has it: it was imported for that.
    renewed = msgspec.structs.replace(params, resource_tags={"juju-model-uuid": "m2"})
    assert (await make(source, renewed)).filesystem_id == made
    assert await labels() == {"app": "shop", TAG_LABEL: "filesystem-0", f"{RESOURCE_LABELS}juju-model-uuid": "m2"}


async def test_nobody_else_says_whose_a_volume_is(driver: LocalDriver, source: LocalFilesystemSource) -> None:
    for key in (TAG_LABEL, f"{RESOURCE_LABELS}model"):
        with pytest.raises(InvalidArgument, match="are not yours to set"):
            await driver.create(VolumeLocator(name="mine", volume_labels={key: "filesystem-0"}), None, VolumeSpec())
        with pytest.raises(InvalidArgument, match="are not yours to set"):
            source.validate_filesystem_params(
                msgspec.structs.replace(wanted(FAR), attributes={"labels": f"{key}=filesystem-1"})
            )


async def test_what_is_not_taken_stays_nobodys(driver: LocalDriver, source: LocalFilesystemSource) -> None:
    mine = await labels_of(driver, await driver.create(*in_far("mine")))
    for attributes in ({"sticky": True}, {"labels": "app=shop"}):
        params = msgspec.structs.replace(wanted(FAR), attributes={"name": "mine", "adopt": True, **attributes})
        with pytest.raises(AlreadyExists, match="exists already, with other"):
            await make(source, params)
    assert await labels_of(driver, "mine") == mine


def in_far(name: str) -> tuple[VolumeLocator, None, VolumeSpec]:
    return VolumeLocator(name=name, volume_labels={"fusevol.pool": "far"}), None, VolumeSpec()


async def labels_of(driver: LocalDriver, name: str) -> dict[str, str]:
    return (await get(driver, name)).locator.volume_labels


async def test_a_volume_without_a_record_is_imported_by_name(
    driver: LocalDriver, source: LocalFilesystemSource, tmp_path: Path
) -> None:
    made = await make(source, wanted(FAR))
    async with LocalDriver(home_with_far_again(tmp_path)) as other:
        elsewhere = LocalProvider(other, "file").filesystem_source(FAR)
        with pytest.raises(AlreadyExists, match='volume "filesystem-0" is filesystem-0 already'):
            await elsewhere.import_filesystem("filesystem-0", {})
        await source.release_filesystems([made.filesystem_id])
        info = await elsewhere.import_filesystem("filesystem-0", {"model": "two"})
        assert (info.filesystem_id, info.size) == (made.filesystem_id, 64)
        assert (await get(other, info.filesystem_id)).state is VolumeState.AVAILABLE


async def test_a_volume_that_two_state_directories_call_the_same_is_nobodys_in_the_second(
    driver: LocalDriver, source: LocalFilesystemSource, tmp_path: Path
) -> None:
    made = await make(source, wanted(FAR))
    async with LocalDriver(home_with_far_again(tmp_path)) as other:
        # Records that were lost come back with whose it is,
        (item,) = await other.importing.found("far")
        assert TAG_LABEL in (await other.importing.import_volume(item, "theirs")).locator.volume_labels
        elsewhere = LocalProvider(other, "file").filesystem_source(FAR)
        assert (await make(elsewhere, wanted(FAR))).filesystem_id == made.filesystem_id
        # but not where there is another one.
        await other.store.delete_vol(made.filesystem_id)
        mine = await make(LocalProvider(other, "file").filesystem_source(DEFAULT), wanted(DEFAULT))
        assert TAG_LABEL not in (await other.importing.import_volume(item, "theirs")).locator.volume_labels
        assert await make(LocalProvider(other, "file").filesystem_source(DEFAULT), wanted(DEFAULT)) == mine


def home_with_far_again(place: Path) -> Home:
    """Another state directory with the same pool."""
    home = Home(place / "again")
    home.path.mkdir()
    home.config_path.write_text(f'[pools.far]\nbackend = "file"\npath = "{place}/far"\n')
    return home


# -- what is asked for ----------------------------------------------------------------------------


async def test_attributes_are_the_options_of_a_volume(driver: LocalDriver, source: LocalFilesystemSource) -> None:
    attributes = {"name": "db", "snap_interval": 15, "sticky": True, "mount": "noatime"}
    made = await make(source, msgspec.structs.replace(wanted(FAR), attributes=attributes))
    volume = await get(driver, made.filesystem_id)
    assert volume.locator.name == "db"
    spec = volume.spec
    assert (spec.size, spec.snapshot_interval, spec.sticky, spec.mount_options) == (64 << 20, 15, True, {"noatime": ""})


async def test_it_can_be_a_clone(driver: LocalDriver, source: LocalFilesystemSource) -> None:
    first = await make(source, wanted(FAR))
    await snapshot(driver, first.filesystem_id, "before")
    params = msgspec.structs.replace(wanted(FAR, 1), attributes={"from": "filesystem-0@before"})
    made = await make(source, params)
    assert await make(source, params) == made
    parent = (await get(driver, made.filesystem_id)).source.parent
    assert (await get(driver, parent)).locator.name == "before"
    await snapshot(driver, first.filesystem_id, "after")
    with pytest.raises(AlreadyExists, match='volume "filesystem-1" exists already, and was not made from that'):
        await make(source, msgspec.structs.replace(params, attributes={"from": "filesystem-0@after"}))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"attributes": {"sticky": True}}, "with other attributes"),
        ({"attributes": {"group": "shop"}}, "with other attributes"),
        ({"attributes": {"labels": "app=shop"}}, "with other labels or resource tags"),
        ({"resource_tags": {"model": "one"}}, "with other labels or resource tags"),
    ],
)
async def test_what_it_is_not_like_is_not_ignored_when_it_is_there(
    source: LocalFilesystemSource, changes: dict[str, Any], error: str
) -> None:
    await make(source, wanted(FAR))
    with pytest.raises(AlreadyExists, match=error):
        await make(source, msgspec.structs.replace(wanted(FAR), **changes))


async def test_what_was_set_since_then_stays(driver: LocalDriver, source: LocalFilesystemSource) -> None:
    made = await make(source, wanted(FAR))
    await driver.set(made.filesystem_id, None, SpecUpdate(snapshot_interval=15))
    assert await make(source, wanted(FAR)) == made
    assert (await get(driver, made.filesystem_id)).spec.snapshot_interval == 15


@pytest.mark.parametrize(
    "attributes", [{"adopt": 1}, {"size": "1G"}, {"pool": "default"}, {"name": "a/b"}, {"name": ""}]
)
async def test_what_the_parameters_say_is_no_attribute(
    source: LocalFilesystemSource, attributes: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument, match="filesystem-0"):
        source.validate_filesystem_params(msgspec.structs.replace(wanted(FAR), attributes=attributes))


# -- directives -----------------------------------------------------------------------------------


async def provisioned(driver: LocalDriver, *args: str, adopt: bool = False) -> list[tuple[str, str, int | None, str]]:
    """What became of each: its volume, pool, MiB, and error."""
    found = await provision(driver, parse_directives_map(args), adopt=adopt)
    return [
        (item.name, item.pool, item.filesystem.size if item.filesystem else None, str(item.error or ""))
        for item in found
    ]


async def test_directives_make_as_many_volumes_as_they_say(driver: LocalDriver) -> None:
    made = await provisioned(driver, "data=far,2,10M", "logs")
    assert made == [("data-0", "far", 10, ""), ("data-1", "far", 10, ""), ("logs-0", "default", 0, "")]
    assert await names(driver) == ["data-0", "data-1", "logs-0"]


async def test_asked_for_more_there_are_more_and_they_grow(driver: LocalDriver) -> None:
    await provisioned(driver, "data=far,1,10M")
    ids = [volume.id for volume in await driver.enumerate()]
    assert await provisioned(driver, "data=far,2,20M") == [("data-0", "far", 20, ""), ("data-1", "far", 20, "")]
    # Never fewer, and never smaller.
    assert await provisioned(driver, "data=far,1,1M") == [("data-0", "far", 20, "")]
    assert await names(driver) == ["data-0", "data-1"]
    assert {volume.id for volume in await driver.enumerate()} > set(ids)


async def test_a_volume_that_is_nobodys_is_taken_if_that_is_asked_for(driver: LocalDriver) -> None:
    mine = await create(driver, "data-0", size=10 << 20)
    ((_, _, _, error),) = await provisioned(driver, "data=20M")
    assert error == 'volume "data-0" of pool "default" exists already, and is nobody\'s'
    assert await provisioned(driver, "data=20M", adopt=True) == [("data-0", "default", 20, "")]
    assert await provisioned(driver, "data=20M") == [("data-0", "default", 20, "")]
    assert [volume.id for volume in await driver.enumerate()] == [mine]


async def test_what_cannot_be_made_does_not_keep_the_others_from_it(driver: LocalDriver) -> None:
    await create(driver, "data-0")
    made = await provisioned(driver, "data=far,2")
    assert [(name, bool(error)) for name, _, _, error in made] == [("data-0", True), ("data-1", False)]


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (("data=1", "Logs=1"), 'storage cannot be called "Logs"'),
        (("data=1", "logs=nope"), 'pool "nope" not found'),
        (("data=1", "logs=99999999999"), 'storage "logs": 99999999999 are more than 1000 at once'),
        (("data=1", "logs=1Y"), "filesystem-logs-0-0: 1152921504606846976 MiB are more than a volume can have"),
    ],
)
async def test_a_mistake_is_found_before_anything_is_made(
    driver: LocalDriver, args: tuple[str, ...], error: str
) -> None:
    with pytest.raises(InvalidArgument, match=error):
        await provisioned(driver, *args)
    assert await names(driver) == []


async def test_a_directive_made_by_hand_may_say_nothing(driver: LocalDriver) -> None:
    assert await provision(driver, {"data": Directive(pool="far")}) == []
