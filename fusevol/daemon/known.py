"""What the daemon knows of volumes beside their records: bytes in use, and what went wrong last.

It is asked for by dockerd, which must have its answer at once; so what a volume does not say in time is what it said
the last time.
"""

import logging
from contextlib import suppress

import trio

from fusevol.api import Volume
from fusevol.driver import LocalDriver
from fusevol.errors import FusevolError, NotSupported

__all__ = ["Known"]

log = logging.getLogger(__name__)

#: Seconds that an answer may take for the sake of a newer number.
_PATIENCE = 0.25


class Known:
    """Numbers and errors of volumes, by id, for as long as this process lives."""

    def __init__(self, driver: LocalDriver, nursery: trio.Nursery) -> None:
        self._driver = driver
        self._nursery = nursery
        self._used: dict[str, int] = {}
        self._asking: dict[str, trio.Event] = {}
        self._errors: dict[str, str] = {}

    async def used(self, volume: Volume) -> int | None:
        """Bytes that a volume takes up, as of now or the last time that it said; None where it never did."""
        if volume.id not in self._asking:
            self._asking[volume.id] = trio.Event()
            self._nursery.start_soon(self._ask, volume)
            with trio.move_on_after(_PATIENCE):
                await self._asking[volume.id].wait()
        return self._used.get(volume.id)

    async def _ask(self, volume: Volume) -> None:
        try:
            self._used[volume.id] = await self._measure(volume)
        except FusevolError:
            # It is being mounted, or is damaged: others say so.
            pass
        except Exception:
            log.exception("%s: what it takes up is not known", volume.locator.name)
        finally:
            self._asking.pop(volume.id).set()

    async def _measure(self, volume: Volume) -> int:
        control = self._driver.context.control(volume)
        if control is not None:
            with suppress(NotSupported):
                return await control.used_size()
        # Not mounted, or without control files.
        return await self._driver.used_size(volume.id)

    def forget(self, volume: Volume) -> None:
        """It is deleted."""
        self._used.pop(volume.id, None)
        self._errors.pop(volume.id, None)

    def error(self, volume: Volume) -> str:
        """What went wrong last with a volume, in one line; "" where nothing did."""
        return self._errors.get(volume.id) or volume.error

    def set_error(self, volume: Volume, error: str) -> None:
        """Something went wrong."""
        self._errors[volume.id] = error

    def forget_error(self, volume: Volume) -> None:
        """It is well again."""
        self._errors.pop(volume.id, None)
