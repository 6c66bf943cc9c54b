"""Drivers are found by name among what is installed, and mistakes of their packages are told in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fusevol.api import VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver, driver_registry
from fusevol.driver.installed import installed_drivers
from fusevol.errors import (
    AlreadyExists,
    AlreadyShutdown,
    DriverInitializing,
    DriverNotFound,
    FusevolError,
    InvalidArgument,
)

Install = Callable[..., None]

SHELF = """
import trio
from fusevol.driver.installed import new_local_driver

async def new(params):
    await trio.lowlevel.checkpoint()
    if "broken" in params:
        raise OSError("no shelf")
    return await new_local_driver(params)
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one driver, called shelf."""

    def install(target: str, module: str = "", package: str = "acme-shelf") -> None:
        folder = tmp_path / package
        folder.mkdir()
        (folder / "acme_shelf.py").write_text(module)
        info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fusevol.drivers]\nshelf = {target}\n")
        monkeypatch.syspath_prepend(folder)
        monkeypatch.delitem(sys.modules, "acme_shelf", raising=False)

    return install


async def test_the_local_driver_is_installed_and_made_of_its_parameters(tmp_path: Path) -> None:
    assert "local" in installed_drivers()
    registry = driver_registry()
    with pytest.raises(DriverNotFound):
        registry.get("local")
    await registry.register("local", {"home": str(tmp_path)})
    driver = registry.get("local")
    assert isinstance(driver, LocalDriver)
    await driver.create(VolumeLocator(name="web"), None, VolumeSpec())
    assert (tmp_path / "fusevol.db").exists()
    with pytest.raises(AlreadyExists):
        await registry.register("local", {})
    await registry.shutdown()
    with pytest.raises(AlreadyShutdown):
        await driver.enumerate()


@pytest.mark.parametrize("params", [{"hoem": "x"}, {"home": ""}])
async def test_a_wrong_parameter_is_refused_and_the_driver_can_be_made_afterwards(
    params: dict[str, str], tmp_path: Path
) -> None:
    registry = driver_registry()
    with pytest.raises(InvalidArgument, match='driver "local"'):
        await registry.register("local", params)
    await registry.register("local", {"home": str(tmp_path)})
    await registry.shutdown()


async def test_a_third_partys_driver_is_found_and_its_errors_come_through(third_party: Install, tmp_path: Path) -> None:
    third_party("acme_shelf:new", SHELF)
    registry = driver_registry()
    with pytest.raises(OSError, match="no shelf"):
        await registry.register("shelf", {"broken": "yes"})
    await registry.register("shelf", {"home": str(tmp_path / "home")})
    assert registry.get("shelf").name == "local"
    await registry.shutdown()


async def test_of_many_who_register_one_driver_at_once_one_does(third_party: Install, tmp_path: Path) -> None:
    third_party("acme_shelf:new", SHELF)
    registry, errors = driver_registry(), list[FusevolError]()

    async def register() -> None:
        try:
            await registry.register("shelf", {"home": str(tmp_path / "home")})
        except FusevolError as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(register)
    assert len(errors) == 9
    assert all(isinstance(error, AlreadyExists | DriverInitializing) for error in errors)
    await registry.get("shelf").enumerate()
    await registry.shutdown()


@pytest.mark.parametrize(
    ("target", "module"),
    [
        ("acme_shelf:new", "raise ImportError('no\\nlibacme')"),
        ("acme_shelf:missing", ""),
        ("acme_absent:new", ""),
        ("acme_shelf:new", "new = 5"),
        ("acme_shelf:new", "def new(params): return 5"),
    ],
)
async def test_a_broken_driver_is_one_line_naming_its_package(third_party: Install, target: str, module: str) -> None:
    third_party(target, module)
    registry = driver_registry()
    with pytest.raises(DriverNotFound, match="acme-shelf") as caught:
        await registry.register("shelf", {})
    assert "\n" not in str(caught.value)
    with pytest.raises(DriverNotFound):
        registry.get("shelf")


async def test_a_driver_that_two_packages_have_is_not_chosen_by_chance(third_party: Install) -> None:
    third_party("acme_shelf:new", SHELF)
    third_party("other_shelf:new", package="other-shelf")
    with pytest.raises(DriverNotFound, match="acme-shelf and other-shelf"):
        await driver_registry().register("shelf", {})
