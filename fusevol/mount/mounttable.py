"""The mounts this process sees, from /proc/self/mountinfo.

The kernel escapes space, tab, newline and backslash (and `#` in the source) as three octal digits; names
are bytes and are decoded as everywhere in Python on Linux, with surrogate escapes. See proc_pid_mountinfo(5).
"""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

__all__ = ["Mount", "find", "mount_of", "mounts", "places", "resolve"]

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    id: int
    parent: int
    #: Major and minor number of the mounted filesystem; `0:N` for one without a block device.
    device: tuple[int, int]
    root: str
    mountpoint: Path
    options: frozenset[str]
    fstype: str
    source: str
    super_options: frozenset[str]


def mounts() -> list[Mount]:
    """All mounts in the namespace of this process, in the order they were made."""
    with open("/proc/self/mountinfo", "rb") as file:
        return [_parse(line) for line in file.read().splitlines()]


def find(mountpoint: Path) -> Mount | None:
    """What one sees at `mountpoint`: the topmost mount made exactly there, or None. Asks no filesystem but /proc.

    `mountpoint` has to be absolute and free of symbolic links (`resolve`).
    """
    here = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    covered = {mount.parent for mount in here}
    return next((mount for mount in reversed(here) if mount.id not in covered), None)


def mount_of(fd: int) -> Mount | None:
    """The mount that an open file is in; None where that is not to be seen any more. Asks no filesystem but /proc."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as fields:
        number = next(int(line.split()[1]) for line in fields if line.startswith("mnt_id:"))
    return next((mount for mount in mounts() if mount.id == number), None)


def places(device: tuple[int, int]) -> list[Mount]:
    """Where the filesystem with that number is to be seen, in the order it was mounted there."""
    here = [mount for mount in mounts() if mount.device == device]
    return [mount for mount in here if (seen := find(mount.mountpoint)) and seen.id == mount.id]


def resolve(path: Path) -> Path:
    """`path` absolute and free of symbolic links, as mountinfo has it.

    Where something is mounted, that is not asked, so that a mount whose process hangs does not hang the
    caller as well.
    """
    head, tail = os.path.split(os.fspath(path).rstrip("/"))
    if tail not in ("", ".", ".."):
        unresolved = Path(os.path.realpath(head or "."), tail)
        if find(unresolved) is not None:
            return unresolved
    return Path(os.path.realpath(path))


def _parse(line: bytes) -> Mount:
    before, _, after = line.partition(b" - ")
    number, parent, device, root, mountpoint, options, *_optional = before.split(b" ")
    fstype, source, super_options = after.split(b" ", 2)
    major, minor = device.split(b":")
    return Mount(
        id=int(number),
        parent=int(parent),
        device=(int(major), int(minor)),
        root=_decode(root),
        mountpoint=Path(_decode(mountpoint)),
        options=_words(options),
        fstype=_decode(fstype),
        source=_decode(source),
        super_options=_words(super_options),
    )


def _words(field: bytes) -> frozenset[str]:
    return frozenset(_decode(word) for word in field.split(b","))


def _decode(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
