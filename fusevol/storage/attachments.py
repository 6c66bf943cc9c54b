"""What attachments of volumes and of filesystems have in common, and what they are to a unit."""

from fusevol.api import Record
from fusevol.storage.enums import StorageKind
from fusevol.storage.names import ProviderType
from fusevol.storage.tags import MachineTag, StorageTag, UnitTag

__all__ = ["AttachmentParams", "StorageAttachmentInfo", "StorageInstance"]


class AttachmentParams(Record, frozen=True, kw_only=True):
    """What is to be attached to which machine (AttachmentParams of the seed).

    machine: also the unit that has it, in a container. instance_id: what a cloud calls the machine, "" where it does
    not run yet, or where there is no cloud.
    """

    provider: ProviderType
    machine: MachineTag | UnitTag
    instance_id: str = ""
    read_only: bool = False


class StorageInstance(Record, frozen=True, kw_only=True):
    """A store of data that an application or unit was given (StorageInstance of the seed)."""

    tag: StorageTag
    kind: StorageKind


class StorageAttachmentInfo(Record, frozen=True, kw_only=True):
    """Where a unit has its store (StorageAttachmentInfo of the seed): location is a mountpoint, or a device."""

    kind: StorageKind
    location: str
