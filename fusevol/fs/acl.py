"""POSIX ACLs as the kernel stores them in extended attributes (acl(5), linux/posix_acl_xattr.h).

The kernel checks permissions by them; what is left for a filesystem is to keep the mode bits and the
access ACL in step, and to hand a directory's default ACL down.
"""

import errno
import struct
from collections.abc import Iterable
from typing import NamedTuple

from fusevol.fs.inodes import fail

__all__ = ["ACCESS", "DEFAULT", "inherit", "mode_of", "parse", "with_mode"]

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


class Ace(NamedTuple):
    """One entry: tag, permission bits, user or group id."""

    tag: int
    perm: int
    ident: int


def parse(value: bytes) -> list[Ace]:
    """Entries of an ACL. Raises OSError(EINVAL) for what is none."""
    if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _ENTRY.size or _VERSION.unpack_from(value)[0] != 2:
        raise fail(errno.EINVAL)
    entries = [Ace(*fields) for fields in _ENTRY.iter_unpack(value[_VERSION.size :])]
    tags = [entry.tag for entry in entries]
    named = _USER in tags or _GROUP in tags
    if any(tags.count(tag) != 1 for tag in (_USER_OBJ, _GROUP_OBJ, _OTHER)) or (named and _MASK not in tags):
        raise fail(errno.EINVAL)
    return entries


def _pack(entries: Iterable[Ace]) -> bytes:
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def mode_of(entries: list[Ace]) -> tuple[int, bool]:
    """The nine permission bits an access ACL stands for, and whether it says no more than they do."""
    perms = {entry.tag: entry.perm for entry in entries}
    group = perms.get(_MASK, perms[_GROUP_OBJ])
    return perms[_USER_OBJ] << 6 | group << 3 | perms[_OTHER], len(entries) == 3


def with_mode(entries: list[Ace], mode: int) -> bytes:
    """The ACL after a chmod: the group bits go to the mask, where there is one."""
    group = _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    return _pack(entry._replace(perm=bits.get(entry.tag, entry.perm)) for entry in entries)


def inherit(default: list[Ace], mode: int) -> tuple[int, bytes | None]:
    """Mode and access ACL (None where the mode says it all) of a file made with `mode` under a default ACL."""
    group = _MASK if any(entry.tag == _MASK for entry in default) else _GROUP_OBJ
    bits = {_USER_OBJ: mode >> 6 & 7, group: mode >> 3 & 7, _OTHER: mode & 7}
    entries = [entry._replace(perm=entry.perm & bits.get(entry.tag, 7)) for entry in default]
    permissions, plain = mode_of(entries)
    return (mode & ~0o777) | permissions, None if plain else _pack(entries)
