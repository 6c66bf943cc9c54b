"""Drivers are found by name among what is installed, and mistakes of their packages are told in one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fusevol.api import VolumeLocator, VolumeSpec
from fusevol.driver import LocalDriver, configured_registry, driver_registry
from fusevol.driver.installed import driver_states, installed_drivers
from fusevol.errors import (
    AlreadyExists,
    AlreadyShutdown,
    DriverInitializing,
    DriverNotFound,
    FusevolError,
    InvalidArgument,
)
from fusevol.home import Home

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


# -- configured drivers -----------------------------------------------------------------------------------


async def test_configured_drivers_are_made_with_their_parameters(third_party: Install, tmp_path: Path) -> None:
    third_party("acme_shelf:new", SHELF)
    home, elsewhere = Home(tmp_path / "home"), tmp_path / "elsewhere"
    home.path.mkdir()
    home.config_path.write_text(f'[drivers.shelf]\nhome = "{elsewhere}"\n')
    registry = await configured_registry(home)
    await registry.get("shelf").create(VolumeLocator(name="there"), None, VolumeSpec())
    assert await registry.get("local").enumerate() == []
    assert (elsewhere / "fusevol.db").exists()
    await registry.shutdown()
    # That of the package itself is of this state directory where nothing else is said.
    home.config_path.write_text(f'[drivers.local]\nhome = "{elsewhere}"\n')
    registry = await configured_registry(Home(home.path))
    assert [volume.locator.name for volume in await registry.get("local").enumerate()] == ["there"]
    with pytest.raises(DriverNotFound):
        registry.get("shelf")
    await registry.shutdown()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[drivers.nope]\n", 'line 1: drivers.nope: there is no driver "nope"'),
        ('\n[drivers.local]\nhoem = "/x"\n', 'line 2: drivers.local: driver "local" has no parameter "hoem"'),
    ],
)
async def test_a_driver_that_cannot_be_made_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    home = Home(tmp_path)
    home.config_path.write_text(text)
    with pytest.raises(FusevolError) as caught:
        await configured_registry(home)
    assert str(caught.value).startswith(f"{home.config_path}, {message}")


async def test_drivers_are_listed_with_what_is_wrong_with_them(third_party: Install, tmp_path: Path) -> None:
    third_party("acme_shelf:new", SHELF)
    home = Home(tmp_path / "home")
    home.path.mkdir()
    home.config_path.write_text('[drivers.shelf]\nbroken = "yes"\n[drivers.nope]\n')
    async with LocalDriver(home) as driver:
        await driver.create(VolumeLocator(name="web"), None, VolumeSpec())
    local, nope, shelf = await driver_states(home)
    assert (local.packages, local.configured, local.volumes, local.error) == (("fusevol",), True, 1, "")
    assert (nope.packages, nope.configured) == ((), True)
    assert 'there is no driver "nope"' in nope.error
    assert (shelf.packages, shelf.parameters, shelf.error) == (("acme-shelf",), {"broken": "yes"}, "no shelf")
    home.config_path.unlink()
    _, shelf = await driver_states(Home(home.path))
    assert (shelf.name, shelf.configured, shelf.error) == ("shelf", False, "")
