"""Numbers of volumes in use: StatsDriver, asked of the processes that serve them, and what volumes take up."""

import uuid
from typing import TYPE_CHECKING

import trio

from fusevol.api import ActiveRequest, ActiveRequests, Stats, StatsDriver, Usage, Volume
from fusevol.driver.attachment import believed, is_here, server_of
from fusevol.driver.context import Context
from fusevol.driver.upkeep import Upkeep
from fusevol.errors import BackendError, NotSupported, VolumeBusy, VolumeDetached
from fusevol.store import Process

if TYPE_CHECKING:
    from fusevol.log import LogVolume

__all__ = ["Statistics"]

_BLOCK = 4096


class Statistics(StatsDriver):
    """Counters of mounted volumes, the requests they are serving, and the bytes that volumes take up."""

    context: Context
    upkeep: Upkeep

    def __init__(self) -> None:
        #: What the last interval of a volume ended with, and which mount that was of.
        self._earlier: dict[str, tuple[Process | None, Stats]] = {}
        self._one_at_a_time: dict[str, trio.Lock] = {}

    async def stats(self, volume_id: str, *, cumulative: bool) -> Stats:
        """I/O counters of a volume; all 0 for one that is not mounted.

        Intervals are those of this object: what it was told add up to what it is told cumulatively, from one mount
        to its end. Discards are not counted, since the kernel sends none. Raises NotSupported where the volume is
        mounted without control files.
        """
        if cumulative:
            return (await self._now(volume_id))[1]
        # An interval must begin where the one before ended.
        async with self._one_at_a_time.setdefault(volume_id, trio.Lock()):
            server, now = await self._now(volume_id)
            before, earlier = self._earlier.get(volume_id, (None, Stats()))
            self._earlier[volume_id] = server, now
            return now.since(earlier) if server == before and server is not None else now

    async def _now(self, volume_id: str) -> tuple[Process | None, Stats]:
        volume = believed(await self.context.store.get_vol(volume_id))
        try:
            if not is_here(volume) or (control := self.context.control(volume)) is None:
                return None, Stats()
        except VolumeBusy:
            # Not mounted yet, or not any more.
            return None, Stats()
        found = await control.read_json("stats")
        try:
            counted = {field: found[field] for field in Stats.__struct_fields__ if field in found}
            stats = Stats(**counted, unique_blocks=found["usage"]["data"] // _BLOCK)
        except (KeyError, TypeError) as error:
            raise BackendError(f'the statistics of volume "{volume.locator.name}" make no sense') from error
        return server_of(volume), stats

    async def used_size(self, volume_id: str) -> int:
        """Bytes that a volume takes up now in its store; of a snapshot, those that it refers to."""
        record = believed(await self.context.store.get_vol(volume_id))
        if record.is_snapshot:
            return (await self.capacity_usage(volume_id)).total
        return (await self.upkeep.usage(record)).total

    async def capacity_usage(self, volume_id: str) -> Usage:
        """What a volume or snapshot takes up, by whether others need it as well.

        A volume: exclusive is all that is in its own space, its snapshots included; shared is what it reads from the
        volume it was cloned from. A snapshot: exclusive is what deleting it would free, shared the rest of what it
        refers to. Raises VolumeNotFound, SnapshotNotFound.
        """
        record = believed(await self.context.store.get_vol(volume_id))
        if not record.is_snapshot:
            used = await self.upkeep.usage(record)
            return Usage(exclusive=used.total, shared=used.inherited)

        async def measure(log: "LogVolume") -> Usage:
            size = await log.snapshot_usage(record.locator.name)
            return Usage(exclusive=size.exclusive + size.exclusive_metadata, shared=size.shared)

        return await self.context.look(await self.context.store.get_vol(record.source.parent), measure)

    async def get_active_requests(self) -> ActiveRequests:
        """The requests that the mounts of this state directory on this host are serving, those of each oldest first.

        Mounts without control files cannot be asked, and are left out. Raises BackendError where a mount does not
        answer.
        """
        found: dict[str, list[ActiveRequest]] = {}
        failed: list[BackendError] = []

        async def ask(volume: Volume) -> None:
            try:
                if control := self.context.control(volume):
                    found[volume.id] = [_request(volume, request) for request in await control.requests()]
            except (NotSupported, VolumeDetached):
                pass
            except VolumeBusy as error:
                # Either it is being mounted or unmounted, and serves nobody, or it does not answer.
                if believed(volume).state is volume.state:
                    failed.append(BackendError(str(error)))
            except BackendError as error:
                # One that was unmounted just now is no failure.
                if believed(volume).state is volume.state:
                    failed.append(error)

        volumes = [believed(volume) for volume, _ in await self.context.store.volumes()]
        async with trio.open_nursery() as nursery:
            for volume in volumes:
                if is_here(volume) and volume.attach_path and volume.state.value == "attached":
                    nursery.start_soon(ask, volume)
        if failed:
            raise failed[0]
        requests = tuple(request for _, each in sorted(found.items()) for request in each)
        return ActiveRequests(request_count=len(requests), requests=requests)


def _request(volume: Volume, request: dict[str, object]) -> ActiveRequest:
    """One that the mount told of."""
    try:
        number, age, inode = int(str(request["number"])), float(str(request["age"])), int(str(request["inode"]))
        what = f"{request['operation']} of inode {inode}"
    except (KeyError, ValueError) as error:
        raise BackendError(f'the requests of volume "{volume.locator.name}" make no sense') from error
    # Numbers are of one mount; with the beginning of the volume's id they are unique among all.
    unique = uuid.UUID(volume.id).int >> 96 << 32 | number & 0xFFFFFFFF
    return ActiveRequest(id=unique, description=f"{volume.locator.name}: {what}, for {age:.3f} s")
