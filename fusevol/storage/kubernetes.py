"""Storage of pods: what a pool may say about it, and the records that the seed has for it."""

from collections.abc import Mapping
from typing import Any, Final

from fusevol.api import Record
from fusevol.errors import InvalidArgument, NotSupported
from fusevol.storage.attachments import AttachmentParams
from fusevol.storage.names import ProviderType, quoted

__all__ = [
    "K8S_STORAGE_CLASS",
    "K8S_STORAGE_MEDIUM",
    "K8S_STORAGE_MEDIUM_CONST",
    "K8S_STORAGE_MEDIUM_HUGE_PAGES",
    "K8S_STORAGE_MEDIUM_MEMORY",
    "K8S_STORAGE_MODE",
    "K8S_STORAGE_PROVISIONER",
    "KubernetesFilesystemAttachmentParams",
    "KubernetesFilesystemInfo",
    "KubernetesFilesystemParams",
    "check_kubernetes_attrs",
]

#: Attributes of a pool.
K8S_STORAGE_CLASS: Final = "storage-class"
K8S_STORAGE_PROVISIONER: Final = "storage-provisioner"
K8S_STORAGE_MEDIUM: Final = "storage-medium"
K8S_STORAGE_MODE: Final = "storage-mode"
K8S_STORAGE_MEDIUM_CONST: Final = K8S_STORAGE_MEDIUM
#: What the medium may be: tmpfs, and large pages.
K8S_STORAGE_MEDIUM_MEMORY: Final = "Memory"
K8S_STORAGE_MEDIUM_HUGE_PAGES: Final = "HugePages"

_MEDIA = (K8S_STORAGE_MEDIUM_MEMORY, K8S_STORAGE_MEDIUM_HUGE_PAGES)
_MODES = ("ReadOnlyMany", "ROX", "ReadWriteMany", "RWX", "ReadWriteOnce", "RWO")


class KubernetesFilesystemAttachmentParams(AttachmentParams, frozen=True, kw_only=True):
    """Where a pod is to have a filesystem (KubernetesFilesystemAttachmentParams of the seed)."""

    path: str = ""


class KubernetesFilesystemInfo(Record, frozen=True, kw_only=True):
    """A filesystem that a pod has (KubernetesFilesystemInfo of the seed). size: MiB. pool: what it was made in."""

    mount_point: str
    filesystem_id: str
    pool: str
    size: int
    read_only: bool = False

    def __post_init__(self) -> None:
        self._check_uint64(("size",))


class KubernetesFilesystemParams(Record, frozen=True, kw_only=True):
    """A filesystem that a pod is to have (KubernetesFilesystemParams of the seed); fields as of FilesystemParams.

    storage_name: what the application calls it.
    """

    storage_name: str
    size: int
    provider: ProviderType
    attributes: Mapping[str, Any] = {}
    resource_tags: Mapping[str, str] = {}
    attachment: KubernetesFilesystemAttachmentParams | None = None

    def __post_init__(self) -> None:
        self._check_uint64(("size",))


def check_kubernetes_attrs(attrs: Mapping[str, Any]) -> None:
    """Check what a pool says for pods under the four keys; no others are looked at, and None is as good as nothing.

    Raises InvalidArgument, and NotSupported for a mode that there is not.
    """
    for key in (K8S_STORAGE_CLASS, K8S_STORAGE_PROVISIONER):
        if not isinstance(attrs.get(key), str | None):
            raise InvalidArgument(f"{key}: expected a text, got {attrs[key]!r}")
    if attrs.get(K8S_STORAGE_PROVISIONER) and not attrs.get(K8S_STORAGE_CLASS):
        raise InvalidArgument(f"{K8S_STORAGE_CLASS} must be specified if {K8S_STORAGE_PROVISIONER} is specified")
    if (medium := attrs.get(K8S_STORAGE_MEDIUM)) is not None and medium not in _MEDIA:
        raise InvalidArgument(f"storage medium {quoted(str(medium))} not valid")
    if (mode := attrs.get(K8S_STORAGE_MODE)) is not None and mode not in _MODES:
        raise NotSupported(f"storage mode {quoted(str(mode))} not supported")
