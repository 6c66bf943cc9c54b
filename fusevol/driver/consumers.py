"""Who of Docker's uses a volume: counts per mount id, kept in the volume's record.

dockerd names each use of a volume by an id, and says Mount and Unmount with it. The same id may be mounted twice: by
`docker cp` on a running container, which unmounts it again, and by a dockerd that was killed and starts its containers
anew, which does not. So ids are counted, and what is counted too much goes when the engine says that nobody is there
(`docker.counts`), or when the host was booted since.
"""

import msgspec

from fusevol.api import Volume, VolumeConsumer
from fusevol.errors import VolumeBusy
from fusevol.store.processes import boot_id, this_node

__all__ = ["added", "consumers", "dropped", "refuse_if_used", "removed", "uses"]

_TYPE = "docker"


def consumers(volume: Volume) -> dict[str, int]:
    """The mount ids that use a volume, and how many times each."""
    found = (consumer for consumer in volume.volume_consumers if _is_ours(consumer))
    return {consumer.name: consumer.count for consumer in found if consumer.boot == boot_id()}


def uses(volume: Volume) -> int:
    """How many times a volume was mounted for containers and not unmounted."""
    return sum(consumers(volume).values())


def refuse_if_used(volume: Volume, what: str) -> None:
    """Raise VolumeBusy for a volume that containers use; `what` says what cannot be done."""
    if count := uses(volume):
        raise VolumeBusy(
            f'volume "{volume.locator.name}" is in use by containers, {count} times, and cannot be {what}',
            hint="stop them first; a count without containers is set right by fusevol serve",
        )


def _is_ours(consumer: VolumeConsumer) -> bool:
    return consumer.type == _TYPE and consumer.node_id == this_node()


def added(volume: Volume, mount_id: str) -> Volume:
    """The record with one more use by that id."""
    return _with(volume, {**consumers(volume), mount_id: consumers(volume).get(mount_id, 0) + 1})


def removed(volume: Volume, mount_id: str) -> Volume:
    """The record with one use less by that id; as it is, where the id does not use it."""
    return _with(volume, {**consumers(volume), mount_id: consumers(volume).get(mount_id, 0) - 1})


def dropped(volume: Volume) -> Volume:
    """The record without any container."""
    return _with(volume, {})


def _with(volume: Volume, counts: dict[str, int]) -> Volume:
    others = tuple(consumer for consumer in volume.volume_consumers if not _is_ours(consumer))
    ours = tuple(
        VolumeConsumer(name=mount_id, type=_TYPE, node_id=this_node(), boot=boot_id(), count=count)
        for mount_id, count in counts.items()
        if count > 0
    )
    return msgspec.structs.replace(volume, volume_consumers=others + ours)
