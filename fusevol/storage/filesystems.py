"""What there is to say of filesystems: what can be mounted, of so many MiB."""

from collections.abc import Mapping
from typing import Any

from fusevol.api import Record
from fusevol.errors import FusevolError
from fusevol.storage.attachments import AttachmentParams
from fusevol.storage.names import ProviderType
from fusevol.storage.tags import FilesystemTag, MachineTag, UnitTag, VolumeTag

__all__ = [
    "AttachFilesystemsResult",
    "CreateFilesystemsResult",
    "Filesystem",
    "FilesystemAttachment",
    "FilesystemAttachmentInfo",
    "FilesystemAttachmentParams",
    "FilesystemInfo",
    "FilesystemParams",
]


class FilesystemInfo(Record, frozen=True, kw_only=True):
    """A filesystem, as its provider knows it (FilesystemInfo of the seed).

    filesystem_id: what the provider calls it, for its lifetime. size: MiB.
    """

    filesystem_id: str
    size: int

    def __post_init__(self) -> None:
        self._check_uint64(("size",))


class Filesystem(FilesystemInfo, frozen=True, kw_only=True):
    """A filesystem, and what the model calls it (Filesystem of the seed). volume: what it is on, None for nothing."""

    tag: FilesystemTag
    volume: VolumeTag | None = None


class FilesystemAttachmentParams(AttachmentParams, frozen=True, kw_only=True):
    """Which filesystem is to be mounted, or unmounted, and where (FilesystemAttachmentParams of the seed)."""

    filesystem: FilesystemTag
    filesystem_id: str = ""
    path: str = ""


class FilesystemParams(Record, frozen=True, kw_only=True):
    """A filesystem that is to be made (FilesystemParams of the seed).

    volume: what it is to be on, None for nothing. size: MiB that it must have at least. attributes: options of the
    provider's. resource_tags: to be set on it. attachment: where it is to be mounted at first, None for nowhere.
    """

    tag: FilesystemTag
    size: int
    provider: ProviderType
    volume: VolumeTag | None = None
    attributes: Mapping[str, Any] = {}
    resource_tags: Mapping[str, str] = {}
    attachment: FilesystemAttachmentParams | None = None

    def __post_init__(self) -> None:
        self._check_uint64(("size",))


class FilesystemAttachmentInfo(Record, frozen=True, kw_only=True):
    """Where a machine has a filesystem (FilesystemAttachmentInfo of the seed)."""

    path: str
    read_only: bool = False


class FilesystemAttachment(FilesystemAttachmentInfo, frozen=True, kw_only=True):
    """That, of one filesystem on one machine (FilesystemAttachment of the seed)."""

    filesystem: FilesystemTag
    machine: MachineTag | UnitTag


class CreateFilesystemsResult(Record, frozen=True, kw_only=True):
    """What became of one filesystem that was to be made; without an error, it (CreateFilesystemsResult of the seed)."""

    filesystem: Filesystem | None = None
    error: FusevolError | None = None


class AttachFilesystemsResult(Record, frozen=True, kw_only=True):
    """What became of one filesystem that was to be mounted (AttachFilesystemsResult of the seed)."""

    filesystem_attachment: FilesystemAttachment | None = None
    error: FusevolError | None = None
