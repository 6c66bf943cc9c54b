"""Watching over the processes that serve mounts: one that dies without a word is followed by a new one.

A mount process that ends says so in its volume's record. One that was killed cannot; its record still names it, and
what is mounted there answers nobody. It is mounted again on the same paths with the same options: programs that have
files of it open go on getting errors, those that open them anew, a restarted container for one, work.
"""

import logging
import os
from functools import partial

import trio

from fusevol.api import Volume
from fusevol.daemon.known import Known
from fusevol.daemon.work import Call, Work
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import server_of
from fusevol.errors import FusevolError, VolumeNotFound
from fusevol.store import Life, Process

__all__ = ["Supervisor"]

log = logging.getLogger(__name__)

#: Seconds between looks for mounts that others made.
_INTERVAL = 2.0
#: Seconds before each further attempt to mount a volume again.
_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class Supervisor:
    """Watches all mounts of the driver's volumes on this host."""

    def __init__(self, driver: LocalDriver, work: Work, known: Known) -> None:
        self._driver = driver
        self._work = work
        self._known = known
        self._watched: set[Process] = set()

    async def run(self) -> None:
        """Watch for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                for volume in await self._volumes():
                    server = server_of(volume)
                    # One that cannot be seen from here is somebody else's to watch.
                    if server and server.life is not Life.UNKNOWN and server not in self._watched:
                        self._watched.add(server)
                        nursery.start_soon(self._watch, volume.id, server)
                await trio.sleep(_INTERVAL)

    async def _volumes(self) -> list[Volume]:
        try:
            return [volume for volume, _ in await self._driver.store.volumes()]
        except FusevolError as error:
            log.warning("the mounts could not be looked at: %s", error)
        except Exception:
            log.exception("the mounts could not be looked at")
        return []

    async def _watch(self, volume_id: str, server: Process) -> None:
        try:
            await _ended(server)
            await self._follow(volume_id, server)
        except VolumeNotFound:
            return
        except FusevolError as error:
            log.error("volume %s: %s", volume_id, error)
        except Exception:
            log.exception("volume %s", volume_id)
        finally:
            self._watched.discard(server)

    async def _follow(self, volume_id: str, server: Process) -> None:
        """Mount a volume again, if its server ended without saying so."""
        for pause in _PAUSES:
            await trio.sleep(pause)
            volume = await self._driver.store.get_vol(volume_id)
            if server_of(volume) != server:
                return
            name = volume.locator.name
            if pause == _PAUSES[0]:
                log.error("%s: %s, which served it, is gone; mounting it again", name, server)
                self._known.set_error(volume, f"{server}, which served it, is gone")
            try:
                await self._work.on(name, "mounting it again", partial(self._mount, volume))
            except FusevolError as error:
                log.error("%s: mounting it again failed: %s", name, error)
                self._known.set_error(volume, f"{server} is gone, and mounting it again failed: {error}")
            else:
                self._known.set_error(volume, f"{server} was gone; it was mounted again")
                return

    async def _mount(self, dead: Volume, _: Call[None]) -> None:
        if server_of(await self._driver.store.get_vol(dead.id)) != server_of(dead):
            return
        for path in dead.attach_path:
            await self._driver.mounting.mount(dead.id, path, dead.mount_options, again=True)
            log.info("%s: mounted again on %s", dead.locator.name, path)


async def _ended(server: Process) -> None:
    """Wait for a process to end."""
    try:
        fd = os.pidfd_open(server.pid)
    except ProcessLookupError:
        return
    try:
        # Not another one that has its number by now.
        if server.alive:
            await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
