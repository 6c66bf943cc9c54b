"""The registry of volume drivers of one process.

It is used from the event loop's thread only, and what it knows changes only between awaits. That is why
there is no lock, and nothing to deadlock on: an init function may use the registry that calls it.
"""

from collections.abc import Mapping
from inspect import isawaitable

from fusevol.api.drivers import InitFunc, VolumeDriver, VolumeDriverRegistry
from fusevol.errors import AlreadyExists, AlreadyShutdown, DriverInitializing, DriverNotFound, InvalidArgument

__all__ = ["new_volume_driver_registry"]


def new_volume_driver_registry(name_to_init: Mapping[str, InitFunc]) -> VolumeDriverRegistry:
    """A registry that knows those names, and has no driver yet (NewVolumeDriverRegistry of the seed).

    Raises InvalidArgument for a blank name.
    """
    registry = _Registry()
    for name, init in name_to_init.items():
        registry.add(name, init)
    return registry


class _Registry(VolumeDriverRegistry):
    def __init__(self) -> None:
        self._inits: dict[str, InitFunc] = {}
        self._initializing: set[str] = set()
        self._drivers: dict[str, VolumeDriver] = {}
        self._is_shutdown = False

    def get(self, name: str) -> VolumeDriver:
        self._check_open()
        self._check_not_initializing(name)
        if name not in self._drivers:
            raise DriverNotFound(f'driver "{name}" is not registered')
        return self._drivers[name]

    def add(self, name: str, init: InitFunc) -> None:
        self._check_open()
        if not name.strip():
            raise InvalidArgument("the name of a driver is blank")
        if name in self._inits:
            raise AlreadyExists(f'driver "{name}" is known already')
        self._inits[name] = init

    async def register(self, name: str, params: Mapping[str, str]) -> None:
        self._check_open()
        if name not in self._inits:
            raise DriverNotFound(f'there is no driver "{name}"')
        self._check_not_initializing(name)
        if name in self._drivers:
            raise AlreadyExists(f'driver "{name}" is registered already')
        self._initializing.add(name)
        try:
            made = self._inits[name](params)
            driver = await made if isawaitable(made) else made
        finally:
            self._initializing.discard(name)
        if self._is_shutdown:
            # `shutdown` came while the driver was being made, and could not know of it.
            await _shut_down([driver])
            self._check_open()
        self._drivers[name] = driver

    async def shutdown(self) -> None:
        self._check_open()
        self._is_shutdown = True
        # The last made goes first: it may use those before it.
        drivers = list(reversed(self._drivers.values()))
        self._drivers.clear()
        await _shut_down(drivers)

    def _check_open(self) -> None:
        if self._is_shutdown:
            raise AlreadyShutdown("the driver registry was shut down")

    def _check_not_initializing(self, name: str) -> None:
        if name in self._initializing:
            raise DriverInitializing(f'driver "{name}" is initializing', hint="try again in a moment")


async def _shut_down(drivers: list[VolumeDriver]) -> None:
    # Imported here, as listing a command's options needs the interfaces, but no event loop.
    import trio

    errors: list[Exception] = []
    # A driver that was skipped could never be shut down again, so cancellation has to wait.
    with trio.CancelScope(shield=True):
        for driver in drivers:
            try:
                await driver.shutdown()
            except Exception as error:  # noqa: BLE001  one driver's failure, of any kind, must not spare the others
                errors.append(error)
    if errors:
        raise ExceptionGroup("drivers failed to shut down", errors)
