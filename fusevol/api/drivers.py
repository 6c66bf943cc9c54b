"""The interfaces of a volume driver, after openstorage's `volume` package.

Volumes are named by id here, except where a docstring says otherwise. A snapshot or clone is a volume with
an id of its own, so whatever takes a volume takes those as well. Where a call can wait for I/O it is
`async`. Cancelled calls leave a volume as if they had run in full or not at all.

Any call may also raise BackendError where the store of bytes fails, NotSupported where the driver does not
do such a thing, and AlreadyShutdown after `shutdown`.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeAlias

from fusevol.api.enums import DriverType
from fusevol.api.io import IODriver
from fusevol.api.types import ActiveRequests, Source, Stats, Volume, VolumeLocator, VolumeSpec
from fusevol.api.updates import LocatorUpdate, SpecUpdate

__all__ = [
    "BlockDriver",
    "Enumerator",
    "InitFunc",
    "ProtoDriver",
    "SnapshotDriver",
    "StatsDriver",
    "VolumeDriver",
    "VolumeDriverProvider",
    "VolumeDriverRegistry",
]


class SnapshotDriver(ABC):
    """Snapshots (SnapshotDriver of the seed)."""

    @abstractmethod
    async def snapshot(self, volume_id: str, *, readonly: bool, locator: VolumeLocator) -> str:
        """Make a snapshot of a volume, or unless `readonly` a writable clone, and return its id.

        It holds every write that returned before the call, has the volume as `source.parent`, inherits
        its spec, and takes name and labels from `locator`.

        Raises VolumeNotFound, AlreadyExists for the name, InvalidArgument.
        """

    @abstractmethod
    async def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Give a volume the contents of one of its snapshots, at once and whole, mounted or not.

        Raises VolumeNotFound, SnapshotNotFound, InvalidArgument where the snapshot is of another volume,
        ReadOnly, VolumeAttachedOnRemoteNode.
        """


class StatsDriver(ABC):
    """Numbers of a volume's use (StatsDriver of the seed)."""

    @abstractmethod
    async def stats(self, volume_id: str, *, cumulative: bool) -> Stats:
        """I/O counters of a volume, in the units of Stats.

        cumulative: since it was mounted, as /proc/diskstats has them; otherwise since the last call of
        this kind. All 0 for a volume that is not mounted.

        Raises VolumeNotFound.
        """

    @abstractmethod
    async def used_size(self, volume_id: str) -> int:
        """Bytes that a volume takes up now. Raises VolumeNotFound."""

    @abstractmethod
    async def get_active_requests(self) -> ActiveRequests:
        """The requests that the driver is serving now, on all volumes. Raises BackendError alone."""


class ProtoDriver(SnapshotDriver, StatsDriver):
    """What every driver must do: make, delete, mount and change volumes (ProtoDriver of the seed)."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The driver's name. Raises nothing."""

    @property
    @abstractmethod
    def type(self) -> DriverType:
        """What kind of storage it serves. Raises nothing."""

    @abstractmethod
    async def create(self, locator: VolumeLocator, source: Source | None, spec: VolumeSpec) -> str:
        """Make a volume and return its id, a UUID.

        A `source` with a parent makes a writable clone of that, its labels merged with the locator's.
        A volume of that name, size and parent that is there already is the one asked for: its id is
        returned.

        Raises AlreadyExists for any other volume of that name, VolumeNotFound for the parent,
        InvalidArgument, NotSupported for what the driver cannot honour, NoSpace.
        """

    @abstractmethod
    async def delete(self, volume_id: str) -> None:
        """Delete a volume and all it holds.

        Raises VolumeNotFound, VolumeHasSnapshots while snapshots or clones depend on it, VolumeBusy while
        it is mounted or sticky, VolumeAttachedOnRemoteNode.
        """

    @abstractmethod
    async def mount(self, volume_id: str, mount_path: str) -> None:
        """Mount a volume on a directory. Mounting it where it is mounted changes nothing.

        A volume may be mounted on several paths; a slash at a path's end means nothing.

        Raises VolumeNotFound, VolumeDetached where it must be attached first, VolumeBusy where another
        volume has that path, VolumeAttachedOnRemoteNode, InvalidArgument for a bad path.
        """

    @abstractmethod
    async def mounted_at(self, mount_path: str) -> str:
        """Id of the volume that is mounted on a path, "" where none is. Raises BackendError alone."""

    @abstractmethod
    async def unmount(self, volume_id: str, mount_path: str) -> None:
        """Unmount a volume from a path, with all its data on stable storage.

        Raises VolumeNotFound, VolumeDetached where it is not attached, InvalidArgument where it is not
        mounted on that path, VolumeBusy while files are open.
        """

    @abstractmethod
    async def set(self, volume_id: str, locator: LocatorUpdate | None, spec: SpecUpdate | None) -> None:
        """Change a volume's name, labels or spec, mounted or not. None changes nothing; all or nothing.

        Raises VolumeNotFound, AlreadyExists for a new name, NotSupported for a field of the spec that
        cannot change, InvalidArgument, for one for a size below what is used.
        """

    @abstractmethod
    async def status(self) -> list[tuple[str, str]]:
        """How the driver is, as pairs of key and value for people. Raises BackendError alone."""

    @abstractmethod
    async def shutdown(self) -> None:
        """Let go of everything that is held. Mounts that live in other processes stay.

        Calling it again is harmless. Raises BackendError where something could not be let go of properly.
        """


class BlockDriver(ABC):
    """Volumes as devices of this node (BlockDriver of the seed).

    Drivers without devices inherit `fusevol.api.null.BlockNotSupported`.
    """

    @abstractmethod
    async def attach(self, volume_id: str, attach_options: Mapping[str, str] | None = None) -> str:
        """Attach a volume to this node and return the path of its device.

        `attach_options` may hold ATTACH_OPTIONS_SECRET; a key that the driver does not know is refused.
        Attached here already: the same path again, or VolumeAttached from a driver that cannot tell it.

        Raises VolumeNotFound, VolumeAttached, VolumeAttachedOnRemoteNode, InvalidArgument.
        """

    @abstractmethod
    async def detach(self, volume_id: str, *, unmount_before_detach: bool = False) -> None:
        """Detach a volume from this node, with all its data on stable storage.

        Not attached: nothing to do, or VolumeDetached from a driver that cannot tell it from a mistake.

        Raises VolumeNotFound, VolumeDetached, VolumeBusy while it is mounted, unless it is to be unmounted
        first, VolumeAttachedOnRemoteNode.
        """


class Enumerator(ABC):
    """Finding volumes (Enumerator of the seed). Volumes that do not exist are no error."""

    @abstractmethod
    async def inspect(self, volume_ids: Sequence[str]) -> list[Volume]:
        """The volumes of those ids or names, as far as there are any. Raises BackendError alone.

        An id comes before another volume's name of the same text.
        """

    @abstractmethod
    async def enumerate(
        self, locator: VolumeLocator | None = None, labels: Mapping[str, str] | None = None
    ) -> list[Volume]:
        """The volumes, snapshots and clones that match all that is given; all of them where nothing is.

        The locator's name is a regular expression that must match in full; labels, its own and `labels`,
        must be among the volume's.

        Raises InvalidArgument for a bad regular expression.
        """

    @abstractmethod
    async def snap_enumerate(
        self, volume_ids: Sequence[str] | None = None, snap_labels: Mapping[str, str] | None = None
    ) -> list[Volume]:
        """The snapshots and clones made directly of those volumes, or of any where None is given.

        `snap_labels` must be among their labels. Raises BackendError alone.
        """


class VolumeDriver(IODriver, ProtoDriver, BlockDriver, Enumerator):
    """What a storage driver implements (VolumeDriver of the seed).

    What it does not do it inherits from `fusevol.api.null`, named before this class.
    """


#: Makes a driver of its parameters; may be async. One that is not must not wait for anything.
InitFunc: TypeAlias = Callable[[Mapping[str, str]], VolumeDriver | Awaitable[VolumeDriver]]


class VolumeDriverProvider(ABC):
    """Gives out drivers (VolumeDriverProvider of the seed)."""

    @abstractmethod
    def get(self, name: str) -> VolumeDriver:
        """The driver of that name.

        Raises DriverNotFound unless it was registered, DriverInitializing until it is ready,
        AlreadyShutdown.
        """

    @abstractmethod
    async def shutdown(self) -> None:
        """Shut down all drivers, each whatever becomes of the others.

        Raises AlreadyShutdown the second time, and an ExceptionGroup of what drivers raised.
        """


class VolumeDriverRegistry(VolumeDriverProvider):
    """Makes drivers by name (VolumeDriverRegistry of the seed)."""

    @abstractmethod
    async def register(self, name: str, params: Mapping[str, str]) -> None:
        """Make the driver of that name; `params` is for its init function, whose errors come through.

        After an error it is as if it had not been called.

        Raises AlreadyExists where it was made, DriverInitializing while it is being made, DriverNotFound
        where no init function has that name, AlreadyShutdown.
        """

    @abstractmethod
    def add(self, name: str, init: InitFunc) -> None:
        """Make a name known, and the function that makes its driver.

        Raises AlreadyExists, AlreadyShutdown, InvalidArgument for a blank name.
        """
