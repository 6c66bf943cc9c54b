"""IODriver: reading, writing and flushing the bytes of a volume.

The three methods are the `IODriver` interface of openstorage's `volume` package. Everything that holds
bytes speaks it: a backend, a wrapper around one, a log-structured volume, a driver.
"""

from abc import ABC, abstractmethod
from typing import TypeAlias

__all__ = ["Buffer", "IODriver"]

#: What the interfaces take and return as bytes: contiguous, of single bytes.
Buffer: TypeAlias = bytes | bytearray | memoryview


class IODriver(ABC):
    """Sparse byte spaces, one per volume id. Offsets and sizes are in bytes; offsets start at 0.

    Calls may run concurrently. A cancelled call may or may not have had its effect.
    """

    @abstractmethod
    async def read(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Return `size` bytes from `offset`; fewer only where the space ends. Holes read as zeros.

        Raises VolumeNotFound, InvalidArgument, BackendError.
        """

    @abstractmethod
    async def write(self, volume_id: str, data: Buffer, offset: int) -> int:
        """Write `data` at `offset` and return the number of bytes written.

        Once it returns, reads see the bytes; they are on stable storage only after `flush`. Fewer bytes
        than given means that the rest was not written.

        Raises VolumeNotFound, InvalidArgument, NoSpace, BackendError.
        """

    @abstractmethod
    async def flush(self, volume_id: str) -> None:
        """Return only when every write that had returned before the call is on stable storage.

        Raises VolumeNotFound, BackendError. After an error nothing may be assumed of unflushed writes.
        """
