"""What a query for volumes asks: the rules of `Enumerator`, for stores to share."""

import re
from collections.abc import Callable, Mapping

from fusevol.api.types import Volume, VolumeLocator
from fusevol.errors import InvalidArgument

__all__ = ["has_labels", "matcher", "scope_of"]


def scope_of(volume: Volume) -> str:
    """Within what its name is unique: the parent for a snapshot, "" for all others."""
    return volume.source.parent if volume.is_snapshot else ""


def has_labels(volume: Volume, labels: Mapping[str, str]) -> bool:
    """Whether all of `labels` are among the volume's."""
    return labels.items() <= volume.locator.volume_labels.items()


def matcher(locator: VolumeLocator | None, labels: Mapping[str, str] | None) -> Callable[[Volume], bool]:
    """The test that a volume must pass. Raises InvalidArgument for a bad regular expression."""
    locator = locator or VolumeLocator()
    wanted = {**locator.volume_labels, **(labels or {})}
    # What both ask for with different values no volume has.
    contradiction = any(wanted[key] != value for key, value in locator.volume_labels.items())
    try:
        pattern = re.compile(locator.name) if locator.name else None
    except re.error as error:
        raise InvalidArgument(f"{locator.name!r} is not a regular expression: {error}") from None
    ids = frozenset(locator.volume_ids)

    def matches(volume: Volume) -> bool:
        own = volume.locator
        return (
            not contradiction
            and (pattern is None or pattern.fullmatch(own.name) is not None)
            and (not locator.ownership or own.ownership == locator.ownership)
            and (not locator.group or own.group == locator.group)
            and (not ids or volume.id in ids)
            and has_labels(volume, wanted)
        )

    return matches
