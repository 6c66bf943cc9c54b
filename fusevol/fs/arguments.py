"""Who asks for a change, and what is to change."""

from typing import NamedTuple

__all__ = ["Caller", "Changes"]


class Caller(NamedTuple):
    """Who asks: owner of what is made. umask: applies where the directory has no default ACL."""

    uid: int
    gid: int
    umask: int = 0


class Changes(NamedTuple):
    """What setattr is to change; None leaves a field as it is. Times in nanoseconds since 1970."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None
