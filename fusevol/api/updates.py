"""Partial updates: what `ProtoDriver.set` is to change. A field left UNSET stays as it is."""

import msgspec
from msgspec import UNSET, UnsetType

from fusevol.api.enums import CosType, FSType, IoProfile
from fusevol.api.names import check_name
from fusevol.api.types import IoStrategy, IoThrottle, Record, ScanPolicy, VolumeLocator, VolumeSpec

__all__ = ["UNSET", "LocatorUpdate", "SpecUpdate"]


class LocatorUpdate(Record, frozen=True, kw_only=True):
    """A change of a volume's locator: a new name renames it, labels are merged into those it has.

    A label with an empty value is removed.
    """

    name: str | UnsetType = UNSET
    volume_labels: dict[str, str] = msgspec.field(default_factory=dict)
    ownership: str | UnsetType = UNSET
    group: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.name is not UNSET:
            check_name(self.name, "LocatorUpdate.name:")

    def apply_to(self, locator: VolumeLocator) -> VolumeLocator:
        """`locator` with the changes made."""
        removed = {label for label, value in self.volume_labels.items() if not value}
        merged = locator.volume_labels | self.volume_labels
        labels = {label: value for label, value in merged.items() if label not in removed}
        return msgspec.structs.replace(locator, **(_set_fields(self) | {"volume_labels": labels}))


class SpecUpdate(Record, frozen=True, kw_only=True):
    """A change of a volume's spec; the fields are those of VolumeSpec. A passphrase is not changed so."""

    ephemeral: bool | UnsetType = UNSET
    size: int | UnsetType = UNSET
    format: FSType | UnsetType = UNSET
    block_size: int | UnsetType = UNSET
    cos: CosType | UnsetType = UNSET
    io_profile: IoProfile | UnsetType = UNSET
    snapshot_interval: int | UnsetType = UNSET
    snapshot_schedule: str | UnsetType = UNSET
    shared: bool | UnsetType = UNSET
    encrypted: bool | UnsetType = UNSET
    sticky: bool | UnsetType = UNSET
    group: str | UnsetType = UNSET
    compressed: bool | UnsetType = UNSET
    dedupe: bool | UnsetType = UNSET
    io_strategy: IoStrategy | UnsetType | None = UNSET
    io_throttle: IoThrottle | UnsetType | None = UNSET
    readahead: bool | UnsetType = UNSET
    mount_options: dict[str, str] | UnsetType = UNSET
    scan_policy: ScanPolicy | UnsetType = UNSET
    checksummed: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        numbers = ("size", "block_size", "snapshot_interval")
        self._check_uint64(field for field in numbers if getattr(self, field) is not UNSET)

    def apply_to(self, spec: VolumeSpec) -> VolumeSpec:
        """`spec` with the changes made. Raises InvalidArgument where that makes no sense."""
        return msgspec.structs.replace(spec, **_set_fields(self))


def _set_fields(update: Record) -> dict[str, object]:
    return {k: v for k, v in msgspec.structs.asdict(update).items() if v is not UNSET}
