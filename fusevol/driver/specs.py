"""What of a VolumeSpec this driver honours. The rest is refused, never ignored."""

from fusevol.api import VolumeSpec
from fusevol.errors import InvalidArgument, NotSupported
from fusevol.mount.schedule import parse_schedule

__all__ = ["check_change", "check_spec", "followed"]

#: Fields of a spec that may have any value.
_FREE = frozenset(
    {"encrypted", "ephemeral", "size", "sticky", "group", "mount_options", "snapshot_interval", "snapshot_schedule",
     "io_throttle", "readahead"}
)  # fmt: skip
#: The block size that its filesystem has.
_BLOCK_SIZE = 4096


def check_spec(spec: VolumeSpec, *, encrypted: bool) -> None:
    """Raise NotSupported for a field whose value would have no effect, InvalidArgument for one that makes no sense.

    encrypted: whether the volume is, or is to be, in a pool that encrypts. cos and io_profile are hints, but there is
    nothing yet that would take them.
    """
    default = VolumeSpec()
    if spec.encrypted and not encrypted:
        raise NotSupported(
            "encrypted: its pool does not encrypt", hint="choose one that has a key_file: fusevol pool ls"
        )
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


def check_change(before: VolumeSpec, after: VolumeSpec) -> None:
    """Raise as `check_spec`, and NotSupported for what cannot be changed of a volume that is there."""
    check_spec(after, encrypted=before.encrypted)
    if after.ephemeral and not before.ephemeral:
        raise NotSupported("ephemeral: that has to be said when a volume is made: it would lose what it holds")
    if before.encrypted and not after.encrypted:
        raise NotSupported(
            "encrypted: its pool encrypts all of its volumes", hint="copy it to a pool that does not: fusevol copy"
        )


def followed(spec: VolumeSpec) -> tuple[object, ...]:
    """What of a spec a mount goes by as soon as it changes; its size aside, which has a way of its own."""
    return spec.snapshot_interval, spec.snapshot_schedule, spec.io_throttle, spec.readahead


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "it" if value else "its absence"
    return str(value)
