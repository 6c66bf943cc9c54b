"""How the local driver looks after volumes that are not mounted: what is damaged, and what takes up space."""

import re
import stat
from pathlib import Path

import pytest

from fusevol.driver import LocalDriver, upkeep
from fusevol.errors import CorruptData, VolumeHasSnapshots
from fusevol.fs import Caller, Changes, open_filesystem
from fusevol.fs.findings import Finding
from fusevol.fs.layout import ROOT
from fusevol.home import Home
from fusevol.log import LogVolume
from tests.unit.driving import BLOCK, create, get, names, snapshot, write


def flip(home: Home, volume_id: str, pattern: bytes) -> None:
    """Flip a bit in the stored data where `pattern` is."""
    for segment in (home.path / "volumes" / volume_id).glob("*.seg"):
        content = bytearray(segment.read_bytes())
        for match in re.finditer(pattern, bytes(content)):
            content[match.start()] ^= 1
            segment.write_bytes(content)
            return
    raise AssertionError


async def test_check_and_scrub_say_what_is_damaged_and_who_has_it(driver: LocalDriver, home: Home) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"something to find", block=3)
    await snapshot(driver, web, "before")
    volume = await get(driver, web)
    seen: list[tuple[int, int]] = []
    assert (await driver.upkeep.scrub(volume, lambda done, total: seen.append((done, total)))).problems == ()
    assert seen[-1] == (BLOCK, BLOCK)
    flip(home, web, b"something to find")
    for work in (driver.upkeep.check, driver.upkeep.scrub):
        [problem] = (await work(volume)).problems
        assert (problem.offset, problem.size) == (3 * BLOCK, BLOCK)
        assert set(problem.holders) == {"live", "before"}


async def test_a_damaged_manifest_is_reported_and_can_be_deleted(driver: LocalDriver, home: Home) -> None:
    web = await create(driver, "web")
    await snapshot(driver, web, "before")
    manifest = home.path / "volumes" / web / "manifest"
    content = bytearray(manifest.read_bytes())
    content[-1] ^= 1
    manifest.write_bytes(content)
    volume = await get(driver, web)
    [problem] = (await driver.upkeep.check(volume)).problems
    assert "manifest" in problem.what
    for attempt in (snapshot(driver, web, "after"), driver.upkeep.scrub(volume), driver.upkeep.usage(volume)):
        with pytest.raises(CorruptData, match="manifest"):
            await attempt
    with pytest.raises(VolumeHasSnapshots):
        await driver.delete(web)
    await driver.delete(web, with_snapshots=True)
    assert await names(driver) == []


async def test_data_that_is_gone_is_reported_by_the_volumes_name(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await driver.context.backend("default").delete(web)
    with pytest.raises(CorruptData, match='data of volume "web" is missing from pool "default"'):
        await driver.used_size(web)
    await driver.delete(web)


async def test_usage_tells_what_snapshots_hold(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await snapshot(driver, web, "before")
    await write(driver, web, b"two")
    used = await driver.upkeep.usage(await get(driver, web), with_snapshots=True)
    assert (used.live, used.data, used.in_snapshots) == (BLOCK, 2 * BLOCK, BLOCK)
    assert [(size.name, size.referenced) for size in used.snapshots] == [("before", BLOCK)]
    assert used.snapshots[0].exclusive >= BLOCK
    assert await driver.used_size(web) == used.total


async def test_gc_gives_dead_space_back(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for number in range(3):
        await write(driver, web, b"%d" % number)
    volume = await get(driver, web)
    assert (await driver.upkeep.gc(volume)).freed > 0
    # What is left is dead only since the volume was closed.
    assert (await driver.upkeep.gc(volume)).freed < 64 * BLOCK


async def test_what_a_writer_gives_back_while_its_volume_is_checked_is_not_reported_as_damage(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await get(driver, await create(driver, "web"))
    async with driver.context.writing(record) as log, open_filesystem(log) as filesystem:
        made = [filesystem.create(ROOT, b"%d" % i, stat.S_IFREG | 0o644, Caller(0, 0)).ino for i in range(3000)]
        await filesystem.sync()
        await log.checkpoint()
        check = upkeep._check_filesystem
        checked: list[list[Finding]] = []

        async def check_meanwhile(reader: LogVolume) -> list[Finding]:
            for ino in made if not checked else ():
                await filesystem.setattr(ino, Changes(mode=0o600))
            await filesystem.sync()
            await log.reclaim()
            checked.append(await check(reader))
            return checked[-1]

        monkeypatch.setattr(upkeep, "_check_filesystem", check_meanwhile)
        assert (await driver.upkeep.check(record)).problems == ()
        assert checked[0] != []


async def test_what_is_secret_in_the_parameters_of_a_pool_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[pools.far]\nbackend = "object"\nurl = "memory:///"\n'
        '[pools.far.config]\naccess_key_id = "me"\nsecret_access_key = "s3cret"\nregion = "here"\n'
    )
    async with LocalDriver(Home(tmp_path)) as driver:
        [shown] = [pool.attributes for pool in await driver.upkeep.pools() if pool.name == "far"]
    assert shown["config"] == {"access_key_id": "me", "secret_access_key": "(hidden)", "region": "here"}
