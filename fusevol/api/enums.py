"""The enumerations of the volume model. Their text form is lower case and has no prefix.

Every member is a `str` equal to its text, so it can be printed, compared and stored as it is.
"""

from enum import StrEnum

__all__ = [
    "AttachState",
    "CosType",
    "DriverType",
    "FSType",
    "HealthStatus",
    "IoProfile",
    "ScanAction",
    "ScanTrigger",
    "VolumeState",
    "VolumeStatus",
]


class VolumeStatus(StrEnum):
    """Whether a volume's data can be reached."""

    NONE = "none"
    NOT_PRESENT = "not_present"
    UP = "up"
    DOWN = "down"
    DEGRADED = "degraded"


class VolumeState(StrEnum):
    """Where a volume stands in its life.

    pending: being created. available: ready, never attached. error: see `Volume.error`. restore: being
    turned into one of its snapshots. The others say what they mean.
    """

    NONE = "none"
    PENDING = "pending"
    AVAILABLE = "available"
    ATTACHED = "attached"
    DETACHED = "detached"
    DETACHING = "detaching"
    ERROR = "error"
    DELETED = "deleted"
    TRY_DETACHING = "try_detaching"
    RESTORE = "restore"


class AttachState(StrEnum):
    """Who an attachment is for.

    external: a user. internal: the driver itself, for work of its own; such a volume counts as not
    attached. internal_switch: the driver, about to hand it to a user.
    """

    EXTERNAL = "external"
    INTERNAL = "internal"
    INTERNAL_SWITCH = "internal_switch"


class FSType(StrEnum):
    """The filesystem of a volume. none: a raw block device. fuse: this project's own."""

    NONE = "none"
    BTRFS = "btrfs"
    EXT4 = "ext4"
    FUSE = "fuse"
    NFS = "nfs"
    VFS = "vfs"
    XFS = "xfs"
    ZFS = "zfs"


class DriverType(StrEnum):
    """What kind of storage a driver serves."""

    NONE = "none"
    FILE = "file"
    BLOCK = "block"
    OBJECT = "object"
    CLUSTERED = "clustered"
    GRAPH = "graph"


class CosType(StrEnum):
    """Class of service: a hint of how fast the store under a volume should be."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class IoProfile(StrEnum):
    """A hint of how a volume will be used. auto: let the driver find out."""

    SEQUENTIAL = "sequential"
    RANDOM = "random"
    DB = "db"
    DB_REMOTE = "db_remote"
    CMS = "cms"
    SYNC_SHARED = "sync_shared"
    AUTO = "auto"
    NONE = "none"
    JOURNAL = "journal"
    AUTO_JOURNAL = "auto_journal"


class ScanTrigger(StrEnum):
    """When a volume's filesystem is checked."""

    NONE = "none"
    ON_SCHEDULE = "on_schedule"
    ON_MOUNT = "on_mount"


class ScanAction(StrEnum):
    """What a check of a volume's filesystem does: nothing, only look, or also repair."""

    NONE = "none"
    SCAN_ONLY = "scan_only"
    SCAN_REPAIR = "scan_repair"


class HealthStatus(StrEnum):
    """What the last check of a volume's filesystem found. unsafe: do not use it before a repair."""

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    UNSAFE = "unsafe"
    NEEDS_INSPECTION = "needs_inspection"
