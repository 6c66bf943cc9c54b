"""Storage for machines and units: providers, pools, directives, sources.

The interfaces are those of Juju's `storage` package in Python. `local_provider_registry` has the providers of a state
directory, whose sources make and mount volumes; volumes of block devices there are none.
"""

from fusevol.storage.attachments import AttachmentParams, StorageAttachmentInfo, StorageInstance
from fusevol.storage.config import CONFIG_STORAGE_DIR, Attrs, Config
from fusevol.storage.directive import Directive, parse_directive, parse_directives_map, to_string
from fusevol.storage.enums import DeviceType, Scope, StorageKind
from fusevol.storage.filesystems import (
    AttachFilesystemsResult,
    CreateFilesystemsResult,
    Filesystem,
    FilesystemAttachment,
    FilesystemAttachmentInfo,
    FilesystemAttachmentParams,
    FilesystemInfo,
    FilesystemParams,
)
from fusevol.storage.kubernetes import (
    K8S_STORAGE_CLASS,
    K8S_STORAGE_MEDIUM,
    K8S_STORAGE_MEDIUM_CONST,
    K8S_STORAGE_MEDIUM_HUGE_PAGES,
    K8S_STORAGE_MEDIUM_MEMORY,
    K8S_STORAGE_MODE,
    K8S_STORAGE_PROVISIONER,
    KubernetesFilesystemAttachmentParams,
    KubernetesFilesystemInfo,
    KubernetesFilesystemParams,
    check_kubernetes_attrs,
)
from fusevol.storage.local import LocalProvider, local_provider_registry
from fusevol.storage.localsource import LocalFilesystemSource
from fusevol.storage.names import ProviderType, is_valid_pool_name
from fusevol.storage.pools import PoolManager
from fusevol.storage.provider import (
    FilesystemImporter,
    FilesystemSource,
    Provider,
    ProviderRegistry,
    VolumeImporter,
    VolumeSource,
)
from fusevol.storage.provisioning import Provisioned, provision
from fusevol.storage.registry import (
    ChainedProviderRegistry,
    NotImplementedProviderRegistry,
    StaticProviderRegistry,
)
from fusevol.storage.tags import FilesystemTag, MachineTag, StorageTag, Tag, UnitTag, VolumeTag, parse_tag
from fusevol.storage.volumes import (
    AttachVolumesResult,
    CreateVolumesResult,
    DescribeVolumesResult,
    Volume,
    VolumeAttachment,
    VolumeAttachmentInfo,
    VolumeAttachmentParams,
    VolumeAttachmentPlan,
    VolumeAttachmentPlanInfo,
    VolumeInfo,
    VolumeParams,
)

__all__ = [
    "CONFIG_STORAGE_DIR",
    "K8S_STORAGE_CLASS",
    "K8S_STORAGE_MEDIUM",
    "K8S_STORAGE_MEDIUM_CONST",
    "K8S_STORAGE_MEDIUM_HUGE_PAGES",
    "K8S_STORAGE_MEDIUM_MEMORY",
    "K8S_STORAGE_MODE",
    "K8S_STORAGE_PROVISIONER",
    "AttachFilesystemsResult",
    "AttachVolumesResult",
    "AttachmentParams",
    "Attrs",
    "ChainedProviderRegistry",
    "Config",
    "CreateFilesystemsResult",
    "CreateVolumesResult",
    "DescribeVolumesResult",
    "DeviceType",
    "Directive",
    "Filesystem",
    "FilesystemAttachment",
    "FilesystemAttachmentInfo",
    "FilesystemAttachmentParams",
    "FilesystemImporter",
    "FilesystemInfo",
    "FilesystemParams",
    "FilesystemSource",
    "FilesystemTag",
    "KubernetesFilesystemAttachmentParams",
    "KubernetesFilesystemInfo",
    "KubernetesFilesystemParams",
    "LocalFilesystemSource",
    "LocalProvider",
    "MachineTag",
    "NotImplementedProviderRegistry",
    "PoolManager",
    "Provider",
    "ProviderRegistry",
    "ProviderType",
    "Provisioned",
    "Scope",
    "StaticProviderRegistry",
    "StorageAttachmentInfo",
    "StorageInstance",
    "StorageKind",
    "StorageTag",
    "Tag",
    "UnitTag",
    "Volume",
    "VolumeAttachment",
    "VolumeAttachmentInfo",
    "VolumeAttachmentParams",
    "VolumeAttachmentPlan",
    "VolumeAttachmentPlanInfo",
    "VolumeImporter",
    "VolumeInfo",
    "VolumeParams",
    "VolumeSource",
    "VolumeTag",
    "check_kubernetes_attrs",
    "is_valid_pool_name",
    "local_provider_registry",
    "parse_directive",
    "parse_directives_map",
    "parse_tag",
    "provision",
    "to_string",
]
