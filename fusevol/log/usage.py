"""What a volume says about itself in numbers."""

from typing import NamedTuple

__all__ = ["Durability", "SnapshotUsage", "Usage"]


class Usage(NamedTuple):
    """Bytes of a volume. total = data + metadata + reclaimable is what its space holds.

    live: mapped by the live tree. inherited: of these, read from the spaces of the volumes it was cloned from.
    data: own data blocks, of the live tree or a snapshot. snapshots: those of them only snapshots hold.
    metadata: map nodes, batch headers, records. reclaimable: dead, to be given back soon.
    """

    live: int
    inherited: int
    data: int
    snapshots: int
    metadata: int
    reclaimable: int

    @property
    def total(self) -> int:
        """Bytes that the volume's own space holds."""
        return self.data + self.metadata + self.reclaimable


class SnapshotUsage(NamedTuple):
    """Bytes of a snapshot: mapped, and how many come back when it is deleted (data, and its own map nodes)."""

    referenced: int
    exclusive: int
    exclusive_metadata: int

    @property
    def shared(self) -> int:
        """Bytes of data that somebody else holds too."""
        return self.referenced - self.exclusive


class Durability(NamedTuple):
    """What a power cut now would cost: bytes not yet durable, and the age of the oldest in seconds."""

    unflushed_bytes: int
    oldest_seconds: float
