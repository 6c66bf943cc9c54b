"""The records of the volume model: what a volume is, should be, does and takes up.

All records are immutable; `msgspec.structs.replace` makes a changed copy. Their dicts are not to be
changed either. Making one with a value out of range raises InvalidArgument, as does reading one from
JSON (`fusevol.api.codec`). Sizes are in bytes and fit in 64 bits without a sign. Times are aware
datetimes, kept in UTC to the microsecond; None means never. An empty text means not set.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec

from fusevol.api.codec import Secret
from fusevol.api.enums import (
    AttachState,
    CosType,
    FSType,
    HealthStatus,
    IoProfile,
    ScanAction,
    ScanTrigger,
    VolumeState,
    VolumeStatus,
)
from fusevol.api.names import check_name
from fusevol.errors import InvalidArgument

__all__ = [
    "UINT64_MAX",
    "ActiveRequest",
    "ActiveRequests",
    "IoStrategy",
    "IoThrottle",
    "Record",
    "ScanPolicy",
    "Source",
    "Stats",
    "Usage",
    "Volume",
    "VolumeConsumer",
    "VolumeLocator",
    "VolumeSpec",
]

#: The largest size or counter.
UINT64_MAX: Final = 2**64 - 1


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the records."""

    def _check_uint64(self, fields: Iterable[str]) -> None:
        for field in fields:
            value = getattr(self, field)
            if not 0 <= value <= UINT64_MAX:
                raise InvalidArgument(f"{type(self).__name__}.{field}: {value} is not between 0 and 2^64-1")

    def _keep_in_utc(self, fields: Iterable[str]) -> None:
        for field in fields:
            value = getattr(self, field)
            if value is None:
                continue
            if value.utcoffset() is None:
                raise InvalidArgument(f"{type(self).__name__}.{field}: the time has no time zone")
            try:
                msgspec.structs.force_setattr(self, field, value.astimezone(UTC))
            except OverflowError as error:
                raise InvalidArgument(f"{type(self).__name__}.{field}: the time is out of range") from error


class VolumeLocator(Record, frozen=True, kw_only=True):
    """What a volume is found by.

    name: its name; in a query a regular expression that must match in full, or empty for any.
    volume_labels: its labels; in a query those it must have.
    ownership: who owns it. group: the group of volumes it belongs to.
    volume_ids: in a query, the ids to choose from; empty for any. Empty in a volume's own locator.
    """

    name: str = ""
    volume_labels: dict[str, str] = {}
    ownership: str = ""
    group: str = ""
    volume_ids: tuple[str, ...] = ()


class Source(Record, frozen=True, kw_only=True):
    """Where a volume's first contents come from.

    parent: id of the volume or snapshot that it is a snapshot or clone of.
    seed: URL of what an import was made from.
    """

    parent: str = ""
    seed: str = ""


class IoThrottle(Record, frozen=True, kw_only=True):
    """Upper bounds per second; 0 means none. iops: operations. bw_mbytes: 10^6 bytes."""

    read_iops: int = 0
    write_iops: int = 0
    read_bw_mbytes: int = 0
    write_bw_mbytes: int = 0

    def __post_init__(self) -> None:
        self._check_uint64(self.__struct_fields__)


class IoStrategy(Record, frozen=True, kw_only=True):
    """How a driver may do its I/O: asynchronously, acknowledging early, past the page cache."""

    async_io: bool = False
    early_ack: bool = False
    direct_io: bool = False


class ScanPolicy(Record, frozen=True, kw_only=True):
    """When the filesystem is checked, and what the check does."""

    trigger: ScanTrigger = ScanTrigger.NONE
    action: ScanAction = ScanAction.NONE


class VolumeSpec(Record, frozen=True, kw_only=True):
    """What a volume should be like. What a driver cannot honour it refuses with NotSupported.

    ephemeral: goes with the process that serves it.
    size: bytes it may hold, provisioned thin; 0 for no limit.
    format: its filesystem. block_size: that filesystem's block size in bytes; 0 leaves it to the driver.
    cos, io_profile: hints.
    snapshot_interval: minutes between automatic snapshots; 0 for none.
    snapshot_schedule: when to take others, as text.
    shared: may be mounted on several nodes at once.
    encrypted: its data is encrypted at rest. passphrase: the key to that; only ever on its way in, never
        written to a record (`to_json` leaves null).
    sticky: must be set back before it can be deleted.
    group: the group of volumes that snapshots are taken of together.
    compressed, dedupe, checksummed: what is done to its blocks.
    io_strategy: how I/O may be done. io_throttle: bounds on it, None for none.
    readahead: the kernel reads ahead on its mounts.
    mount_options: options of every mount; a flag has the value "".
    scan_policy: when it is checked.
    """

    ephemeral: bool = False
    size: int = 0
    format: FSType = FSType.FUSE
    block_size: int = 0
    cos: CosType = CosType.NONE
    io_profile: IoProfile = IoProfile.AUTO
    snapshot_interval: int = 0
    snapshot_schedule: str = ""
    shared: bool = False
    encrypted: bool = False
    passphrase: Secret | None = None
    sticky: bool = False
    group: str = ""
    compressed: bool = False
    dedupe: bool = False
    io_strategy: IoStrategy | None = None
    io_throttle: IoThrottle | None = None
    readahead: bool = True
    mount_options: dict[str, str] = {}
    scan_policy: ScanPolicy = ScanPolicy()
    checksummed: bool = True

    def __post_init__(self) -> None:
        self._check_uint64(("size", "block_size", "snapshot_interval"))
        if self.passphrase is not None and not self.encrypted:
            raise InvalidArgument("VolumeSpec.passphrase: the volume is not encrypted")


class Usage(Record, frozen=True, kw_only=True):
    """What a volume takes up in its store, in bytes.

    exclusive: what deleting it would free. shared: what its snapshots, clones or parent hold as well.
    """

    exclusive: int = 0
    shared: int = 0

    def __post_init__(self) -> None:
        self._check_uint64(self.__struct_fields__)

    @property
    def total(self) -> int:
        """Bytes that it refers to, exclusive and shared."""
        return self.exclusive + self.shared


class VolumeConsumer(Record, frozen=True, kw_only=True):
    """Someone who uses a volume.

    name: how the consumer calls itself (Docker: the mount id). type: what it is ("docker").
    node_id: the node it is on, boot: and the boot of that, which it does not outlive.
    count: how many times it mounted the volume and did not unmount it.
    """

    name: str
    type: str = ""
    node_id: str = ""
    boot: str = ""
    count: int = 1

    def __post_init__(self) -> None:
        self._check_uint64(("count",))


class Volume(Record, frozen=True, kw_only=True):
    """A volume, snapshot or clone, as it is recorded.

    id: its UUID, for good. locator: its name and labels; for a snapshot the part after `@`.
    source: what it was made from. readonly: it cannot be written. ctime: when it was created.
    spec: what it should be like. usage: bytes it takes up. format: the filesystem that it has.
    status, state: how it is; error: what is wrong, in one line.
    attached_on: the node that has it attached, attached_state: for whom, device_path: as which device,
        attach_path: on which mount paths, attach_info: what else there is to know of the attachment.
    attach_time, detach_time: when that last happened.
    runtime_state: key-value pairs of the moment, for people. mount_options: those in effect.
    last_scan, last_scan_status: when the filesystem was last checked, and what that found.
    volume_consumers: who uses it.
    """

    id: str
    locator: VolumeLocator
    ctime: datetime
    source: Source = Source()
    readonly: bool = False
    spec: VolumeSpec = VolumeSpec()
    usage: Usage = Usage()
    format: FSType = FSType.FUSE
    status: VolumeStatus = VolumeStatus.NONE
    state: VolumeState = VolumeState.NONE
    attached_on: str = ""
    attached_state: AttachState = AttachState.EXTERNAL
    device_path: str = ""
    attach_path: tuple[str, ...] = ()
    attach_info: dict[str, str] = {}
    runtime_state: tuple[dict[str, str], ...] = ()
    error: str = ""
    attach_time: datetime | None = None
    detach_time: datetime | None = None
    mount_options: dict[str, str] = {}
    last_scan: datetime | None = None
    last_scan_status: HealthStatus = HealthStatus.UNKNOWN
    volume_consumers: tuple[VolumeConsumer, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.id, "Volume.id:")
        check_name(self.locator.name, "Volume.locator.name:")
        self._keep_in_utc(("ctime", "attach_time", "detach_time", "last_scan"))

    @property
    def is_snapshot(self) -> bool:
        """It has a parent and cannot be written."""
        return bool(self.source.parent) and self.readonly

    @property
    def is_clone(self) -> bool:
        """It has a parent and can be written."""
        return bool(self.source.parent) and not self.readonly

    @property
    def is_attached(self) -> bool:
        """A user has it attached on some node; the driver's own attachments do not count."""
        return (
            bool(self.attached_on)
            and self.state is VolumeState.ATTACHED
            and self.attached_state is not AttachState.INTERNAL
        )


class Stats(Record, frozen=True, kw_only=True):
    """I/O of a volume: counters since it was mounted, or over a time (see `since`).

    reads, writes, discards: operations. *_bytes: what they moved. *_ms: milliseconds they took in sum.
    io_ms: milliseconds in which at least one was running. interval_ms: milliseconds counted over.
    The rest are no counters but levels. io_progress: operations running now. bytes_used: what the volume
    takes up. unique_blocks: blocks that it shares with nobody.
    """

    reads: int = 0
    read_ms: int = 0
    read_bytes: int = 0
    writes: int = 0
    write_ms: int = 0
    write_bytes: int = 0
    io_progress: int = 0
    io_ms: int = 0
    bytes_used: int = 0
    interval_ms: int = 0
    discards: int = 0
    discard_ms: int = 0
    discard_bytes: int = 0
    unique_blocks: int = 0

    def __post_init__(self) -> None:
        self._check_uint64(self.__struct_fields__)

    def since(self, earlier: "Stats") -> "Stats":
        """What was counted after `earlier`, with the levels of now.

        Where any counter is lower than it was, the volume was mounted anew, and all of it came after.
        """
        counted = {
            field: getattr(self, field) - getattr(earlier, field)
            for field in self.__struct_fields__
            if field not in _LEVELS
        }
        if min(counted.values()) < 0:
            return self
        return msgspec.structs.replace(self, **counted)

    @property
    def read_throughput(self) -> int:
        """Bytes read per second; 0 over no time."""
        return _quotient(self.read_bytes * 1000, self.interval_ms)

    @property
    def write_throughput(self) -> int:
        """Bytes written per second; 0 over no time."""
        return _quotient(self.write_bytes * 1000, self.interval_ms)

    @property
    def throughput(self) -> int:
        """Bytes read and written per second; 0 over no time."""
        return _quotient((self.read_bytes + self.write_bytes) * 1000, self.interval_ms)

    @property
    def iops(self) -> int:
        """Reads and writes per second; 0 over no time."""
        return _quotient((self.reads + self.writes) * 1000, self.interval_ms)

    @property
    def read_latency(self) -> int:
        """Microseconds per read; 0 without any."""
        return _quotient(self.read_ms * 1000, self.reads)

    @property
    def write_latency(self) -> int:
        """Microseconds per write; 0 without any."""
        return _quotient(self.write_ms * 1000, self.writes)

    @property
    def latency(self) -> int:
        """Microseconds per read or write; 0 without any."""
        return _quotient((self.read_ms + self.write_ms) * 1000, self.reads + self.writes)


_LEVELS: Final = frozenset({"io_progress", "bytes_used", "unique_blocks"})


def _quotient(dividend: int, divisor: int) -> int:
    return dividend // divisor if divisor else 0


class ActiveRequest(Record, frozen=True, kw_only=True):
    """A request that is being served. id: unique while it runs. description: what it does, for people."""

    id: int
    description: str = ""

    def __post_init__(self) -> None:
        self._check_uint64(("id",))


class ActiveRequests(Record, frozen=True, kw_only=True):
    """The requests that are being served: how many, and which. The list may be cut short, the count not."""

    request_count: int = 0
    requests: tuple[ActiveRequest, ...] = ()

    def __post_init__(self) -> None:
        self._check_uint64(("request_count",))
        if self.request_count < len(self.requests):
            raise InvalidArgument("ActiveRequests.request_count: there are more requests than that")
