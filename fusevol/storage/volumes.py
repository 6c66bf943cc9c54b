"""What there is to say of volumes: devices of so many MiB."""

from collections.abc import Mapping
from typing import Any

from fusevol.api import Record
from fusevol.errors import FusevolError
from fusevol.storage.attachments import AttachmentParams
from fusevol.storage.enums import DeviceType
from fusevol.storage.names import ProviderType
from fusevol.storage.tags import MachineTag, UnitTag, VolumeTag

__all__ = [
    "AttachVolumesResult",
    "CreateVolumesResult",
    "DescribeVolumesResult",
    "Volume",
    "VolumeAttachment",
    "VolumeAttachmentInfo",
    "VolumeAttachmentParams",
    "VolumeAttachmentPlan",
    "VolumeAttachmentPlanInfo",
    "VolumeInfo",
    "VolumeParams",
]


class VolumeInfo(Record, frozen=True, kw_only=True):
    """A volume, as its provider knows it (VolumeInfo of the seed).

    volume_id: what the provider calls it, for its lifetime. hardware_id, wwn: those of the device, "" where it has
    none. size: MiB. persistent: it outlives the machine that it is attached to.
    """

    volume_id: str
    size: int
    hardware_id: str = ""
    wwn: str = ""
    persistent: bool = False

    def __post_init__(self) -> None:
        self._check_uint64(("size",))


class Volume(VolumeInfo, frozen=True, kw_only=True):
    """A volume, and what the model calls it (Volume of the seed)."""

    tag: VolumeTag


class VolumeAttachmentParams(AttachmentParams, frozen=True, kw_only=True):
    """Which volume is to be attached or detached (VolumeAttachmentParams of the seed)."""

    volume: VolumeTag
    volume_id: str = ""


class VolumeParams(Record, frozen=True, kw_only=True):
    """A volume that is to be made (VolumeParams of the seed).

    size: MiB that it must have at least. attributes: options of the provider's. resource_tags: to be set on it.
    attachment: where it is to be attached at first, None for nowhere.
    """

    tag: VolumeTag
    size: int
    provider: ProviderType
    attributes: Mapping[str, Any] = {}
    resource_tags: Mapping[str, str] = {}
    attachment: VolumeAttachmentParams | None = None

    def __post_init__(self) -> None:
        self._check_uint64(("size",))


class VolumeAttachmentPlanInfo(Record, frozen=True, kw_only=True):
    """What a machine has to do for the device to be there (VolumeAttachmentPlanInfo of the seed).

    device_attributes: for iSCSI the target, for one.
    """

    device_type: DeviceType = DeviceType.LOCAL
    device_attributes: Mapping[str, str] = {}


class VolumeAttachmentPlan(VolumeAttachmentPlanInfo, frozen=True, kw_only=True):
    """Such a plan, for one volume and one machine (VolumeAttachmentPlan of the seed)."""

    volume: VolumeTag
    machine: MachineTag


class VolumeAttachmentInfo(Record, frozen=True, kw_only=True):
    """How a machine sees a volume (VolumeAttachmentInfo of the seed).

    device_name: "sdb"; device_link: a link to the device; each "" where a reboot may change it. bus_address: where it
    is attached to the machine. plan_info: what the machine has to do first, None for nothing.
    """

    device_name: str = ""
    device_link: str = ""
    bus_address: str = ""
    read_only: bool = False
    plan_info: VolumeAttachmentPlanInfo | None = None


class VolumeAttachment(VolumeAttachmentInfo, frozen=True, kw_only=True):
    """That, of one volume on one machine (VolumeAttachment of the seed)."""

    volume: VolumeTag
    machine: MachineTag | UnitTag


class CreateVolumesResult(Record, frozen=True, kw_only=True):
    """What became of one volume that was to be made; without an error, it (CreateVolumesResult of the seed)."""

    volume: Volume | None = None
    volume_attachment: VolumeAttachment | None = None
    error: FusevolError | None = None


class DescribeVolumesResult(Record, frozen=True, kw_only=True):
    """What one volume is; without an error (DescribeVolumesResult of the seed)."""

    volume_info: VolumeInfo | None = None
    error: FusevolError | None = None


class AttachVolumesResult(Record, frozen=True, kw_only=True):
    """What became of one volume that was to be attached (AttachVolumesResult of the seed)."""

    volume_attachment: VolumeAttachment | None = None
    error: FusevolError | None = None
