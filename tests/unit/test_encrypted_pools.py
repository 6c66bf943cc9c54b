"""Pools with keys, as the driver and the pool manager have them: nothing ends up where it can be read by mistake."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fusevol.api import LocatorUpdate, SpecUpdate, VolumeLocator, VolumeSpec
from fusevol.backends.encryption import make_key_file
from fusevol.driver import LocalDriver
from fusevol.driver.labels import POOL_LABEL
from fusevol.errors import AlreadyExists, BackendError, InvalidArgument, NotSupported, WrongKey
from fusevol.home import Home
from fusevol.storage import PoolManager, local_provider_registry

CONFIG = """
[pools.vault]
backend = "file"
path = "{place}/vault"
key_file = "{place}/vault.key"

[pools.plain]
backend = "file"
path = "{place}/plain"
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    make_key_file(tmp_path / "vault.key")
    return described(tmp_path, "home")


def described(place: Path, name: str, *, without: str = "\0", config: str = CONFIG) -> Home:
    """Another state directory, with the same pools; without: lines that its configuration does not have."""
    home = Home(place / name)
    home.path.mkdir()
    lines = [line for line in config.format(place=place).splitlines() if without not in line]
    home.config_path.write_text("\n".join(lines))
    return home


@pytest.fixture
async def driver(home: Home) -> AsyncIterator[LocalDriver]:
    async with LocalDriver(home) as driver:
        yield driver


async def create(driver: LocalDriver, name: str, pool: str, spec: VolumeSpec | None = None) -> str:
    locator = VolumeLocator(name=name, volume_labels={POOL_LABEL: pool})
    return await driver.create(locator, None, spec or VolumeSpec(), exist_ok=False)


async def is_encrypted(driver: LocalDriver, name: str) -> bool:
    return (await driver.resolve(name)).spec.encrypted


async def test_a_volume_is_encrypted_where_its_pool_is_and_cannot_be_otherwise(driver: LocalDriver) -> None:
    ids = {pool: await create(driver, pool, pool) for pool in ("vault", "plain")}
    assert await is_encrypted(driver, "vault")
    assert not await is_encrypted(driver, "plain")
    for pool, update in (("vault", False), ("plain", True)):
        with pytest.raises(NotSupported, match=r"^encrypted: "):
            await driver.set(ids[pool], None, SpecUpdate(encrypted=update))
    await driver.set(ids["vault"], LocatorUpdate(name="safe"), SpecUpdate(encrypted=True, sticky=True))
    assert await is_encrypted(driver, "safe")
    with pytest.raises(NotSupported, match=r"^encrypted: "):
        await create(driver, "no", "plain", VolumeSpec(encrypted=True))
    await create(driver, "yes", "vault", VolumeSpec(encrypted=True))


async def test_a_copy_can_be_read_by_others_only_where_that_was_said(driver: LocalDriver) -> None:
    await create(driver, "web", "vault")
    web = await driver.resolve("web")
    with pytest.raises(NotSupported, match='pool "default" would not be encrypted'):
        await driver.copying.copy(web, "open")
    assert [volume.locator.name for volume in await driver.enumerate()] == ["web"]
    assert (await driver.copying.copy(web, "open", pool="plain")).volume.spec.encrypted is False
    assert (await driver.copying.copy(web, "closed", pool="vault")).volume.spec.encrypted is True
    # Where it is has been said before.
    await driver.copying.copy(web, "open")
    assert not await is_encrypted(driver, "open")


@pytest.mark.parametrize("change", ["another", "none"])
async def test_nothing_is_made_beside_volumes_that_the_key_does_not_open(
    driver: LocalDriver, home: Home, tmp_path: Path, change: str
) -> None:
    await create(driver, "web", "vault")
    key, without = tmp_path / "vault.key", "\0"
    if change == "another":
        key.rename(tmp_path / "old.key")
        make_key_file(key)
    else:
        without = "key_file"
    # With its records, and where these are lost.
    lost = described(tmp_path, "lost", without=without)
    home.config_path.write_text(lost.config_path.read_text())
    again = Home(home.path)
    for each in (again, lost):
        async with LocalDriver(each) as other:
            for name in ("web", "new"):
                with pytest.raises((WrongKey, AlreadyExists)):
                    await create(other, name, "vault")
            with pytest.raises(WrongKey):
                await create(other, "new", "vault")
            problems = (await other.upkeep.overview()).problems
            if each is again:
                assert any("encrypted" in problem for problem in problems)
    assert len(list((tmp_path / "vault").iterdir())) == 1


async def test_one_manifest_that_cannot_be_read_keeps_nobody_from_making_another_volume(
    driver: LocalDriver, tmp_path: Path
) -> None:
    ids = sorted([await create(driver, name, "vault") for name in ("one", "two")])
    for damage in (b"", b"FVSEALED and more than that"):
        (tmp_path / "vault" / ids[0] / "manifest").write_bytes(damage)
        await create(driver, f"after{len(damage)}", "vault")
    (tmp_path / "vault" / ids[0] / "manifest").unlink()
    (tmp_path / "vault" / ids[0] / "manifest").mkdir()
    await create(driver, "last", "vault")
    make_key_file(tmp_path / "new.key")
    (tmp_path / "new.key").replace(tmp_path / "vault.key")
    async with LocalDriver(driver.context.home) as other:
        with pytest.raises(WrongKey):
            await create(other, "never", "vault")


@pytest.mark.parametrize("sealed", [True, False])
async def test_what_is_encrypted_otherwise_than_its_pool_is_not_imported(tmp_path: Path, sealed: bool) -> None:
    make_key_file(tmp_path / "vault.key")
    first = described(tmp_path, "first", without="\0" if sealed else "key_file")
    second = described(tmp_path, "second", without="key_file" if sealed else "\0")
    third = described(tmp_path, "third", without="\0" if sealed else "key_file")
    async with LocalDriver(first) as driver:
        await create(driver, "web", "vault")
    async with LocalDriver(second) as driver:
        (found,) = await driver.importing.found("vault")
        assert found.locked
        assert "encrypted" in found.problem
        with pytest.raises(WrongKey):
            await driver.importing.import_volume(found, "web")
        assert await driver.enumerate() == []
    async with LocalDriver(third) as driver:
        (found,) = await driver.importing.found("vault")
        assert (await driver.importing.import_volume(found)).spec.encrypted is sealed


async def test_a_volume_whose_key_is_lost_can_be_given_up(driver: LocalDriver, tmp_path: Path) -> None:
    volume_id = await create(driver, "web", "vault")
    key = tmp_path / "vault.key"
    key.unlink()
    async with LocalDriver(driver.context.home) as other:
        with pytest.raises(BackendError, match="No such file"):
            await other.delete(volume_id)
        make_key_file(key)
        with pytest.raises(WrongKey):
            await other.delete(volume_id)
        data = tmp_path / "vault" / volume_id
        data.rename(tmp_path / "gone")
        await other.delete(volume_id)
        assert await other.enumerate() == []
        await create(other, "web", "vault")


async def test_a_pool_on_a_new_disk_can_be_described_and_one_with_another_key_cannot(
    driver: LocalDriver, tmp_path: Path
) -> None:
    pools = PoolManager(driver, local_provider_registry(driver))
    disk, other = tmp_path / "disk", tmp_path / "other.key"
    (disk / "00-lost+found").mkdir(parents=True)
    (disk / "lost+found").mkdir()
    make_key_file(other)
    await pools.create("disk", "file", {"path": str(disk), "key_file": str(other)})
    await create(driver, "web", "disk")
    await pools_of(tmp_path, disk, {"key_file": str(tmp_path / "vault.key")}, WrongKey)
    await pools_of(tmp_path, disk, {}, WrongKey)
    await pools_of(tmp_path, disk, {"key_file": str(tmp_path / "missing")}, BackendError)
    await pools_of(tmp_path, disk, {"key_file": str(other)}, None)


async def pools_of(place: Path, disk: Path, more: dict[str, str], error: type[Exception] | None) -> None:
    """Describe the disk in another state directory."""
    home = Home(place / f"other-{len(more)}-{error}")
    async with LocalDriver(home) as driver:
        pools = PoolManager(driver, local_provider_registry(driver))
        attributes = {"path": str(disk), **more}
        if error is None:
            assert (await pools.create("disk", "file", attributes)).attrs == attributes
            assert pools.get("disk").attrs == attributes
            return
        with pytest.raises(error):
            await pools.create("disk", "file", attributes)
        assert not home.config_path.exists()


async def test_a_volume_of_another_pool_that_strayed_here_keeps_nobody_from_making_one(
    driver: LocalDriver, tmp_path: Path
) -> None:
    stray, _ = await create(driver, "stray", "vault"), await create(driver, "web", "plain")
    (tmp_path / "vault" / stray).rename(tmp_path / "plain" / stray)
    await create(driver, "shop", "plain")
    async with LocalDriver(described(tmp_path, "other")) as other:
        found = {item.id: item for item in await other.importing.found("plain")}
        assert [item.name for item in found.values() if not item.locked] == ["web", "shop"]
        assert found[stray].locked
        with pytest.raises(WrongKey):
            await create(other, "new", "plain")
        for item in found.values():
            if not item.locked:
                await other.importing.import_volume(item)
        await create(other, "new", "plain")
        assert [pool.error for pool in await other.upkeep.pools() if pool.name == "plain"] == [""]


async def test_a_pool_is_described_by_who_is_in_its_directory(
    driver: LocalDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    monkeypatch.chdir(tmp_path / "disk")
    pools = PoolManager(driver, local_provider_registry(driver))
    await pools.create("disk", "file", {"path": str(tmp_path / "disk")})


@pytest.mark.parametrize("key_file", ["{pool}/key", "{pool}/sub/key", "{place}/link/key"])
async def test_a_key_is_not_kept_in_its_pool(driver: LocalDriver, tmp_path: Path, key_file: str) -> None:
    pool = tmp_path / "pool"
    (pool / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(pool / "sub")
    path = key_file.format(pool=pool, place=tmp_path)
    make_key_file(path)
    pools = PoolManager(driver, local_provider_registry(driver))
    with pytest.raises(InvalidArgument, match="is in the pool that it is the key to"):
        await pools.create("pool", "file", {"path": str(pool), "key_file": path})


@pytest.mark.parametrize("value", ["5", '""', '"vault.key"', '"/a\\u0000b"', "true"])
def test_a_key_file_that_is_no_absolute_path_is_a_mistake_with_its_place(tmp_path: Path, value: str) -> None:
    home = described(tmp_path, "home", config='[pools.vault]\nbackend = "file"\npath = "/srv/v"\nkey_file = ' + value)
    with pytest.raises(InvalidArgument, match=r"line 4: pools\.vault\.key_file: it must be an absolute path"):
        home.pool("vault")
    home.config_path.write_text(f'[pools.vault]\nbackend = "file"\npath = {value}\n')
    with pytest.raises(InvalidArgument, match=r"line 3: pools\.vault\.path: it must be an absolute path"):
        Home(home.path).pool("vault")


async def test_lists_of_pools_say_which_encrypt_and_never_the_key(driver: LocalDriver, tmp_path: Path) -> None:
    shown = {pool.name: pool.attributes for pool in await driver.upkeep.pools()}
    assert shown["vault"]["key_file"] == f"{tmp_path}/vault.key"
    assert "key_file" not in shown["plain"]
    assert (tmp_path / "vault.key").read_text().strip() not in str(shown)
