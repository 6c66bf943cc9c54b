"""The backend interface: what a store of bytes must do to carry log-structured volumes.

A backend is an IODriver with the few calls that a store needs to be managed, and one small manifest per
volume with compare-and-swap. `docs/backends.md` shows how to write one; `fusevol.testing.backends` is
the suite that says whether it is right.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fusevol.api.io import Buffer, IODriver
from fusevol.errors import NotSupported

__all__ = ["NO_VERSION", "SEALED", "Backend", "Capacity", "Manifest", "Traits"]

#: The version of a manifest that was never written.
NO_VERSION = ""
#: How a manifest begins in the store where it is encrypted (`fusevol.backends.encryption`).
SEALED = b"FVSEALED"


class Manifest(NamedTuple):
    """A volume's manifest: its bytes, and the version to name in the next compare-and-swap.

    The version is opaque: equal versions mean equal bytes, and no version ever comes back after a change.
    """

    data: bytes
    version: str


class Capacity(NamedTuple):
    """Bytes that the store can hold, of everybody's, and how many are left to be written."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Traits:
    """What a backend promises beyond the interface.

    durable: what was flushed outlives the process (memory: no).
    rewritable: a range may be written again with other bytes. Where not, a write that overlaps an
        earlier one is refused with InvalidArgument, unless it repeats the very same write (a retry).
    atomic_writes: after a crash a write is there whole or not at all, so damaged bytes are never
        the remains of a torn write.
    remote: reads wait for other machines. Such a volume is mounted through `fusevol.backends.cache.LocalCache`, which
        can be read without a loop.
    block: ranges that are read, written or discarded begin and end at multiples of it; others are InvalidArgument.
        At most 4096, which is a volume's block.
    """

    durable: bool = True
    rewritable: bool = True
    atomic_writes: bool = False
    remote: bool = False
    block: int = 1


class Started(Protocol):
    """A write that is on its way."""

    async def finished(self) -> int:
        """Return how many bytes are durable. Raises as `Backend.write` does.

        Whoever is cancelled may ask again; the write goes on.
        """


class Backend(IODriver):
    """Sparse byte spaces that can be created, deleted, listed, and that give space back.

    Volume ids are non-empty strings of ASCII letters, digits, `-`, `_` and `.`, at most 128 characters,
    not starting with a dot; others are InvalidArgument. All calls but `create` and `list` raise
    VolumeNotFound for a volume that does not exist. Operating-system and client errors surface as
    BackendError (NoSpace where the store is full), never as themselves.
    """

    traits: Traits = Traits()

    @abstractmethod
    async def create(self, volume_id: str) -> None:
        """Make an empty space with no manifest, durably. Raises AlreadyExists."""

    @abstractmethod
    async def delete(self, volume_id: str) -> None:
        """Remove the space, its manifest and all it holds, durably.

        A crash in the middle leaves the volume either listed, so that delete can be called again, or gone.
        """

    @abstractmethod
    async def list(self) -> list[str]:
        """The ids of all volumes, sorted."""

    @abstractmethod
    async def used_size(self, volume_id: str) -> int:
        """Bytes of the store that the volume's space takes up, its manifest left out."""

    @abstractmethod
    async def discard(self, volume_id: str, length: int, offset: int) -> None:
        """Give back the range. What a later read of it returns is undefined, but it is no error.

        The bytes may come back to life after a crash that comes before the next flush.
        """

    @abstractmethod
    async def get_manifest(self, volume_id: str) -> Manifest:
        """The manifest and its version; `Manifest(b"", NO_VERSION)` before the first put.

        Raises CorruptData where the stored manifest is damaged.
        """

    @abstractmethod
    async def put_manifest(self, volume_id: str, data: Buffer, if_version: str) -> str:
        """Replace the manifest if its version is still `if_version`; return the new version.

        Atomic and durable when it returns; it does not flush the space. Raises ManifestConflict, and
        changes nothing, when somebody else was faster. After a BackendError the outcome is unknown:
        read the manifest to learn it.
        """

    async def sweep(self) -> None:
        """Remove what calls that a crash interrupted left behind, where there can be such things.

        Others may be at work on the same store; what they need stays.
        """

    async def aclose(self) -> None:
        """Let go of files and connections. Does not flush. Calling it twice is harmless."""

    def release(self, volume_id: str) -> None:
        """Nobody here has the volume open any more: let go of files that are kept open for it, if there are any.

        Files that others remove take up space for as long as they are open. Harmless where somebody uses the volume.
        """

    def read_nowait(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Like `read`, but return None rather than wait. Backends that must always wait leave this as is."""
        return None

    def read_kept(self, volume_id: str, size: int, offset: int) -> Buffer | None:
        """Like `read_nowait`, for what is likely to be asked for again: a cache keeps it, and gives up others first."""
        return self.read_nowait(volume_id, size, offset)

    def read_blocking(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Like `read`, but without a loop to wait on: it blocks the thread. For local stores.

        Raises NotSupported where a read takes a network.
        """
        raise NotSupported(f"{type(self).__name__} cannot be read without waiting for other machines")

    async def read_stored(self, volume_id: str, size: int, offset: int) -> Buffer:
        """Like `read`, but from the store itself and not from any cache: for bytes that no checksum is known of."""
        return await self.read(volume_id, size, offset)

    async def read_around(self, volume_id: str, size: int, offset: int, most: int) -> tuple[int, Buffer]:
        """Like `read`, with what was written together with it, where that costs little more and it is less than `most`.

        Returns where the bytes begin, and the bytes: at least those that `read` returns, and none beyond the multiples
        of `most` around those.
        """
        return offset, await self.read(volume_id, size, offset)

    def doubt(self, volume_id: str, size: int, offset: int) -> None:
        """What was read there is not what was written. Where it came from a cache, the next read goes behind that."""

    def start_write(self, volume_id: str, data: Buffer, offset: int, *, alone: bool = False) -> Started | None:
        """Begin what `write` does, and make it durable, where the store goes on with it by itself; else None.

        alone: nobody would have to wait if the loop were held up for as long as the write takes, where that is quick.

        Nobody may change `data` until it has finished. For stores to which handing a small write takes as long as
        carrying it out; the others leave this as is.
        """
        return None

    def capacity(self, volume_id: str) -> Capacity | None:
        """How full the store is, where it is full one day and knows at once how far that is; None elsewhere.

        A store that has no volumes yet may be asked for one with an empty id.

        What is known here lets a volume keep a reserve, so that deleting files works on a full store.
        """
        return None
