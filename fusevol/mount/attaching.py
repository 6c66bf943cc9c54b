"""Mounting and unmounting: by mount(2) where that is allowed, else through fusermount3.

fusermount3 is libfuse's setuid helper. It mounts what the user may mount and passes the open /dev/fuse
back over a socket whose number is in _FUSE_COMMFD, as SCM_RIGHTS; see fusermount3(1), unix(7).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

from fusevol.errors import BackendError, FusevolError, InvalidArgument, NotSupported, VolumeBusy
from fusevol.mount import syscalls
from fusevol.mount.mounttable import Mount, find, mounts, resolve
from fusevol.mount.options import MountOptions
from fusevol.mount.syscalls import MountFlag, UnmountFlag

__all__ = ["FSTYPE", "check_mountpoint", "mount", "unmount"]

Umount = Callable[[os.PathLike[str], UnmountFlag], None]

SUBTYPE = "fusevol"
FSTYPE = f"fuse.{SUBTYPE}"


def check_mountpoint(path: Path, *, allow_over_mount: bool = False) -> Path:
    """`path` absolute and without links, if something can be mounted there; may wait for its filesystem.

    Raises InvalidArgument where it does not exist or is not a directory, VolumeBusy where it is a mount.
    """
    if "\0" in os.fspath(path) or not os.fspath(path):
        raise InvalidArgument(f"{os.fspath(path)!r} is not a path")
    target = resolve(path)
    there = find(target)
    if there is not None and not allow_over_mount:
        raise VolumeBusy(
            f'"{path}" is a mount already ({there.fstype}, {there.source})', hint=f"umount {target}, or mount elsewhere"
        )
    try:
        mode = os.stat(target).st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise InvalidArgument(f'"{path}" does not exist', hint="make the directory first") from error
        raise InvalidArgument(f'"{path}" cannot be mounted on: {error.strerror}') from error
    if not stat.S_ISDIR(mode):
        raise InvalidArgument(f'"{path}" is not a directory')
    return target


def mount(target: Path, options: MountOptions) -> int:
    """Mount on `target` (of `check_mountpoint`) and return the open /dev/fuse, on which INIT waits to be read."""
    try:
        return _mount_by_syscall(target, options)
    except PermissionError:
        return _mount_by_helper(target, options)
    except FileNotFoundError as error:
        raise NotSupported("this system has no /dev/fuse", hint="modprobe fuse") from error
    except OSError as error:
        raise BackendError(f'mounting on "{target}" failed: {error.strerror}') from error


def unmount(mounted: Mount, *, detach: bool = False, umount2: Umount = syscalls.umount2) -> None:
    """Unmount `mounted`; waits until its dirty pages are written.

    umount2: makes the call; whoever serves the mount has another process do so (`beside`).

    Raises VolumeBusy where it is in use, which `detach` does not mind: the mount leaves the tree and ends with
    its last user. Nothing happens where it is gone already, or lies under another mount now (BackendError).
    """
    there = find(mounted.mountpoint)
    if there is None or there.device != mounted.device:
        if there is None or not any(mount.device == mounted.device for mount in _stack(mounted.mountpoint)):
            return
        raise BackendError(f'"{mounted.mountpoint}" lies under another mount and cannot be unmounted')
    flags = UnmountFlag.NOFOLLOW | (UnmountFlag.DETACH if detach else UnmountFlag.NONE)
    try:
        umount2(mounted.mountpoint, flags)
    except PermissionError:
        _unmount_by_helper(mounted.mountpoint, detach=detach)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise VolumeBusy(f'"{mounted.mountpoint}" is in use') from error
        if error.errno != errno.EINVAL or find(mounted.mountpoint) == there:
            raise BackendError(f'unmounting "{mounted.mountpoint}" failed: {error.strerror}') from error


def vfs_words(options: MountOptions) -> list[str]:
    """The options that libfuse and fusermount3 take as words."""
    words = [f"subtype={SUBTYPE}", "fsname=" + options.fsname.replace("\\", "\\\\").replace(",", "\\,")]
    if options.read_only:
        words.append("ro")
    words += [word for word in ("nosuid", "nodev", "noexec", "noatime") if getattr(options, word)]
    if options.default_permissions:
        words.append("default_permissions")
    if options.allow_other or (options.allow_other is None and os.geteuid() == 0):
        words.append("allow_other")
    return words


def _stack(mountpoint: Path) -> list[Mount]:
    return [mount for mount in mounts() if mount.mountpoint == mountpoint]


def _mount_by_syscall(target: Path, options: MountOptions) -> int:
    flags = MountFlag(0)
    for wanted, flag in (
        (options.read_only, MountFlag.RDONLY),
        (options.nosuid, MountFlag.NOSUID),
        (options.nodev, MountFlag.NODEV),
        (options.noexec, MountFlag.NOEXEC),
        (options.noatime, MountFlag.NOATIME),
    ):
        if wanted:
            flags |= flag
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        data = [f"fd={fd}", f"rootmode={stat.S_IFDIR:o}", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
        data.append(f"max_read={options.max_request}")
        data += [word for word in ("default_permissions", "allow_other") if word in vfs_words(options)]
        syscalls.mount(options.fsname, target, FSTYPE, flags, ",".join(data))
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mount_by_helper(target: Path, options: MountOptions) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        words = [*vfs_words(options), f"max_read={options.max_request}"]
        try:
            helper = subprocess.run(
                ["fusermount3", "-o", ",".join(words), "--", os.fspath(target)],
                env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
            )
        except FileNotFoundError as error:
            raise NotSupported(
                "mounting is not allowed here, and there is no fusermount3", hint="install fuse3, or mount as root"
            ) from error
        if helper.returncode != 0:
            raise _helper_error(target, helper.stderr)
        theirs.close()
        _data, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
    if not fds:
        raise BackendError(f'fusermount3 mounted "{target}" without passing /dev/fuse on')
    os.set_inheritable(fds[0], False)
    return fds[0]


def _helper_error(target: Path, stderr: bytes) -> FusevolError:
    """What fusermount3 says when it refuses, as an error of ours."""
    said = stderr.decode(errors="replace").strip()
    said = (said.splitlines() or ["no reason given"])[-1].removeprefix("fusermount3: ")
    if "allow_other" in said:
        return NotSupported(said, hint='add "user_allow_other" to /etc/fuse.conf, or do not ask for it')
    if "/dev/fuse" in said and "denied" in said:
        return NotSupported(said, hint="mount as root, or let everybody open it: chmod 666 /dev/fuse")
    if "/dev/fuse" in said or "kernel" in said:
        return NotSupported(said, hint="modprobe fuse")
    return InvalidArgument(f'"{target}" cannot be mounted on: {said}')


def _unmount_by_helper(target: Path, *, detach: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if detach else []), "--", os.fspath(target)]
    helper = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if helper.returncode != 0 and find(target) is not None:
        said = helper.stderr.decode(errors="replace").strip()
        if not said or "busy" in said:
            raise VolumeBusy(f'"{target}" is in use')
        raise BackendError(f'unmounting "{target}" failed: {said}')
