"""The interfaces of storage: providers, which give out sources, which make volumes and filesystems.

They are those of Juju's `storage` package. A source is configured in a particular way, by a pool. Its calls take many
at once: results have the order of what was asked for, and each its own error; the call itself raises only where none of
it could be done. Where the seed has a context to cancel a call with, here the task is cancelled.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fusevol.errors import FusevolError
from fusevol.storage.config import Config
from fusevol.storage.enums import Scope, StorageKind
from fusevol.storage.filesystems import (
    AttachFilesystemsResult,
    CreateFilesystemsResult,
    FilesystemAttachmentParams,
    FilesystemInfo,
    FilesystemParams,
)
from fusevol.storage.names import ProviderType
from fusevol.storage.volumes import (
    AttachVolumesResult,
    CreateVolumesResult,
    DescribeVolumesResult,
    VolumeAttachmentParams,
    VolumeInfo,
    VolumeParams,
)

__all__ = [
    "FilesystemImporter",
    "FilesystemSource",
    "Provider",
    "ProviderRegistry",
    "VolumeImporter",
    "VolumeSource",
]


class FilesystemSource(ABC):
    """Makes, mounts and destroys filesystems (FilesystemSource of the seed)."""

    @abstractmethod
    def validate_filesystem_params(self, params: FilesystemParams) -> None:
        """Check what is to be made. Looks at nothing of this machine, which may not be the one that makes it.

        Raises InvalidArgument, NotSupported.
        """

    @abstractmethod
    async def create_filesystems(self, params: Sequence[FilesystemParams]) -> list[CreateFilesystemsResult]:
        """Make filesystems of that many MiB at least, and mount those that have an attachment.

        One of that tag that is there already is the one asked for, and grows if it has to.
        """

    @abstractmethod
    async def destroy_filesystems(self, filesystem_ids: Sequence[str]) -> list[FusevolError | None]:
        """Unmount filesystems and delete them, with all they hold. One that is gone is no error."""

    @abstractmethod
    async def release_filesystems(self, filesystem_ids: Sequence[str]) -> list[FusevolError | None]:
        """Forget whose filesystems are, and keep what they hold. One that is attached is VolumeAttached."""

    @abstractmethod
    async def attach_filesystems(self, params: Sequence[FilesystemAttachmentParams]) -> list[AttachFilesystemsResult]:
        """Mount filesystems. Where one is mounted already, as it is after a restart, that is the result.

        One that another machine has is VolumeAttached.
        """

    @abstractmethod
    async def detach_filesystems(self, params: Sequence[FilesystemAttachmentParams]) -> list[FusevolError | None]:
        """Unmount filesystems, and keep what they hold. One that is not mounted is no error."""


class VolumeSource(ABC):
    """Makes, attaches and destroys volumes (VolumeSource of the seed)."""

    @abstractmethod
    def validate_volume_params(self, params: VolumeParams) -> None:
        """As `FilesystemSource.validate_filesystem_params`."""

    @abstractmethod
    async def create_volumes(self, params: Sequence[VolumeParams]) -> list[CreateVolumesResult]:
        """Make volumes of that many MiB at least, and attach those that have an attachment."""

    @abstractmethod
    async def list_volumes(self) -> list[str]:
        """The ids of all volumes that this source has made."""

    @abstractmethod
    async def describe_volumes(self, volume_ids: Sequence[str]) -> list[DescribeVolumesResult]:
        """What volumes are. One that does not exist is VolumeNotFound."""

    @abstractmethod
    async def destroy_volumes(self, volume_ids: Sequence[str]) -> list[FusevolError | None]:
        """Detach volumes and delete them, with all they hold. One that is gone is no error."""

    @abstractmethod
    async def release_volumes(self, volume_ids: Sequence[str]) -> list[FusevolError | None]:
        """Forget whose volumes are, and keep what they hold. One that is attached is VolumeAttached."""

    @abstractmethod
    async def attach_volumes(self, params: Sequence[VolumeAttachmentParams]) -> list[AttachVolumesResult]:
        """Attach volumes to their machines; the same again where they are. One that another has is VolumeAttached."""

    @abstractmethod
    async def detach_volumes(self, params: Sequence[VolumeAttachmentParams]) -> list[FusevolError | None]:
        """Detach volumes, and keep what they hold. One that is not attached is no error."""


class FilesystemImporter(Protocol):
    """What a FilesystemSource can be besides (FilesystemImporter of the seed)."""

    async def import_filesystem(self, filesystem_id: str, resource_tags: Mapping[str, str]) -> FilesystemInfo:
        """Take a filesystem, which nobody has mounted, for one's own, with these tags.

        Raises VolumeNotFound, VolumeAttached for one that is mounted, InvalidArgument.
        """


class VolumeImporter(Protocol):
    """What a VolumeSource can be besides (VolumeImporter of the seed)."""

    async def import_volume(self, volume_id: str, resource_tags: Mapping[str, str]) -> VolumeInfo:
        """As `FilesystemImporter.import_filesystem`."""


class Provider(ABC):
    """Gives out sources (Provider of the seed)."""

    @abstractmethod
    def volume_source(self, config: Config) -> VolumeSource:
        """The source of volumes that a pool is. Raises NotSupported where there are none, InvalidArgument."""

    @abstractmethod
    def filesystem_source(self, config: Config) -> FilesystemSource:
        """The source of filesystems that a pool is. Raises NotSupported where there are none, InvalidArgument."""

    @abstractmethod
    def supports(self, kind: StorageKind) -> bool:
        """Whether it has such sources. Of filesystems there can be some on the volumes of one that has volumes only."""

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """Who can manage what it has."""

    @property
    @abstractmethod
    def dynamic(self) -> bool:
        """Whether it can make storage for machines that run already."""

    @property
    @abstractmethod
    def releasable(self) -> bool:
        """Whether it can release storage."""

    @abstractmethod
    def default_pools(self) -> list[Config]:
        """The pools that there are without being asked for."""

    @abstractmethod
    def validate_config(self, config: Config) -> None:
        """Check what describes a pool. Raises InvalidArgument, NotSupported."""

    @abstractmethod
    def validate_for_k8s(self, attrs: Mapping[str, Any]) -> None:
        """Check whether pods can have storage with these attributes. Raises InvalidArgument, NotSupported."""


class ProviderRegistry(ABC):
    """Knows providers by their types (ProviderRegistry of the seed). What it has must not change between calls."""

    @abstractmethod
    def storage_provider_types(self) -> list[ProviderType]:
        """The types of all providers."""

    @abstractmethod
    def storage_provider(self, provider_type: ProviderType) -> Provider:
        """The provider of a type. Raises DriverNotFound."""
