"""Where volume records are kept: the Store and StoreEnumerator interfaces of the seed.

Names are unique among volumes, and among the snapshots of one volume. Secrets are not kept and take no part
in comparisons. Any call may also raise BackendError.
"""

from abc import ABC, abstractmethod
from typing import NewType

from fusevol.api.drivers import Enumerator
from fusevol.api.types import Volume

__all__ = ["LockToken", "Store", "StoreEnumerator"]

#: Proof of holding a lock. What is in it is the store's affair.
LockToken = NewType("LockToken", object)


class Store(ABC):
    """Volume records and locks, shared by all who use the same store (Store of the seed).

    A lock excludes only others who lock. Records are safe without: an update that lost a race is refused.
    """

    @abstractmethod
    async def lock(self, volume_id: str) -> LockToken:
        """Lock an id, whether there is a record or not, and return the token that unlocks it.

        Waits for as long as the store is set up to, never for ever. Not re-entrant.

        Raises VolumeBusy where it stayed locked, InvalidArgument.
        """

    @abstractmethod
    async def unlock(self, token: LockToken) -> None:
        """Release the lock that gave `token`. Not cut short by cancellation.

        Raises InvalidArgument for a token that holds no lock: another store's, used up, or expired.
        """

    @abstractmethod
    async def create_vol(self, vol: Volume) -> None:
        """Add a record. Raises AlreadyExists for its id or name."""

    @abstractmethod
    async def get_vol(self, volume_id: str) -> Volume:
        """The record of that id. Raises VolumeNotFound, CorruptData."""

    @abstractmethod
    async def update_vol(self, vol: Volume, expected: Volume) -> None:
        """Replace the record of `vol.id` if it still equals `expected`, atomically and durably.

        The seed overwrites whatever is there, which loses updates and brings back deleted volumes.

        Raises VolumeNotFound, ManifestConflict where it was changed: read it again and decide,
        AlreadyExists for a new name, InvalidArgument where the ids differ.
        """

    @abstractmethod
    async def delete_vol(self, volume_id: str) -> None:
        """Remove the record of that id. Raises VolumeNotFound."""


class StoreEnumerator(Store, Enumerator):
    """A Store whose records can be searched (StoreEnumerator of the seed)."""
