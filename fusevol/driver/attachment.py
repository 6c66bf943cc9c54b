"""Who has a volume attached, as its record says, and whether that is still so.

A record names the process that serves the mount. What the record says is believed only while that process is
alive: once it is not, the volume is detached, whatever was written down. The process that serves a mount changes
the record with `attached` and `detached`, and never takes its volume's lock, which whoever starts or drives it
may be holding.
"""

import os
import socket
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from fusevol.api import AttachState, Volume, VolumeState
from fusevol.driver.mounts import is_ours, mount_at
from fusevol.store.processes import Process

__all__ = ["attached", "believed", "detached", "is_mounted", "server_of", "this_node"]

_ATTACHED = (VolumeState.ATTACHED, VolumeState.DETACHING, VolumeState.TRY_DETACHING)


def this_node() -> str:
    """The name of this host in records."""
    return socket.gethostname()


def attached(volume: Volume, path: str, server: Process, options: Mapping[str, str] | None = None) -> Volume:
    """The record of a volume that `server`, a process of this host, mounts on `path`."""
    return msgspec.structs.replace(
        volume,
        state=VolumeState.ATTACHED,
        attached_on=this_node(),
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


def believed(volume: Volume) -> Volume:
    """The record as far as it is true: of a volume whose server has died, the one that `detached` makes."""
    if volume.state not in _ATTACHED or volume.attached_on != this_node():
        return volume
    server = server_of(volume)
    if server is None or not server.alive:
        return detached(volume)
    paths = tuple(path for path in volume.attach_path if is_ours(mount_at(path)))
    if not paths:
        return msgspec.structs.replace(volume, state=VolumeState.DETACHING)
    # Somebody may have unmounted one of several without asking us.
    return volume if paths == volume.attach_path else msgspec.structs.replace(volume, attach_path=paths)


def is_mounted(volume: Volume) -> bool:
    """Whether one of the paths in the record has a mount of ours on it."""
    return any(is_ours(mount_at(path)) for path in volume.attach_path)
