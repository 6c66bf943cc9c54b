"""The JSON objects that commands print. docs/cli.md describes them; they only ever gain fields."""

import time
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from fusevol.api import Volume
from fusevol.driver.attachment import lease_of
from fusevol.driver.labels import COPIED_LABEL, own_labels, pool_of

if TYPE_CHECKING:
    from fusevol.driver import LocalDriver
    from fusevol.driver.importing import Importable

__all__ = [
    "ImportObject",
    "SnapshotObject",
    "VolumeObject",
    "display_name",
    "import_object",
    "kind_of",
    "snapshot_object",
    "volume_object",
]


class LeaseObject(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a volume attached, which lasts as long as that process lives. life: "runs", or "unknown"."""

    holder: str
    pid: int | None
    node: str
    boot: str | None
    since: str | None
    life: str


class VolumeObject(msgspec.Struct, frozen=True, kw_only=True):
    """A volume or clone."""

    name: str
    id: str
    kind: str
    parent: str | None
    state: str
    size: int
    pool: str
    labels: dict[str, str]
    sticky: bool
    created: str
    mounted_on: list[str]
    snapshots: int
    error: str
    mount_options: dict[str, str]
    lease: "LeaseObject | None"
    copied: str | None
    encrypted: bool
    ephemeral: bool
    group: str
    snapshot_interval: int
    snapshot_schedule: str
    next_snapshot: str | None
    io_throttle: dict[str, int] | None
    readahead: bool


class SnapshotObject(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot."""

    name: str
    id: str
    volume: str
    created: str
    automatic: bool
    labels: dict[str, str]
    mounted_on: list[str]
    schedule: str | None


class ImportObject(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that can be imported, or was."""

    id: str
    name: str
    pool: str
    size: int
    created: str | None
    held_by: str
    problem: str


def time_text(time: datetime) -> str:
    """A time in UTC: RFC 3339, to the second."""
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


def _lease_object(volume: Volume) -> LeaseObject | None:
    lease = lease_of(volume)
    if lease is None:
        return None
    return LeaseObject(
        holder=str(lease.holder or "a process"),
        pid=lease.holder.pid if lease.holder else None,
        node=lease.node,
        boot=lease.holder.boot if lease.holder else None,
        since=time_text(lease.since) if lease.since else None,
        life=lease.life.value,
    )


async def volume_object(driver: "LocalDriver", volume: Volume, snapshots: int | None = None) -> VolumeObject:
    """The object of a volume. snapshots: how many it has, where that is known already."""
    if snapshots is None:
        snapshots = sum(child.is_snapshot for child in await driver.store.children(volume.id))
    return VolumeObject(
        name=volume.locator.name,
        id=volume.id,
        kind="clone" if volume.is_clone else "volume",
        parent=await _parent_name(driver, volume),
        state=volume.state.value,
        size=volume.spec.size,
        pool=pool_of(volume),
        labels=own_labels(volume),
        sticky=volume.spec.sticky,
        created=time_text(volume.ctime),
        mounted_on=list(volume.attach_path),
        snapshots=snapshots,
        error=volume.error,
        mount_options=dict(volume.spec.mount_options),
        lease=_lease_object(volume),
        copied=volume.locator.volume_labels.get(COPIED_LABEL),
        encrypted=volume.spec.encrypted,
        ephemeral=volume.spec.ephemeral,
        group=volume.spec.group,
        snapshot_interval=volume.spec.snapshot_interval,
        snapshot_schedule=volume.spec.snapshot_schedule,
        next_snapshot=_next_snapshot(volume),
        io_throttle=None if volume.spec.io_throttle is None else msgspec.structs.asdict(volume.spec.io_throttle),
        readahead=volume.spec.readahead,
    )


def _next_snapshot(volume: Volume) -> str | None:
    """When the next snapshot by schedule is due; None for never, and where the volume is not mounted."""
    from fusevol.mount.schedule import parse_schedule, utc_text

    schedule = parse_schedule(volume.spec.snapshot_schedule, volume.spec.snapshot_interval)
    moment = schedule.after(time.time())
    return None if moment is None or not volume.attach_path else utc_text(moment)


async def _parent_name(driver: "LocalDriver", volume: Volume) -> str | None:
    """`volume` or `volume@snapshot`; the id of a parent that has no record."""
    if not volume.source.parent:
        return None
    found = await driver.store.inspect([volume.source.parent])
    if not found:
        return volume.source.parent
    parent = found[0]
    if not parent.is_snapshot:
        return parent.locator.name
    return f"{await _parent_name(driver, parent)}@{parent.locator.name}"


async def display_name(driver: "LocalDriver", volume: Volume) -> str:
    """The name of a volume, or `volume@snapshot`."""
    if not volume.is_snapshot:
        return volume.locator.name
    parent = await driver.store.get_vol(volume.source.parent)
    return f"{parent.locator.name}@{volume.locator.name}"


def kind_of(name: str) -> str:
    """What a name of `display_name` names, in a word."""
    return "snapshot" if "@" in name else "volume"


def snapshot_object(volume: Volume, snapshot: Volume) -> SnapshotObject:
    """The object of a snapshot of `volume`."""
    from fusevol.driver.snapshots import AUTO_LABEL
    from fusevol.mount.schedule import SCHEDULE_LABEL

    return SnapshotObject(
        name=snapshot.locator.name,
        id=snapshot.id,
        volume=volume.locator.name,
        created=time_text(snapshot.ctime),
        automatic=AUTO_LABEL in snapshot.locator.volume_labels,
        labels=own_labels(snapshot),
        mounted_on=list(snapshot.attach_path),
        schedule=snapshot.locator.volume_labels.get(SCHEDULE_LABEL),
    )


def import_object(item: "Importable", *, imported: str = "", failed: str = "") -> ImportObject:
    """The object of a volume that can be imported; or was, under that name; or was not, for that reason."""
    record = item.record
    return ImportObject(
        id=item.id,
        name=imported or item.name,
        pool=item.pool,
        size=record.spec.size if record else 0,
        created=time_text(record.ctime) if record else None,
        held_by=item.held_by,
        # One that is damaged can be imported: what is wrong with it is for the list then.
        problem="" if imported else failed or item.problem,
    )
