"""Pools are made and removed in config.toml, of which nothing else changes, and only where that loses nothing."""

import os
import stat
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from fusevol.api import VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver
from fusevol.driver.labels import POOL_LABEL
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    DriverNotFound,
    FusevolError,
    InvalidArgument,
    NotSupported,
    VolumeBusy,
)
from fusevol.home import Home
from fusevol.storage import Config, PoolManager, local_provider_registry

CONFIG = """\
# mine
lock_timeout = 3  # seconds

[pools.old]
backend = "file"  # slow
path = "/srv/old"

[drivers.shelf]
url = "http://shelf:9000"
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    home.config_path.write_text(CONFIG)
    return home


@pytest.fixture
async def driver(home: Home) -> AsyncIterator[LocalDriver]:
    async with LocalDriver(home, command="test") as driver:
        yield driver


@pytest.fixture
def pools(driver: LocalDriver) -> PoolManager:
    return PoolManager(driver, local_provider_registry(driver))


async def test_a_new_pool_can_be_used_at_once_and_by_others(
    pools: PoolManager, driver: LocalDriver, home: Home, tmp_path: Path
) -> None:
    attributes = {"path": str(tmp_path / "fast")}
    made = await pools.create("fast", "file", attributes)
    assert made == Config("fast", "file", attributes)
    assert pools.get("fast") == made
    assert {pool.name for pool in pools.list()} == {"default", "old", "fast"}
    assert Home(home.path).pool("fast").attributes == attributes
    await driver.create(VolumeLocator(name="web", volume_labels={POOL_LABEL: "fast"}), None, VolumeSpec())
    assert len(os.listdir(tmp_path / "fast")) == 1


async def test_nothing_else_of_the_file_changes(pools: PoolManager, home: Home, tmp_path: Path) -> None:
    home.config_path.chmod(0o640)
    await pools.create("far", "object", {"url": f"file://{tmp_path}/far", "retry_config": {"max_retries": 2}})
    text = home.config_path.read_text()
    assert [line for line in CONFIG.splitlines() if line not in text.splitlines()] == []
    assert Home(home.path).pool("far").attributes["retry_config"] == {"max_retries": 2}
    await pools.delete("far")
    assert home.config_path.read_text().rstrip() == CONFIG.rstrip()
    assert stat.S_IMODE(home.config_path.stat().st_mode) == 0o640
    assert [path.name for path in home.path.glob("config*")] == ["config.toml"]


async def test_what_a_pool_may_cache_is_a_part_of_it(
    pools: PoolManager, driver: LocalDriver, home: Home, tmp_path: Path
) -> None:
    made = await pools.create("far", "object", {"url": f"file://{tmp_path}/far", "cache_size": "1G"})
    assert Home(home.path).pool("far").cache_size == 1 << 30
    assert pools.get("far").attrs == {"url": f"file://{tmp_path}/far", "cache_size": 1 << 30}
    for config in (made, pools.get("far")):
        local_provider_registry(driver).storage_provider("object").filesystem_source(config)


@pytest.mark.parametrize("text", ["", "# mine\n", "[pools]\n", "lock_timeout = 3\r\n", "lock_timeout = 3"])
async def test_the_first_pool_is_the_last_one_as_well(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    home.config_path.write_text(text)
    async with LocalDriver(home) as driver:
        pools = PoolManager(driver, local_provider_registry(driver))
        await pools.create("fast", "file", {"path": str(tmp_path / "fast")})
        await pools.delete("fast")
    assert home.config_path.read_text().rstrip() in (text.rstrip(), "")


async def test_a_new_file_is_for_its_owner_alone(home: Home, pools: PoolManager, tmp_path: Path) -> None:
    home.config_path.unlink()
    pools = PoolManager(LocalDriver(Home(home.path)), pools._registry)
    await pools.create("fast", "file", {"path": str(tmp_path / "fast")})
    assert stat.S_IMODE(home.config_path.stat().st_mode) == 0o600


async def test_a_link_stays_one(home: Home, pools: PoolManager, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    home.config_path.rename(real)
    home.config_path.symlink_to(real)
    await pools.create("fast", "file", {"path": str(tmp_path / "fast")})
    assert home.config_path.is_symlink()
    assert "[pools.fast]" in real.read_text()


@pytest.mark.parametrize(
    ("name", "provider", "attributes", "kind", "error"),
    [
        ("", "file", {"path": "/x"}, InvalidArgument, "pool name is missing"),
        ("7ool", "file", {"path": "/x"}, InvalidArgument, 'pool name "7ool" not valid'),
        ("p_ool", "file", {"path": "/x"}, InvalidArgument, 'pool name "p_ool" not valid'),
        ("../x", "file", {"path": "/x"}, InvalidArgument, "is not a valid name"),
        ("new", "", {}, InvalidArgument, "provider type is missing"),
        ("new", "ebs", {}, DriverNotFound, 'storage provider "ebs" not found'),
        ("new", "memory", {}, DriverNotFound, 'storage provider "memory" not found'),
        ("new", "file", {}, InvalidArgument, "validating storage provider config: .*'path'"),
        ("new", "file", {"path": "/x", "pth": 1}, InvalidArgument, "validating storage provider config: .*'pth'"),
        ("new", "file", {"path": "x"}, InvalidArgument, "'path': it must be an absolute path"),
        ("new", "file", {"path": 12}, InvalidArgument, "'path': it must be an absolute path"),
        ("new", "file", {"path": "/x\n"}, InvalidArgument, "'path': it must be a printable text"),
        ("new", "file", {"path": "/\udcff"}, InvalidArgument, "'path': it must be a printable text"),
        ("new", "file", {"path": {"x": 1}}, InvalidArgument, "'path': it must be an absolute path"),
        ("new", "file", {"path": "/x", "cache_size": "1X"}, InvalidArgument, "'cache_size': '1X' is not a size"),
        ("new", "file", {"path": "/x", "name": "x"}, InvalidArgument, "has no parameter 'name'"),
        ("new", "file", {"path": "/srv/old/"}, InvalidArgument, '"/srv/old" is that of pool "old"'),
        ("new", "file", {"path": "/srv"}, InvalidArgument, '"/srv" contains that of pool "old"'),
        ("new", "file", {"path": "/srv/old/a"}, InvalidArgument, '"/srv/old/a" is in that of pool "old"'),
        ("new", "object", {"url": "file:///srv/%6fld"}, InvalidArgument, '"/srv/old" is that of pool "old"'),
        ("new", "object", {"url": "file://localhost/srv"}, InvalidArgument, '"/srv" contains that of pool "old"'),
        ("new", "file", {"path": "HOME"}, InvalidArgument, "contains that of"),
        ("new", "file", {"path": "HOME/volumes/x"}, InvalidArgument, 'is in that of pool "default"'),
        ("new", "file", {"path": "HOME/cache"}, InvalidArgument, "is that of caches"),
        ("new", "object", {"url": "what://x"}, InvalidArgument, 'pool "new": no store can be opened at what://x'),
        ("new", "object", {"url": "http://[::1"}, InvalidArgument, 'pool "new": no store can be opened at'),
        ("new", "object", {"url": "file:///a%00b"}, InvalidArgument, 'pool "new": '),
        ("new", "object", {"url": "s3://b", "config": {"endpoint": "x"}}, InvalidArgument, "is no http or https URL"),
        ("new", "object", {"url": "s3://b", "config": {"\udcff": 1}}, InvalidArgument, "'config': it must be"),
        ("new", "object", {"url": 12}, InvalidArgument, "'url': it must be a text"),
        ("new", "object", {"url": "s3://b", "config": {"n": float("nan")}}, InvalidArgument, "'config': it must be"),
        ("old", "file", {"path": "/x"}, AlreadyExists, 'pool "old" already exists'),
        ("default", "file", {"path": "/x"}, AlreadyExists, 'pool "default" already exists'),
    ],
)
async def test_what_will_not_do_is_refused_and_changes_nothing(
    pools: PoolManager,
    home: Home,
    name: str,
    provider: str,
    attributes: dict[str, object],
    kind: type[FusevolError],
    error: str,
) -> None:
    if str(attributes.get("path")).startswith("HOME"):
        attributes = {"path": str(attributes["path"]).replace("HOME", str(home.path))}
    with pytest.raises(kind, match=error):
        await pools.create(name, provider, attributes)
    assert home.config_path.read_text() == CONFIG


async def test_two_that_are_made_at_once_have_places_of_their_own(home: Home, tmp_path: Path) -> None:
    made, refused = [], []

    async def make(name: str) -> None:
        async with LocalDriver(Home(home.path)) as driver:
            try:
                await PoolManager(driver, local_provider_registry(driver)).create(
                    name, "file", {"path": f"{tmp_path}/x"}
                )
                made.append(name)
            except InvalidArgument:
                refused.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c"):
            nursery.start_soon(make, name)
    assert (len(made), len(refused)) == (1, 2)
    assert set(Home(home.path).config.pools) == {"default", "old", *made}


async def test_a_place_in_an_object_store_is_one_pools(pools: PoolManager, home: Home) -> None:
    def described(name: str, endpoint: str) -> str:
        return f'[pools.{name}]\nbackend = "object"\nurl = "s3://b/x/"\nconfig.endpoint = "{endpoint}"\n'

    home.config_path.write_text(described("one", "https://a") + described("two", "https://b"))
    config = {"endpoint": "https://a", "region": "x"}
    with pytest.raises(InvalidArgument, match='s3://b/x is that of pool "one"'):
        await pools.create("new", "object", {"url": "s3://b/x", "config": config})


async def test_one_that_does_not_answer_is_not_made(pools: PoolManager, home: Home) -> None:
    attributes = {
        "url": "s3://bucket/x",
        "config": {"endpoint": "http://127.0.0.1:9", "access_key_id": "a", "secret_access_key": "b"},
        "client_options": {"allow_http": True},
        "retry_config": {"max_retries": 0},
    }
    with pytest.raises(BackendError, match=r'^pool "far": '):
        await pools.create("far", "object", attributes)
    assert home.config_path.read_text() == CONFIG


async def test_a_pool_with_volumes_stays_as_it_is(
    pools: PoolManager, driver: LocalDriver, home: Home, tmp_path: Path
) -> None:
    await pools.create("fast", "file", {"path": str(tmp_path / "fast")})
    text = home.config_path.read_text()
    locator = VolumeLocator(name="web", volume_labels={POOL_LABEL: "fast"})
    volume = await driver.create(locator, None, VolumeSpec())
    with pytest.raises(VolumeBusy, match='pool "fast" has 1 volumes, and cannot be removed'):
        await pools.delete("fast")
    with pytest.raises(VolumeBusy, match='pool "fast" has 1 volumes, and cannot be changed'):
        await pools.replace("fast", "", {"path": "/elsewhere"})
    assert home.config_path.read_text() == text
    await driver.delete(volume)
    elsewhere = {"path": str(tmp_path / "elsewhere")}
    assert await pools.replace("fast", "", elsewhere) == Config("fast", "file", elsewhere)
    assert Home(home.path).pool("fast").attributes == elsewhere
    # Whoever changed it makes volumes where it is now.
    volume = await driver.create(locator, None, VolumeSpec())
    assert os.listdir(tmp_path / "elsewhere") == [volume]
    await driver.delete(volume)
    await pools.delete("fast")
    with pytest.raises(InvalidArgument, match='pool "fast" not found'):
        await pools.delete("fast")


async def test_the_default_pool_can_be_elsewhere_and_is_always_there(
    pools: PoolManager, home: Home, tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match='pool "default" is always there'):
        await pools.delete("default")
    elsewhere = {"path": str(tmp_path / "elsewhere")}
    await pools.replace("default", "file", elsewhere)
    assert Home(home.path).pool("default").attributes == elsewhere


async def test_a_file_that_a_program_cannot_change_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    text = 'pools = {old = {backend = "file", path = "/srv/old"}}\n'
    home.config_path.write_text(text)
    async with LocalDriver(home) as driver:
        pools = PoolManager(driver, local_provider_registry(driver))
        with pytest.raises(NotSupported, match="cannot be changed by a program"):
            await pools.create("fast", "file", {"path": str(tmp_path / "fast")})
        with pytest.raises(NotSupported, match="cannot be changed by a program"):
            await pools.delete("old")
    assert home.config_path.read_text() == text


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
async def test_comments_and_line_ends_are_kept(tmp_path: Path, newline: str) -> None:
    home = Home(tmp_path / "home")
    home.path.mkdir()
    before = ["# what", "[pools.a]  # first", 'backend = "file"', 'path = "/a"', ""]
    gone = ['[ "pools" . b ]', 'backend = "object"', 'url = "file:///b"', "[pools.b.config]", 'x = "[pools.c]"']
    after = [
        "",
        "# not that\u2028 one:\x85",
        "# [pools.d]",
        "[pools.c]",
        'backend = "file"',
        'path = "/c"',
        "# the end",
    ]
    home.config_path.write_bytes(newline.join([*before, *gone, *after]).encode())
    async with LocalDriver(home) as driver:
        await PoolManager(driver, local_provider_registry(driver)).delete("b")
    assert home.config_path.read_bytes() == newline.join([*before, *after]).encode()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_only_a_file_is_replaced(home: Home, pools: PoolManager, tmp_path: Path) -> None:
    home.config_path.unlink()
    device = tmp_path / "null"
    os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    home.config_path.symlink_to(device)
    with pytest.raises(BackendError, match=r"config\.toml is no file"):
        await pools.create("fast", "file", {"path": str(tmp_path / "fast")})
    assert stat.S_ISCHR(device.stat().st_mode)


async def test_a_file_that_cannot_be_written_is_an_error(pools: PoolManager, home: Home, tmp_path: Path) -> None:
    home.config_path.unlink()
    home.config_path.symlink_to(tmp_path / "nowhere" / "config.toml")
    with pytest.raises(BackendError, match=r"config\.toml cannot be written: No such file or directory"):
        await pools.create("fast", "file", {"path": str(tmp_path / "fast")})


def test_two_that_change_it_at_once_both_do(home: Home) -> None:
    first, second = threading.Event(), threading.Event()

    def slowly(text: str) -> str:
        first.set()
        # The other one has to wait, which can only be seen by its not being there.
        assert not second.wait(0.2)
        return text + '[pools.a]\nbackend = "file"\npath = "/a"\n'

    def other() -> None:
        assert first.wait(10)
        Home(home.path).change_config(lambda text: text + '[pools.b]\nbackend = "file"\npath = "/b"\n')
        second.set()

    thread = threading.Thread(target=other)
    thread.start()
    home.change_config(slowly)
    thread.join()
    assert {"a", "b"} < set(Home(home.path).config.pools)
