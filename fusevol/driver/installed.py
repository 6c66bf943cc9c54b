"""The drivers that are installed: entry points of the group `fusevol.drivers`, each an init function by its name.

A package adds one in its pyproject.toml; the function takes the parameters of `VolumeDriverRegistry.register`:

    [project.entry-points."fusevol.drivers"]
    shelf = "acme_shelf.driver:new_shelf_driver"

Listing imports nothing. What is wrong with a package is told when its driver is registered.
"""

import logging
from collections.abc import Callable, Mapping
from inspect import isawaitable
from typing import TYPE_CHECKING

from fusevol.api import InitFunc, VolumeDriver, VolumeDriverRegistry, new_volume_driver_registry
from fusevol.errors import DriverNotFound, InvalidArgument

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["driver_registry", "installed_drivers", "new_local_driver"]

_GROUP = "fusevol.drivers"


def driver_registry() -> VolumeDriverRegistry:
    """A registry that knows the drivers that are installed, and has made none of them yet."""
    return new_volume_driver_registry(installed_drivers())


def installed_drivers() -> dict[str, InitFunc]:
    """The init functions of all drivers that are installed, by name.

    They raise DriverNotFound where the driver's package does not load or gives no VolumeDriver, or where several
    packages have one of that name; and what the driver's own init function raises.
    """
    # Imported here, since every command imports this module, and few look for drivers.
    from importlib.metadata import entry_points

    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=_GROUP):
        found.setdefault(point.name, {})[point.value] = point
    return {name: _init_of(name, list(points.values())) for name, points in sorted(found.items())}


def _init_of(name: str, points: "list[EntryPoint]") -> InitFunc:
    async def init(params: Mapping[str, str]) -> VolumeDriver:
        if len(points) > 1:
            packages = " and ".join(sorted(map(_package, points)))
            raise DriverNotFound(f'driver "{name}" is in several packages: {packages}', hint="remove all but one")
        package, function = _package(points[0]), _load(name, points[0])
        made = function(params)
        driver = await made if isawaitable(made) else made
        if not isinstance(driver, VolumeDriver):
            raise DriverNotFound(f'driver "{name}" of package {package} is not a VolumeDriver')
        return driver

    return init


def _load(name: str, point: "EntryPoint") -> Callable[[Mapping[str, str]], object]:
    try:
        function = point.load()
    except Exception as error:  # a broken package must not take this program down
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DriverNotFound(
            f'driver "{name}" of package {_package(point)} does not load: {reason}',
            hint=f"repair or remove the package {_package(point)}",
        ) from error
    if not callable(function):
        raise DriverNotFound(f'driver "{name}" of package {_package(point)} is not a function')
    return function  # type: ignore[no-any-return]


def _package(point: "EntryPoint") -> str:
    return point.dist.name if point.dist is not None else point.module


async def new_local_driver(params: Mapping[str, str]) -> VolumeDriver:
    """The driver `local`: the volumes of one state directory, put in order first (`LocalDriver.reconcile`).

    params: home, its path; without, that of $FUSEVOL_HOME and so on. Raises InvalidArgument for any other parameter
    or a mistake in the configuration, and what opening the records raises.
    """
    from fusevol.driver.local import LocalDriver
    from fusevol.home import Home

    for key in params:
        if key != "home":
            raise InvalidArgument(f'driver "local" has no parameter "{key}"; known: home')
    if params.get("home") == "":
        raise InvalidArgument('driver "local": home is empty')
    driver = LocalDriver(Home(params.get("home")))
    try:
        await driver.store.open()
        for line in (await driver.reconcile()).lines:
            logging.getLogger(__name__).info("%s", line)
    except BaseException:
        await driver.shutdown()
        raise
    return driver
