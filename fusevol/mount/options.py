"""What a mount can be asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from fusevol.errors import InvalidArgument

__all__ = ["MountOptions"]

#: The largest request the kernel sends and libfuse has room for: 256 pages of 4 KiB.
LARGEST_REQUEST = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class MountOptions:
    """How to mount and serve; the defaults are right for a volume that one host writes.

    What the filesystem itself must agree with is not here but, as pyfuse3 has it, an attribute of the
    Operations: `enable_writeback_cache`, `enable_acl`, `supports_dot_lookup`, and of our own
    `applies_umask` (docs/mount.md).
    """

    #: What `mount` and `df` show as the source; a volume's name, usually.
    fsname: str = "fusevol"
    read_only: bool = False
    #: Whether other users may use the mount. None: where that is allowed without configuration (as root).
    allow_other: bool | None = None
    #: Whether the kernel checks permissions by mode bits and ACLs. Without, the filesystem has to.
    default_permissions: bool = True
    nosuid: bool = False
    nodev: bool = False
    noexec: bool = False
    noatime: bool = False
    #: Mount on top of what is mounted there already, instead of raising VolumeBusy.
    allow_over_mount: bool = False

    #: Largest read and write in bytes; less where kernel or libfuse have less.
    max_request: int = LARGEST_REQUEST
    #: Requests of the kernel's own (read-ahead, write-back) that may be under way at once. Each has a buffer of
    #: `max_request` bytes, and one that writes has another.
    max_background: int = 16
    #: From how many of them the kernel counts the mount as congested.
    congestion_threshold: int = 12
    #: How many requests are handled at once; more wait in the kernel.
    max_tasks: int = 512
    #: The mount's read-ahead, where it may be set (as root); elsewhere it is the kernel's 128 KiB at most. 0 for none.
    read_ahead_kb: int = 4096
    #: How much of what the machine may keep unwritten may be this mount's, in percent, where that may be set (as root).
    #: 0 leaves what the kernel gives, which is 1.
    dirty_share: int = 5

    #: Do the INIT handshake here; without, libfuse mounts, and its flags hold.
    handshake: bool = True
    #: Poll for requests for a short time before waiting through trio (waiter.py).
    polling: bool = True
    #: Keep the processors awake while it is busy (wakeful.py). None: in a virtual machine with a few of them.
    wakeful: bool | None = None

    def __post_init__(self) -> None:
        if not 4096 <= self.max_request <= LARGEST_REQUEST or self.max_request % 4096:
            raise InvalidArgument(f"max_request is {self.max_request}, not a multiple of 4096 up to {LARGEST_REQUEST}")
        for name in ("max_background", "congestion_threshold", "max_tasks"):
            if not 1 <= getattr(self, name) <= 65535:
                raise InvalidArgument(f"{name} is {getattr(self, name)}, not between 1 and 65535")
        if self.read_ahead_kb < 0:
            raise InvalidArgument(f"read_ahead_kb is {self.read_ahead_kb}, less than 0")
        if not 0 <= self.dirty_share <= 100:
            raise InvalidArgument(f"dirty_share is {self.dirty_share}, not between 0 and 100")
        if not self.fsname or "\0" in self.fsname:
            raise InvalidArgument(f"fsname {self.fsname!r} is empty or has a NUL in it")

    def for_remote(self) -> MountOptions:
        """These options, for a store across a network: it answers many requests about as soon as one."""
        return dataclasses.replace(
            self, max_background=4 * self.max_background, congestion_threshold=4 * self.congestion_threshold
        )

    def with_words(self, words: Iterable[str], *, also: str = "") -> MountOptions:
        """These options, changed by words as mount(8) has them after -o: "ro", "nosuid".

        Raises InvalidArgument for a word that is not known; `also` is what else the hint is to name.
        """
        changes: dict[str, bool] = {}
        for word in words:
            if word not in _WORDS:
                known = ", ".join([*_WORDS, *filter(None, [also])])
                raise InvalidArgument(f'mount option "{word}" is not known', hint=f"known are: {known}")
            changes |= _WORDS[word]
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


_WORDS: dict[str, dict[str, bool]] = {
    "defaults": {},
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True},
    "default_permissions": {"default_permissions": True},
    "nosuid": {"nosuid": True},
    "suid": {"nosuid": False},
    "nodev": {"nodev": True},
    "dev": {"nodev": False},
    "noexec": {"noexec": True},
    "exec": {"noexec": False},
    "noatime": {"noatime": True},
    "relatime": {"noatime": False},
    "wakeful": {"wakeful": True},
    "nowakeful": {"wakeful": False},
}
