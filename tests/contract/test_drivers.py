"""Every driver keeps the contract: on each backend that can be mounted, twice in a row, alone and with another one."""

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fusevol.driver import LocalDriver
from fusevol.home import Home
from fusevol.testing.driver import DriverContract, remove_all
from tests.s3 import S3, configure

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")


@pytest.fixture(scope="class")
def state(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """One state directory for all tests of a class, whose `store` says where the data of the volumes is."""
    home = tmp_path_factory.mktemp("home")
    store = getattr(request.cls, "store", "files")
    if store == "objects":
        configure(home, {"url": f"file://{home}/objects"})
    elif store == "s3":
        server: S3 = request.getfixturevalue("s3")
        configure(home, server.parameters(uuid.uuid4().hex))
    return home


@pytest.fixture(params=["first", "again"])
def home(state: Path, request: pytest.FixtureRequest) -> Home:
    return Home(state)


async def clean(home: Home) -> None:
    """Remove what a test left. The driver that it used may have been shut down."""
    async with LocalDriver(home, command="clean") as driver:
        await remove_all(driver)
        assert [pool.orphans for pool in await driver.upkeep.pools()] == [()]


class TestLocalDriver(DriverContract):
    @pytest.fixture
    async def driver(self, home: Home) -> AsyncIterator[LocalDriver]:
        async with LocalDriver(home, command="test") as driver:
            yield driver
        await clean(home)

    @pytest.fixture
    def second(self, driver: LocalDriver) -> LocalDriver:
        return driver


class Once:
    """Has the second round only in scripts/soak."""

    @pytest.fixture(params=["first", pytest.param("again", marks=pytest.mark.slow)])
    def home(self, state: Path, request: pytest.FixtureRequest) -> Home:
        return Home(state)


class TestTwoLocalDrivers(Once, DriverContract):
    @pytest.fixture
    async def driver(self, home: Home) -> AsyncIterator[LocalDriver]:
        async with LocalDriver(home, command="test") as driver:
            yield driver
        await clean(home)

    @pytest.fixture
    async def second(self, home: Home) -> AsyncIterator[LocalDriver]:
        async with LocalDriver(Home(home.path), command="another") as driver:
            yield driver


class TestLocalDriverOnS3(Once, TestLocalDriver):
    store = "s3"


@pytest.mark.slow
class TestLocalDriverOnObjectsInADirectory(Once, TestLocalDriver):
    store = "objects"
