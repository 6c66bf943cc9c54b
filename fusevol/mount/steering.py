"""Changing what a mount goes by while it is there."""

from collections.abc import Awaitable, Callable
from typing import Any

from fusevol.mount.scheduler import Scheduler
from fusevol.mount.settings import Outside, Settings
from fusevol.mount.throttle import Throttle

__all__ = ["Steering"]


class Steering:
    """The settings of one mount.

    settings: those that it began with. read_ahead: lets the kernel read ahead, or not; raises NotSupported where it
    cannot be told.
    """

    def __init__(
        self,
        outside: Outside,
        settings: Settings,
        throttle: Throttle,
        scheduler: Scheduler,
        read_ahead: Callable[[bool], Awaitable[None]],
    ) -> None:
        self._outside = outside
        self._settings = settings
        self._throttle = throttle
        self._read_ahead = read_ahead
        self.scheduler = scheduler

    async def reload(self) -> None:
        """Read the record anew, and go by what it says now.

        Raises NotSupported, and as `Outside.settings`; then everything is as it was.
        """
        wanted = await self._outside.settings()
        schedule = wanted.schedule
        if wanted.readahead != self._settings.readahead:
            await self._read_ahead(wanted.readahead)
        if wanted.io_throttle != self._settings.io_throttle:
            self._throttle.set(wanted.io_throttle)
        self.scheduler.follow(schedule)
        self.scheduler.look()
        self._settings = wanted

    def state(self) -> dict[str, Any]:
        """As a JSON object."""
        return self._settings.shown()
