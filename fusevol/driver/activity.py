"""What all mounted volumes do at the moment, for `fusevol top`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import trio

from fusevol.api import Volume
from fusevol.driver.attachment import believed, is_here
from fusevol.errors import BackendError, FusevolError, VolumeBusy

if TYPE_CHECKING:
    from fusevol.driver.local import LocalDriver

__all__ = ["Activity", "sample"]


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """A mounted volume over an interval of `interval_ms` milliseconds.

    iops, read_bytes_per_second, write_bytes_per_second: requests of the kernel's, which has its own cache before
    them. latency_us: microseconds per request. bytes_used: what it takes up. active: requests under way.
    unflushed_bytes, unflushed_seconds: what a power cut would cost, and since when. mounted_on: paths.
    error: why there are no numbers, in one line; empty where there are.
    """

    name: str
    id: str
    mounted_on: tuple[str, ...]
    interval_ms: int = 0
    iops: int = 0
    read_bytes_per_second: int = 0
    write_bytes_per_second: int = 0
    latency_us: int = 0
    bytes_used: int = 0
    active: int = 0
    unflushed_bytes: int = 0
    unflushed_seconds: float = 0.0
    error: str = ""


async def sample(driver: "LocalDriver", names: Sequence[str] = (), *, patience: float) -> list[Activity]:
    """What the volumes mounted on this host, or those of `names`, did since the last sample of this driver.

    Sorted by name. A mount that does not answer within `patience` seconds has that as its error. Raises VolumeNotFound
    for a name, BackendError.
    """
    if names:
        volumes = [await driver.resolve(name) for name in names]
    else:
        volumes = [believed(volume) for volume, _ in await driver.store.volumes()]
    found: dict[str, Activity] = {}

    async def ask(volume: Volume) -> None:
        with trio.move_on_after(patience) as scope:
            try:
                found[volume.id] = await _activity(driver, volume)
            except FusevolError as error:
                found[volume.id] = _without_numbers(volume, str(error))
        if scope.cancelled_caught:
            found[volume.id] = _without_numbers(volume, f"its mount has not answered for {patience:g} seconds")

    async with trio.open_nursery() as nursery:
        for volume in volumes:
            if is_here(volume) and volume.attach_path:
                nursery.start_soon(ask, volume)
    return sorted(found.values(), key=lambda activity: activity.name)


async def _activity(driver: "LocalDriver", volume: Volume) -> Activity:
    control = driver.context.control(volume)
    if control is None:
        raise VolumeBusy("it is being mounted or unmounted")
    stats = await driver.stats(volume.id, cumulative=False)
    try:
        durability = (await control.read_json("status"))["durability"]
        unflushed, oldest = int(durability["unflushed_bytes"]), float(durability["oldest_seconds"])
        active = int(await control.read("active_requests"))
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError("its numbers make no sense") from error
    return Activity(
        name=volume.locator.name, id=volume.id, mounted_on=volume.attach_path, interval_ms=stats.interval_ms,
        iops=stats.iops, bytes_used=stats.bytes_used, latency_us=stats.latency, active=active,
        read_bytes_per_second=stats.read_throughput, write_bytes_per_second=stats.write_throughput,
        unflushed_bytes=unflushed, unflushed_seconds=oldest,
    )  # fmt: skip


def _without_numbers(volume: Volume, error: str) -> Activity:
    return Activity(name=volume.locator.name, id=volume.id, mounted_on=volume.attach_path, error=error)
