"""Set-user-id and set-group-id bits, and when they go.

With FUSE_HANDLE_KILLPRIV_V2 that is for the filesystem. The kernel's flags that say when (FUSE_WRITE_KILL_SUIDGID,
FUSE_OPEN_KILL_SUIDGID, FATTR_KILL_SUIDGID) get lost in libfuse 3.14 and pyfuse3, but it also shows in other ways:

- before a write(2) by somebody who may not keep the bits, the kernel sends a SETATTR that sets nothing;
- chown(2) that changes neither owner nor group, but these bits, is a SETATTR that sets nothing but ctime (for regular
  files, whose ctime is the kernel's with a write-back cache; for FIFOs, sockets and devices it sets nothing at all).
  The kernel has not checked then who asks;
- a truncation, a change of owner and an ACL say whose they are; anyone but root may not keep the bits.
"""

import errno
import stat

import pyfuse3

from fusevol.fs import Filesystem

__all__ = ["drop_privileges", "in_group"]


def drop_privileges(filesystem: Filesystem, ino: int, ctx: pyfuse3.RequestContext, *, chown: bool = False) -> None:
    """Take away the bits that a file must not keep when this caller changes it.

    chown: that is all they asked for, by chown(2). Raises OSError(EPERM) then unless they own the file.
    """
    inode = filesystem.get(ino)
    # Without the right to execute for the group, the bit stays for those in the group.
    locking = inode.mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID
    member = not locking or in_group(inode.gid, ctx)
    lost = inode.mode & (stat.S_ISUID | (0 if locking and member else stat.S_ISGID))
    if chown and lost and not inode.is_dir and ctx.uid not in (0, inode.uid):
        raise OSError(errno.EPERM, "not the owner")
    filesystem.drop_privileges(ino, member=member)


def in_group(gid: int, ctx: pyfuse3.RequestContext) -> bool:
    """Whether the caller is root or in a group; not, where that cannot be found out."""
    if ctx.uid == 0 or ctx.gid == gid:
        return True
    try:
        return gid in pyfuse3.get_sup_groups(ctx.pid)
    except (OSError, RuntimeError):
        return False
