"""Every error fusevol raises on purpose, and the two tables that map them to the outside.

    FusevolError
    ├── AlreadyShutdown              use of a registry or driver after its shutdown
    ├── AlreadyExists                a volume, snapshot, driver or record of that name is there
    ├── DriverNotFound               no driver or backend of that name
    ├── DriverInitializing           try again in a moment
    ├── VolumeNotFound               no such volume
    │   └── SnapshotNotFound         the volume is there, the snapshot is not
    ├── OutOfMemory                  the process could not get memory
    ├── InvalidArgument              the caller's input is wrong; nothing was changed
    │   └── WrongKey                 the pool's description has another key than what is stored there
    ├── VolumeDetached               the operation needs an attached volume
    ├── VolumeAttached               the operation needs a detached volume
    │   ├── VolumeAttachedOnRemoteNode
    │   └── VolumeAttachedScale
    ├── VolumeHasSnapshots           delete its snapshots or clones first
    ├── NotSupported                 this driver or backend cannot do that
    ├── VolumeBusy                   in use; try again when it is not
    ├── ReadOnly                     the volume, snapshot or attachment is read-only
    ├── Fenced                       another writer took the volume over; this one must stop
    ├── ManifestConflict             a compare-and-swap lost its race; read again and decide
    └── BackendError                 the store of bytes failed; nothing was acknowledged
        ├── NoSpace                  it is full; free space, then try again
        └── CorruptData              stored bytes do not match their checksum

The first fourteen are the named errors of openstorage's `volume` package (`SEED_ERRORS` has the
correspondence); the rest are this project's own.
"""

import errno

__all__ = [
    "ERRNO",
    "EXIT_CODE",
    "SEED_ERRORS",
    "AlreadyExists",
    "AlreadyShutdown",
    "BackendError",
    "CorruptData",
    "DriverInitializing",
    "DriverNotFound",
    "Fenced",
    "FusevolError",
    "InvalidArgument",
    "ManifestConflict",
    "NoSpace",
    "NotSupported",
    "OutOfMemory",
    "ReadOnly",
    "SnapshotNotFound",
    "VolumeAttached",
    "VolumeAttachedOnRemoteNode",
    "VolumeAttachedScale",
    "VolumeBusy",
    "VolumeDetached",
    "VolumeHasSnapshots",
    "VolumeNotFound",
    "WrongKey",
    "errno_of",
    "exit_code_of",
]


class FusevolError(Exception):
    """Base of all errors raised on purpose: one line for a person, and where there is one, a hint.

    The message names the object concerned; `hint` is the one thing to do next, or None.
    """

    summary = "Error"

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        super().__init__(message or self.summary)
        self.hint = hint


class AlreadyShutdown(FusevolError):
    """The driver registry or driver was shut down (ErrAlreadyShutdown)."""

    summary = "VolumeDriverProvider already shutdown"


class AlreadyExists(FusevolError):
    """Something of that name or id exists (ErrExist)."""

    summary = "Already exists"


class DriverNotFound(FusevolError):
    """No driver is registered under that name (ErrDriverNotFound)."""

    summary = "Driver implementation not found"


class DriverInitializing(FusevolError):
    """The driver is not ready yet; try again in a moment (ErrDriverInitializing)."""

    summary = "Driver is initializing"


class VolumeNotFound(FusevolError):
    """The volume does not exist (ErrEnoEnt)."""

    summary = "Volume does not exist."


class SnapshotNotFound(VolumeNotFound):
    """The volume exists, but has no such snapshot."""

    summary = "Snapshot does not exist."


class OutOfMemory(FusevolError):
    """The process could not get the memory it needs (ErrEnomem)."""

    summary = "Out of memory."


class InvalidArgument(FusevolError):
    """The caller's input is wrong; nothing was changed (ErrEinval)."""

    summary = "Invalid argument"


class WrongKey(InvalidArgument):
    """What is stored is encrypted otherwise than the description of its pool says; nothing is wrong with it."""

    summary = "Encrypted with another key"


class VolumeDetached(FusevolError):
    """The operation needs the volume attached (ErrVolDetached)."""

    summary = "Volume is detached"


class VolumeAttached(FusevolError):
    """The operation needs the volume detached (ErrVolAttached)."""

    summary = "Volume is attached"


class VolumeAttachedOnRemoteNode(VolumeAttached):
    """The volume is attached on another node (ErrVolAttachedOnRemoteNode)."""

    summary = "Volume is attached on another node"


class VolumeAttachedScale(VolumeAttached):
    """The volume is attached elsewhere and could be scaled (ErrVolAttachedScale)."""

    summary = "Volume is attached on another node. Increase scale factor to create more instances"


class VolumeHasSnapshots(FusevolError):
    """The volume cannot go while snapshots or clones depend on it (ErrVolHasSnaps)."""

    summary = "Volume has snapshots associated"


class NotSupported(FusevolError):
    """This driver or backend does not do that (ErrNotSupported)."""

    summary = "Operation not supported"


class VolumeBusy(FusevolError):
    """The volume is in use (ErrVolBusy)."""

    summary = "Volume is busy"


class ReadOnly(FusevolError):
    """A write to what may only be read: a snapshot, or a volume opened read-only."""

    summary = "Volume is read-only"


class Fenced(FusevolError):
    """Another writer took the volume over. This one acknowledges nothing any more and must be closed."""

    summary = "Volume was taken over by another writer"


class ManifestConflict(FusevolError):
    """A manifest was changed since the version the caller read; nothing was written."""

    summary = "Manifest was changed by someone else"


class BackendError(FusevolError):
    """The backend failed. What was asked for was not acknowledged and must be taken as not done."""

    summary = "Backend failed"


class NoSpace(BackendError):
    """The backend is full, or a quota is; the same call may succeed once space was freed."""

    summary = "No space left"


class CorruptData(BackendError):
    """Stored bytes do not match their checksum, or a stored structure makes no sense."""

    summary = "Stored data is damaged"


#: The names of openstorage's `volume` package, for readers who come from there.
SEED_ERRORS: dict[str, type[FusevolError]] = {
    "ErrAlreadyShutdown": AlreadyShutdown,
    "ErrExist": AlreadyExists,
    "ErrDriverNotFound": DriverNotFound,
    "ErrDriverInitializing": DriverInitializing,
    "ErrEnoEnt": VolumeNotFound,
    "ErrEnomem": OutOfMemory,
    "ErrEinval": InvalidArgument,
    "ErrVolDetached": VolumeDetached,
    "ErrVolAttached": VolumeAttached,
    "ErrVolAttachedOnRemoteNode": VolumeAttachedOnRemoteNode,
    "ErrVolAttachedScale": VolumeAttachedScale,
    "ErrVolHasSnaps": VolumeHasSnapshots,
    "ErrNotSupported": NotSupported,
    "ErrVolBusy": VolumeBusy,
}

#: What a system call on a mount answers when the error reaches it.
ERRNO: dict[type[FusevolError], int] = {
    FusevolError: errno.EIO,
    AlreadyShutdown: errno.ESHUTDOWN,
    AlreadyExists: errno.EEXIST,
    DriverNotFound: errno.ENODEV,
    DriverInitializing: errno.EAGAIN,
    VolumeNotFound: errno.ENOENT,
    SnapshotNotFound: errno.ENOENT,
    OutOfMemory: errno.ENOMEM,
    InvalidArgument: errno.EINVAL,
    WrongKey: errno.EKEYREJECTED,
    VolumeDetached: errno.ENOTCONN,
    VolumeAttached: errno.EBUSY,
    VolumeAttachedOnRemoteNode: errno.EBUSY,
    VolumeAttachedScale: errno.EBUSY,
    VolumeHasSnapshots: errno.EBUSY,
    NotSupported: errno.EOPNOTSUPP,
    VolumeBusy: errno.EBUSY,
    ReadOnly: errno.EROFS,
    Fenced: errno.ESTALE,
    ManifestConflict: errno.EAGAIN,
    BackendError: errno.EIO,
    NoSpace: errno.ENOSPC,
    CorruptData: errno.EIO,
}

#: What a command exits with: 2 where the way it was called is at fault, 1 for everything else.
EXIT_CODE: dict[type[FusevolError], int] = dict.fromkeys(ERRNO, 1) | {InvalidArgument: 2, WrongKey: 2}


def errno_of(error: BaseException) -> int:
    """The errno that stands for `error` at a system call: from the table, an OSError's own, else EIO."""
    if isinstance(error, FusevolError):
        return next(ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO)
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return errno.EIO


def exit_code_of(error: BaseException) -> int:
    """The exit status of a command that ended with `error`."""
    if isinstance(error, FusevolError):
        return next(EXIT_CODE[kind] for kind in type(error).__mro__ if kind in EXIT_CODE)
    return 1
