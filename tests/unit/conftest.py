"""What the tests of the driver share: a driver on a `home` of their own choice, and directories to mount on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fusevol.driver import LocalDriver
from fusevol.home import Home
from fusevol.testing.driver import Places, remove_all


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
async def driver(home: Home) -> AsyncIterator[LocalDriver]:
    async with LocalDriver(home, command="test") as driver:
        yield driver
    async with LocalDriver(home, command="clean") as driver:
        await remove_all(driver)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    def make_one() -> str:
        path = tmp_path / f"mnt-{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        return str(path)

    return make_one
