"""Names of extended attributes (xattr(7))."""

import errno

from fusevol.fs import acl
from fusevol.fs.inodes import fail
from fusevol.fs.layout import NAME_MAX

__all__ = ["CAPABILITY", "check_name", "hidden"]

CAPABILITY = b"security.capability"
_TRUSTED = b"trusted."
_NAMESPACES = (b"user.", b"security.", _TRUSTED)


def check_name(name: bytes) -> None:
    """Raise OSError for what is no name of an attribute: ERANGE, EOPNOTSUPP, EINVAL, as other filesystems do."""
    if not 0 < len(name) <= NAME_MAX:
        raise fail(errno.ERANGE)
    if name in (acl.ACCESS, acl.DEFAULT):
        return
    if name in _NAMESPACES:
        raise fail(errno.EINVAL)
    if not name.startswith(_NAMESPACES):
        raise fail(errno.EOPNOTSUPP)


def hidden(name: bytes, uid: int) -> bool:
    """Whether a user is not to see the name; the kernel itself only keeps values of `trusted` to root."""
    return bool(uid) and name.startswith(_TRUSTED)
