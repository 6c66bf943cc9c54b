"""Metrics for Prometheus, made anew for each scrape. A mount that does not answer is told so, and left out."""

from collections.abc import Iterable, Iterator

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from fusevol import __version__
from fusevol.api import Stats, Volume
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import believed, is_here
from fusevol.driver.consumers import uses
from fusevol.errors import FusevolError

__all__ = ["CONTENT_TYPE", "metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST

#: Seconds that a mount may take to say its numbers.
_PATIENCE = 2.0

_COUNTERS = (
    ("reads", "reads", "Reads that reached the volume since it was mounted.", 1.0),
    ("read_bytes", "read_bytes", "Bytes of these reads.", 1.0),
    ("read_ms", "read_seconds", "Seconds these reads took in sum.", 1e-3),
    ("writes", "writes", "Writes that reached the volume since it was mounted.", 1.0),
    ("write_bytes", "write_bytes", "Bytes of these writes.", 1.0),
    ("write_ms", "write_seconds", "Seconds these writes took in sum.", 1e-3),
    ("io_ms", "io_seconds", "Seconds in which at least one request was running.", 1e-3),
)
_GAUGES = (
    ("io_progress", "active_requests", "Requests under way."),
    ("bytes_used", "used_bytes", "Bytes that the volume takes up in its store."),
)


async def metrics(driver: LocalDriver) -> bytes:
    """All metrics, in the text format of Prometheus."""
    found = [(believed(volume), snapshots) for volume, snapshots in await driver.store.volumes()]
    numbers: dict[str, Stats] = {}

    async def ask(volume: Volume) -> None:
        with trio.move_on_after(_PATIENCE):
            try:
                numbers[volume.id] = await driver.stats(volume.id, cumulative=True)
            except FusevolError:
                return

    mounted = [volume for volume, _ in found if is_here(volume) and volume.attach_path]
    async with trio.open_nursery() as nursery:
        for volume in mounted:
            nursery.start_soon(ask, volume)
    registry = CollectorRegistry()
    registry.register(_Collected([*_of_volumes(found), *_of_mounts(mounted, numbers)]))
    return generate_latest(registry)


class _Collected:
    """Metrics that are there already, as a collector."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def _of_volumes(found: list[tuple[Volume, int]]) -> Iterator[Metric]:
    build = GaugeMetricFamily("fusevol_build_info", "The version that answers.", labels=["version"])
    build.add_metric([__version__], 1)
    yield build
    size = GaugeMetricFamily(
        "fusevol_volume_size_bytes", "Bytes the volume may hold; 0 for no limit.", labels=["volume"]
    )
    snapshots = GaugeMetricFamily("fusevol_volume_snapshots", "Snapshots of the volume.", labels=["volume"])
    mounted = GaugeMetricFamily("fusevol_volume_mounted", "Whether the volume is mounted here.", labels=["volume"])
    consumers = GaugeMetricFamily("fusevol_volume_docker_uses", "Uses of the volume by containers.", labels=["volume"])
    for volume, count in found:
        name = [volume.locator.name]
        size.add_metric(name, volume.spec.size)
        snapshots.add_metric(name, count)
        mounted.add_metric(name, bool(is_here(volume) and volume.attach_path))
        consumers.add_metric(name, uses(volume))
    yield from (size, snapshots, mounted, consumers)


def _of_mounts(mounted: list[Volume], numbers: dict[str, Stats]) -> Iterator[Metric]:
    answers = GaugeMetricFamily("fusevol_volume_answers", "Whether the mount gave its numbers.", labels=["volume"])
    for volume in mounted:
        answers.add_metric([volume.locator.name], volume.id in numbers)
    yield answers
    known = [(volume, numbers[volume.id]) for volume in mounted if volume.id in numbers]
    for field, name, text, factor in _COUNTERS:
        counter = CounterMetricFamily(f"fusevol_volume_{name}", text, labels=["volume"])
        for volume, stats in known:
            counter.add_metric([volume.locator.name], getattr(stats, field) * factor)
        yield counter
    for field, name, text in _GAUGES:
        gauge = GaugeMetricFamily(f"fusevol_volume_{name}", text, labels=["volume"])
        for volume, stats in known:
            gauge.add_metric([volume.locator.name], getattr(stats, field))
        yield gauge
