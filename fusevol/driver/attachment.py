"""Who has a volume attached, as its record says, and whether that is still so.

A record names the process that serves the mount: it has the volume's lease, which lasts as long as it lives. It has
no end in time: a process that was only stopped for a while must find its volume as it left it, and one that is idle
must not have to wake up in order to keep it. Once that process is known to have ended, the volume is detached, whatever
was written down. Of one on another host or in another pid namespace that cannot be known; its lease is broken only
where somebody asks for that, and should it be at work still, the log shuts it out (see docs/format.md).

The process that serves a mount changes the record with `attached` and `detached`, and never takes its volume's lock,
which whoever starts or drives it may be holding.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from fusevol.api import AttachState, Volume, VolumeState
from fusevol.driver.mounts import is_ours, mount_at
from fusevol.errors import VolumeAttachedOnRemoteNode
from fusevol.store.processes import Life, Process, this_node

__all__ = [
    "Lease",
    "attached",
    "believed",
    "detached",
    "is_here",
    "is_mounted",
    "lease_of",
    "refuse_if_elsewhere",
    "server_of",
]

_ATTACHED = (VolumeState.ATTACHED, VolumeState.DETACHING, VolumeState.TRY_DETACHING)


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a volume attached, for as long as that process lives.

    holder: the process; None where the record does not say. node: the name of its host. since: when it began. life:
    whether the holder still runs, as far as that can be seen from here.
    """

    holder: Process | None
    node: str
    since: datetime | None
    life: Life


def attached(volume: Volume, path: str, server: Process, options: Mapping[str, str] | None = None) -> Volume:
    """The record of a volume that `server` mounts on `path`."""
    return msgspec.structs.replace(
        volume,
        state=VolumeState.ATTACHED,
        attached_on=server.node or this_node(),
        attached_state=AttachState.EXTERNAL,
        attach_path=(os.path.normpath(path),),
        attach_info={"server": msgspec.json.encode(server).decode()},
        attach_time=datetime.now(UTC),
        mount_options=dict(options or {}),
        error="",
    )


def detached(volume: Volume) -> Volume:
    """The record of the volume once nobody has it attached."""
    return msgspec.structs.replace(
        volume,
        state=VolumeState.DETACHED,
        attached_on="",
        attach_path=(),
        attach_info={},
        detach_time=datetime.now(UTC),
        mount_options={},
    )


def server_of(volume: Volume) -> Process | None:
    """The process that serves the volume, according to its record; None where none is named."""
    try:
        return msgspec.json.decode(volume.attach_info["server"], type=Process)
    except (KeyError, msgspec.MsgspecError):
        return None


def lease_of(volume: Volume) -> Lease | None:
    """The lease that a volume's record tells of; None where nobody has it attached."""
    if volume.state not in _ATTACHED or not volume.attached_on:
        return None
    holder = server_of(volume)
    unnamed = Life.GONE if volume.attached_on == this_node() else Life.UNKNOWN
    life = holder.life if holder else unnamed
    return Lease(holder=holder, node=volume.attached_on, since=volume.attach_time, life=life)


def is_here(volume: Volume) -> bool:
    """Whether a process that can be seen from here has the volume attached."""
    lease = lease_of(volume)
    return lease is not None and lease.life is Life.RUNS


def refuse_if_elsewhere(volume: Volume) -> None:
    """Raise VolumeAttachedOnRemoteNode for a volume that is attached by a process that cannot be seen from here."""
    lease, name = lease_of(volume), volume.locator.name
    if lease is not None and lease.life is Life.UNKNOWN:
        by = lease.holder or f"a process on {lease.node}"
        raise VolumeAttachedOnRemoteNode(
            f'volume "{name}" is attached by {by}, which cannot be seen from here',
            hint=f"unmount it there; or if that has ended for sure: fusevol mount --force {name} PATH",
        )


def believed(volume: Volume) -> Volume:
    """The record as far as it is true: of a volume whose server has died, the one that `detached` makes."""
    lease = lease_of(volume)
    if lease is None or lease.life is Life.UNKNOWN:
        return volume
    if lease.life is Life.GONE:
        return detached(volume)
    paths = tuple(path for path in volume.attach_path if is_ours(mount_at(path)))
    if not paths:
        return msgspec.structs.replace(volume, state=VolumeState.DETACHING)
    # Somebody may have unmounted one of several without asking us.
    return volume if paths == volume.attach_path else msgspec.structs.replace(volume, attach_path=paths)


def is_mounted(volume: Volume) -> bool:
    """Whether one of the paths in the record has a mount of ours on it."""
    return any(is_ours(mount_at(path)) for path in volume.attach_path)
