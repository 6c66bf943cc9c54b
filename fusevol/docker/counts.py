"""Setting the counts of uses right, and the mounts that go with them.

Counts go wrong where dockerd could not tell us that a container ended: it was killed, or it removed one while we were
down, and never says so again. Only the engine knows who is there. A count that it does not stand behind is dropped,
but no young one: a container that is being started, or copied to, has its volume before the engine calls it running.
Where the engine does not say, everything stays.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import trio

from fusevol.api import Volume
from fusevol.daemon.work import Call
from fusevol.docker.volumes import DockerVolumes
from fusevol.driver.attachment import believed
from fusevol.driver.consumers import consumers, dropped, uses
from fusevol.errors import FusevolError

__all__ = ["Counts"]

_Operation: TypeAlias = Callable[[Volume], Awaitable[None]]

log = logging.getLogger(__name__)

#: What of a volume was seen: its id, and each use with its count; none for a mount without any.
_Sight = tuple[str, tuple[tuple[str, int], ...]]


class Counts:
    """Sweeps over all volumes. stale_after: seconds from which on a count that has not changed is not young."""

    def __init__(self, volumes: DockerVolumes, *, stale_after: float) -> None:
        self._volumes = volumes
        self._stale_after = stale_after
        self._since: dict[_Sight, float] = {}

    async def run(self) -> None:
        """Sweep for ever, often enough for a stale count to be gone after twice its time."""
        while True:
            try:
                await self.sweep()
            except FusevolError as error:
                log.warning("the counts of containers could not be looked at: %s", error)
            except Exception:
                log.exception("the counts of containers could not be looked at")
            await trio.sleep(max(0.2, self._stale_after / 2))

    async def sweep(self) -> None:
        """Mount what containers use and is not mounted; drop counts and unmount where nobody is."""
        records = [record for record, _ in await self._volumes.driver.store.volumes()]
        found = [believed(record) for record in records]
        # What lost its server is the supervisor's, who knows where it was mounted.
        lost = {
            record.id for record, volume in zip(records, found, strict=True) if record.attached_on > volume.attached_on
        }
        concerned = [volume for volume in found if uses(volume) or self._volumes.is_here(volume)]
        now = trio.current_time()
        self._since = {sight: self._since.get(sight, now) for sight in map(_sight, concerned)}
        old = [volume for volume in concerned if now - self._since[_sight(volume)] >= self._stale_after]
        in_use = await self._volumes.engine.volumes_in_use() if any(uses(volume) for volume in old) else None
        async with trio.open_nursery() as nursery:
            for volume in concerned:
                name = volume.locator.name
                if self._volumes.work.busy(name) or volume.id in lost:
                    continue
                if volume in old and uses(volume) and in_use is not None and name not in in_use:
                    nursery.start_soon(self._settle, volume, "dropping its count", self._drop)
                elif uses(volume) and not self._volumes.is_here(volume):
                    nursery.start_soon(self._settle, volume, "mounting it again", self._mount)
                elif volume in old and not uses(volume):
                    nursery.start_soon(self._settle, volume, "unmounting it", self._unmount)

    async def _settle(self, volume: Volume, what: str, operation: _Operation) -> None:
        seen = _sight(volume)

        async def settle(_: Call[None]) -> None:
            now = believed(await self._volumes.driver.store.get_vol(volume.id))
            if _sight(now) == seen:
                await operation(now)

        try:
            await self._volumes.work.on(volume.locator.name, what, settle)
        except FusevolError as error:
            if self._volumes.known.error(volume) != str(error):
                log.error("%s: %s failed: %s", volume.locator.name, what, error)
            self._volumes.known.set_error(volume, str(error))

    async def _drop(self, volume: Volume) -> None:
        log.info("%s: no container uses it; its count of %d was stale", volume.locator.name, uses(volume))
        await self._volumes.unmount_here(await self._volumes.driver.context.change(volume.id, dropped))

    async def _mount(self, volume: Volume) -> None:
        log.warning("%s: containers use it, and it was not mounted", volume.locator.name)
        await self._volumes.mount_here(volume)
        self._volumes.known.set_error(volume, "containers use it, and it was not mounted; it was mounted again")

    async def _unmount(self, volume: Volume) -> None:
        await self._volumes.unmount_here(volume)


def _sight(volume: Volume) -> _Sight:
    return volume.id, tuple(sorted(consumers(volume).items()))
