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

import msgspec

from fusevol.api import InitFunc, VolumeDriver, VolumeDriverRegistry, new_volume_driver_registry
from fusevol.errors import DriverNotFound, FusevolError, InvalidArgument

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from fusevol.home import Home

__all__ = [
    "DriverState",
    "configured_registry",
    "driver_registry",
    "driver_states",
    "installed_drivers",
    "new_local_driver",
]

_GROUP = "fusevol.drivers"
_LOCAL = "local"


class DriverState(msgspec.Struct, frozen=True, kw_only=True):
    """A volume driver that is installed, or configured. packages: that have it. parameters: as they are configured.

    configured: whether it is; the driver `local` always counts as that. type: what it says to be, and volumes: how many
    it has; of those that are configured. error: why it cannot be used, in one line; empty where it can.
    """

    name: str
    packages: tuple[str, ...]
    configured: bool
    parameters: dict[str, str]
    type: str = ""
    volumes: int = 0
    error: str = ""


def driver_registry() -> VolumeDriverRegistry:
    """A registry that knows the drivers that are installed, and has made none of them yet."""
    return new_volume_driver_registry(installed_drivers())


async def configured_registry(home: "Home") -> VolumeDriverRegistry:
    """A registry of the drivers that are installed, in which those are made that a state directory's configuration has.

    The driver `local` is made as well; its volumes are those of the state directory, unless it is configured otherwise.

    Raises what the drivers raise, with the place in the configuration in front if it is an error of this project.
    """
    registry = driver_registry()
    try:
        for name in _configured(home):
            await _register(registry, home, name)
    except BaseException:
        await registry.shutdown()
        raise
    return registry


def _configured(home: "Home") -> dict[str, Mapping[str, str]]:
    return {_LOCAL: {}, **home.config.drivers}


async def _register(registry: VolumeDriverRegistry, home: "Home", name: str) -> None:
    parameters = dict(home.config.drivers.get(name, {}))
    if name == _LOCAL:
        parameters.setdefault("home", str(home.path))
    try:
        await registry.register(name, parameters)
    except FusevolError as error:
        if name in home.config.drivers:
            error.args = (f"{home.place_of('drivers', name)}: {error}",)
        raise


async def driver_states(home: "Home") -> list[DriverState]:
    """All drivers that are installed or configured, by name; those that are configured are tried."""
    registry, packages, configured = driver_registry(), _packages(), _configured(home)
    states = []
    try:
        for name in sorted(packages.keys() | configured.keys()):
            state = DriverState(
                name=name,
                packages=packages.get(name, ()),
                configured=name in configured,
                parameters=dict(configured.get(name, {})),
            )
            if state.configured:
                try:
                    await _register(registry, home, name)
                    driver = registry.get(name)
                    found = len([volume for volume in await driver.enumerate() if not volume.is_snapshot])
                    state = msgspec.structs.replace(state, type=driver.type.value, volumes=found)
                except Exception as error:  # noqa: BLE001  what is wrong with one driver must not hide the others
                    state = msgspec.structs.replace(state, error=" ".join(str(error).split()) or type(error).__name__)
            states.append(state)
    finally:
        await registry.shutdown()
    return states


def _packages() -> dict[str, tuple[str, ...]]:
    """The packages that have drivers, by the drivers' names."""
    return {name: tuple(sorted(map(_package, points))) for name, points in _entry_points().items()}


def installed_drivers() -> dict[str, InitFunc]:
    """The init functions of all drivers that are installed, by name.

    They raise DriverNotFound where the driver's package does not load or gives no VolumeDriver, or where several
    packages have one of that name; and what the driver's own init function raises.
    """
    return {name: _init_of(name, points) for name, points in sorted(_entry_points().items())}


def _entry_points() -> "dict[str, list[EntryPoint]]":
    # Imported here, since every command imports this module, and few look for drivers.
    from importlib.metadata import entry_points

    found: dict[str, dict[str, EntryPoint]] = {}
    for point in entry_points(group=_GROUP):
        found.setdefault(point.name, {})[point.value] = point
    return {name: list(points.values()) for name, points in found.items()}


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
