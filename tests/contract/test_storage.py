"""The pools of a state directory are storage as Juju's package has it: in files, in objects, and on an S3 server."""

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fusevol.driver import LocalDriver
from fusevol.errors import VolumeHasSnapshots
from fusevol.home import DEFAULT_POOL, Home
from fusevol.storage import Config, FilesystemSource, Provider, local_provider_registry
from fusevol.testing.driver import remove_all, take
from fusevol.testing.storage import FilesystemSourceContract, attach, attachment, create, is_mount, wanted
from tests.s3 import S3, configure

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")


class TestPool(FilesystemSourceContract):
    """Those of the default pool; in the others, one that `configure` makes."""

    @pytest.fixture
    def home(self, tmp_path_factory: pytest.TempPathFactory) -> Home:
        return Home(tmp_path_factory.mktemp("home"))

    @pytest.fixture
    async def driver(self, home: Home) -> AsyncIterator[LocalDriver]:
        async with LocalDriver(home, command="test") as driver:
            yield driver
            await remove_all(driver)
            assert [pool.orphans for pool in await driver.upkeep.pools()] == [()] * len(home.config.pools)

    @pytest.fixture
    def config(self, home: Home) -> Config:
        return Config(DEFAULT_POOL, home.pool(DEFAULT_POOL).backend, {})

    @pytest.fixture
    def provider(self, driver: LocalDriver, config: Config) -> Provider:
        return local_provider_registry(driver).storage_provider(config.provider)

    async def test_what_cannot_be_destroyed_stays_mounted(
        self, driver: LocalDriver, source: FilesystemSource, config: Config, tmp_path: Path
    ) -> None:
        made = await create(source, wanted(config))
        await attach(source, attachment(config, made, tmp_path / "here"))
        await take(driver, made.filesystem_id, "before")
        (error,) = await source.destroy_filesystems([made.filesystem_id])
        assert isinstance(error, VolumeHasSnapshots)
        assert is_mount(tmp_path / "here")


class TestObjectPool(TestPool):
    @pytest.fixture
    def home(self, tmp_path_factory: pytest.TempPathFactory) -> Home:
        home = tmp_path_factory.mktemp("home")
        configure(home, {"url": f"file://{home}/objects"})
        return Home(home)


class TestS3Pool(TestPool):
    @pytest.fixture
    def home(self, tmp_path_factory: pytest.TempPathFactory, s3: S3) -> Home:
        home = tmp_path_factory.mktemp("home")
        configure(home, s3.parameters(uuid.uuid4().hex))
        return Home(home)
