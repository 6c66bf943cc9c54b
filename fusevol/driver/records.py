"""Records of volumes as they are made, changed and deleted."""

from collections.abc import Sequence

import msgspec

from fusevol.api import Volume, VolumeState, VolumeStatus
from fusevol.driver.labels import POOL_LABEL, own_labels, pool_of, with_labels
from fusevol.errors import InvalidArgument, NotSupported, VolumeNotFound
from fusevol.home import Pool

__all__ = ["as_before", "available", "deleted", "in_pool", "inherited", "names_of", "unfinished"]

_NAMES_SHOWN = 5


def inherited(record: Volume, parent: Volume) -> Volume:
    """The record of a clone: in its parent's pool, with its labels, and its size unless it has one.

    Raises NotSupported for another pool, VolumeNotFound, InvalidArgument for a smaller size.
    """
    pool, size = pool_of(parent), record.spec.size
    if record.locator.volume_labels.get(POOL_LABEL, pool) != pool:
        raise NotSupported(f'a clone of "{parent.locator.name}" can only be in the same pool, "{pool}"')
    if parent.state in (VolumeState.PENDING, VolumeState.DELETED):
        raise VolumeNotFound(f'volume "{parent.locator.name}" is being created or deleted')
    if size and size < parent.spec.size:
        raise InvalidArgument(f'a clone of "{parent.locator.name}" cannot be smaller than its {parent.spec.size} bytes')
    record = with_labels(record, {POOL_LABEL: pool})
    locator = msgspec.structs.replace(
        record.locator, volume_labels={**own_labels(parent), **record.locator.volume_labels}
    )
    spec = msgspec.structs.replace(record.spec, size=size or parent.spec.size)
    return msgspec.structs.replace(record, locator=locator, spec=spec, format=parent.format)


def in_pool(record: Volume, pool: Pool) -> Volume:
    """The record of a volume in that pool, and encrypted where that is."""
    spec = msgspec.structs.replace(record.spec, encrypted=bool(pool.key_file))
    return with_labels(msgspec.structs.replace(record, spec=spec), {POOL_LABEL: pool.name})


def available(volume: Volume) -> Volume:
    """The record of a volume that is made."""
    return msgspec.structs.replace(volume, state=VolumeState.AVAILABLE, status=VolumeStatus.UP)


def unfinished(volume: Volume) -> Volume:
    """The record of a volume that is only partly a copy of another."""
    return msgspec.structs.replace(volume, state=VolumeState.RESTORE, status=VolumeStatus.UP)


def as_before(now: Volume, after: Volume, before: Volume) -> Volume:
    """The record with a change of locator and spec undone, unless somebody made another one since."""
    if (now.locator, now.spec) != (after.locator, after.spec):
        return now
    return msgspec.structs.replace(now, locator=before.locator, spec=before.spec)


def deleted(volume: Volume) -> Volume:
    """The record of a volume whose deletion has begun."""
    return msgspec.structs.replace(volume, state=VolumeState.DELETED, status=VolumeStatus.DOWN)


def names_of(volumes: Sequence[Volume]) -> str:
    """The names of volumes for an error, the first few of them."""
    names = sorted({volume.locator.name for volume in volumes})
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
