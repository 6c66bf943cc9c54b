"""What of a VolumeSpec and of labels this driver honours. The rest is refused, never ignored."""

import re
from collections.abc import Mapping

from fusevol.api import Volume, VolumeSpec
from fusevol.driver.context import POOL_LABEL, RESERVED_LABELS
from fusevol.errors import InvalidArgument, NotSupported
from fusevol.mount.schedule import parse_schedule

__all__ = ["check_labels", "check_spec", "followed", "own_labels"]

#: Fields of a spec that may have any value.
_FREE = frozenset(
    {"ephemeral", "size", "sticky", "group", "mount_options", "snapshot_interval", "snapshot_schedule", "io_throttle",
     "readahead"}
)  # fmt: skip
#: The block size that its filesystem has.
_BLOCK_SIZE = 4096
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
_VALUE_MAX = 255


def check_spec(spec: VolumeSpec) -> None:
    """Raise NotSupported for a field whose value would have no effect, InvalidArgument for one that makes no sense.

    cos and io_profile are hints, but there is nothing yet that would take them.
    """
    default = VolumeSpec()
    for field in spec.__struct_fields__:
        if field == "block_size" and spec.block_size == _BLOCK_SIZE:
            continue
        if field not in _FREE and getattr(spec, field) != getattr(default, field):
            raise NotSupported(f"{field}: this driver does not support {_shown(getattr(spec, field))}")
    schedule = parse_schedule(spec.snapshot_schedule, spec.snapshot_interval)
    if spec.ephemeral and schedule.rules:
        raise InvalidArgument("ephemeral: what such a volume holds goes with its mount, and its snapshots as well")
    if spec.ephemeral and "ro" in spec.mount_options:
        raise InvalidArgument(
            "ephemeral: such a volume is empty when it is mounted, and of no use where it is read-only"
        )
    if spec.mount_options:
        from fusevol.driver.server import mount_options

        mount_options(spec.mount_options, "volume")


def followed(spec: VolumeSpec) -> tuple[object, ...]:
    """What of a spec a mount goes by as soon as it changes; its size aside, which has a way of its own."""
    return spec.snapshot_interval, spec.snapshot_schedule, spec.io_throttle, spec.readahead


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "it" if value else "its absence"
    return str(value)


def check_labels(labels: Mapping[str, str], *, made: bool = False) -> None:
    """Raise InvalidArgument for labels that users cannot set.

    made: the one is allowed that chooses the pool a volume is made in.
    """
    for key, value in labels.items():
        if key.startswith(RESERVED_LABELS) and not (made and key == POOL_LABEL):
            raise InvalidArgument(f"label {key!r}: labels that begin with {RESERVED_LABELS!r} are not yours to set")
        if not _KEY.fullmatch(key):
            raise InvalidArgument(
                f"{key[:140]!r} is not the key of a label",
                hint="use 1 to 128 letters, digits, '_', '.', '/' and '-', starting with a letter or digit",
            )
        if len(value) > _VALUE_MAX or not value.isprintable():
            raise InvalidArgument(f"label {key!r}: a value has at most {_VALUE_MAX} characters, all of them printable")


def own_labels(volume: Volume) -> dict[str, str]:
    """The labels that users gave a volume."""
    labels = volume.locator.volume_labels
    return {key: value for key, value in labels.items() if not key.startswith(RESERVED_LABELS)}
