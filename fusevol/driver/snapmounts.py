"""Mounts of snapshots, as the snapshots' records have them.

A snapshot is mounted by itself without its volume being attached: nothing is written, so it can be on several paths,
each served by a process of its own. As with volumes, a process that has died has nothing mounted any more, whatever
the record says. Who reads a snapshot without mounting it is in the same place.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from fusevol.api import Volume, VolumeState
from fusevol.driver.attachment import believed
from fusevol.errors import VolumeBusy
from fusevol.store.processes import Life, Process, this_node

__all__ = [
    "believed_snapshot",
    "ended",
    "let_go",
    "mounted",
    "moved",
    "read",
    "refuse_if_mounted",
    "servers",
    "unmounted",
    "without_unseen",
]


def _users(snapshot: Volume) -> dict[str, Process]:
    """The living processes that use a snapshot: by path those that serve a mount, by another key those that read it."""
    found = {}
    for key, text in snapshot.attach_info.items():
        try:
            process = msgspec.json.decode(text, type=Process)
        except msgspec.MsgspecError:
            continue
        if process.alive:
            found[key] = process
    return found


def servers(snapshot: Volume) -> dict[str, Process]:
    """The paths a snapshot is mounted on, and the living processes that serve them."""
    return {key: process for key, process in _users(snapshot).items() if key.startswith("/")}


def _with(snapshot: Volume, users: Mapping[str, Process]) -> Volume:
    info = {key: msgspec.json.encode(process).decode() for key, process in users.items()}
    found = {key: process for key, process in users.items() if key.startswith("/")}
    state = VolumeState.ATTACHED if found else VolumeState.AVAILABLE
    node = next((process.node or this_node() for process in found.values()), "")
    return msgspec.structs.replace(snapshot, state=state, attached_on=node, attach_path=tuple(found), attach_info=info)


def read(snapshot: Volume, key: str, reader: Process) -> Volume:
    """The record of a snapshot that a process reads without a mount, until `let_go` of that key, which is no path."""
    return _with(snapshot, {**_users(snapshot), key: reader})


def let_go(snapshot: Volume, key: str) -> Volume:
    """The record of a snapshot that is not read any more."""
    return _with(snapshot, {other: process for other, process in _users(snapshot).items() if other != key})


def believed_snapshot(volume: Volume) -> Volume:
    """The record of a snapshot as far as it is true; of a volume, as `attachment.believed`."""
    return _with(volume, _users(volume)) if volume.is_snapshot else believed(volume)


def mounted(snapshot: Volume, path: str, server: Process) -> Volume:
    """The record of a snapshot that `server` mounts on one more path."""
    changed = _with(snapshot, {**_users(snapshot), path: server})
    return msgspec.structs.replace(changed, attach_time=datetime.now(UTC))


def unmounted(snapshot: Volume, path: str, error: str = "") -> Volume:
    """The record of a snapshot that is not mounted on a path any more. error: what went wrong, if anything."""
    found = {where: server for where, server in _users(snapshot).items() if where != path}
    return msgspec.structs.replace(_with(snapshot, found), detach_time=datetime.now(UTC), error=error)


def moved(snapshot: Volume, server: Process, path: str) -> Volume:
    """The record of a snapshot whose mount by `server` is to be seen on another path."""
    return _with(snapshot, {path if found == server else where: found for where, found in _users(snapshot).items()})


def ended(snapshot: Volume, server: Process, error: str) -> Volume:
    """The record of a snapshot once `server` does not serve it any more; another one may have its path by now."""
    path = next((where for where, found in servers(snapshot).items() if found == server), None)
    return snapshot if path is None else unmounted(snapshot, path, error)


def without_unseen(snapshot: Volume) -> Volume:
    """The record of a snapshot without the mounts of processes of which cannot be seen whether they still run."""
    found = {key: process for key, process in _users(snapshot).items() if process.life is not Life.UNKNOWN}
    return _with(snapshot, found)


def refuse_if_mounted(volume_name: str, snapshot: Volume, what: str) -> None:
    """Raise VolumeBusy for a snapshot that is mounted by itself, or being read; `what` says what cannot be done."""
    ref = f"{volume_name}@{snapshot.locator.name}"
    for key, process in _users(snapshot).items():
        mount = key.startswith("/")
        use = f"mounted on {key}" if mount else "being copied"
        if process.life is Life.UNKNOWN:
            raise VolumeBusy(
                f'snapshot "{ref}" is {use} by {process}, which cannot be seen from here',
                hint=f"{'unmount it' if mount else 'wait for it'} there; "
                f"or if that has ended for sure: fusevol mount --force {volume_name} PATH",
            )
        if mount:
            hint = f"unmount it first: fusevol umount {key}"
            raise VolumeBusy(f'snapshot "{ref}" is {use}, and cannot be {what}', hint=hint)
        raise VolumeBusy(f'snapshot "{ref}" is {use} by {process}, and cannot be {what}')
