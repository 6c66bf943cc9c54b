"""The filesystems of one pool: see `fusevol.storage.local`."""

import errno
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import trio

from fusevol.api import UINT64_MAX, Source, Volume, VolumeLocator, VolumeSpec, check_name
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import believed
from fusevol.driver.consumers import refuse_if_used
from fusevol.driver.context import LEFTOVER
from fusevol.driver.labels import (
    POOL_LABEL,
    STORAGE_LABELS,
    TAG_LABEL,
    check_labels,
    pool_of,
    with_labels,
    without_labels,
)
from fusevol.driver.mounting import resolved
from fusevol.driver.mounts import take_away
from fusevol.driver.server import mount_options
from fusevol.driver.specs import check_spec
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    FusevolError,
    InvalidArgument,
    NotSupported,
    VolumeAttached,
    VolumeBusy,
    VolumeDetached,
    VolumeNotFound,
)
from fusevol.forms.options import CreateOptions, parse_create_options
from fusevol.storage.filesystems import (
    AttachFilesystemsResult,
    CreateFilesystemsResult,
    Filesystem,
    FilesystemAttachment,
    FilesystemAttachmentParams,
    FilesystemInfo,
    FilesystemParams,
)
from fusevol.storage.names import ProviderType, quoted
from fusevol.storage.provider import FilesystemSource

__all__ = ["RESOURCE_LABELS", "TAG_LABEL", "LocalFilesystemSource"]

#: What the labels begin with that are resource tags.
RESOURCE_LABELS: Final = f"{STORAGE_LABELS}resource."

#: Attributes that no option of a volume has: its name, otherwise its tag; and whether one of that name is taken that is
#: nobody's.
_NAME: Final = "name"
_ADOPT: Final = "adopt"
#: Options of a volume that the parameters have a field for, or the pool.
_FIXED: Final = ("size", "pool")
#: What the model calls one that it took over, and did not have made.
_IMPORTED: Final = "imported"
_MIB: Final = 20

_Action: TypeAlias = Callable[[Volume], Awaitable[None]]


class LocalFilesystemSource(FilesystemSource):
    """FilesystemSource and FilesystemImporter: the volumes of one pool.

    Attributes of a filesystem are the options of `fusevol create --opt`, `name`, and `adopt`.
    """

    def __init__(self, driver: LocalDriver, provider: ProviderType, pool: str) -> None:
        self._driver = driver
        self._provider = provider
        self._pool = pool

    # -- making and destroying --------------------------------------------------------------------

    def validate_filesystem_params(self, params: FilesystemParams) -> None:
        """Check what is to be made. Raises InvalidArgument, NotSupported."""
        self._asked(params)

    def _asked(self, params: FilesystemParams) -> "_Asked":
        if params.provider != self._provider:
            raise InvalidArgument(f"{params.tag}: its provider is {quoted(params.provider)}, not {self._provider}")
        if params.volume is not None:
            raise NotSupported(f"{params.tag}: filesystems on volumes not supported")
        texts = {key: _text_of(key, value) for key, value in params.attributes.items()}
        name = check_name(texts.pop(_NAME, str(params.tag)), f"the name of {params.tag}:")
        adopt = texts.pop(_ADOPT, "false")
        if adopt not in ("true", "false"):
            raise InvalidArgument(f"{params.tag}: {_ADOPT} is true or false, not {quoted(adopt)}")
        for key in _FIXED:
            if key in texts:
                raise InvalidArgument(f"{params.tag}: {key} is no attribute of a filesystem")
        options = parse_create_options([f"{key}={text}" for key, text in texts.items()])
        if params.size << _MIB > UINT64_MAX:
            raise InvalidArgument(f"{params.tag}: {params.size} MiB are more than a volume can have")
        check_labels(options.labels)
        storage = {TAG_LABEL: str(params.tag), **_resource_labels(params.resource_tags)}
        spec = msgspec.structs.replace(options.applied_to(VolumeSpec()), size=params.size << _MIB)
        check_spec(spec, encrypted=bool(self._driver.context.home.pool(self._pool).key_file))
        return _Asked(name, {**options.labels, POOL_LABEL: self._pool}, storage, spec, options, adopt == "true")

    async def create_filesystems(self, params: Sequence[FilesystemParams]) -> list[CreateFilesystemsResult]:
        """Make volumes, and mount those that have an attachment."""
        results = []
        for one in params:
            try:
                results.append(CreateFilesystemsResult(filesystem=await self._create(one)))
            except FusevolError as error:
                results.append(CreateFilesystemsResult(error=error))
        return results

    async def _create(self, params: FilesystemParams) -> Filesystem:
        asked = self._asked(params)
        _, source, _ = await asked.options.request(self._driver, asked.name)
        volume = await self._made(asked, source)
        if params.attachment:
            await self._attach(msgspec.structs.replace(params.attachment, filesystem_id=volume.id))
        info = _info(volume)
        return Filesystem(tag=params.tag, filesystem_id=info.filesystem_id, size=info.size)

    async def _made(self, asked: "_Asked", source: Source | None) -> Volume:
        """The volume that is asked for; where it is there already, it grows if it has to."""
        volume = await self._existing(asked)
        if volume is None:
            locator = VolumeLocator(name=asked.name, volume_labels=asked.labels)
            try:
                made = await self._driver.create(locator, source, asked.spec, exist_ok=False, storage=asked.storage)
                return await self._driver.resolve(made)
            except AlreadyExists as error:
                # Somebody else may be making the same.
                volume = await self._existing(asked) or await self._adopted(asked, source, error)
        asked.check(volume, source)
        await self._driver.grow(volume.id, asked.spec.size)
        return await self._driver.resolve(volume.id)

    async def _existing(self, asked: "_Asked") -> Volume | None:
        """The volume that has the tag, whatever it is called by now. Raises AlreadyExists where it is not here."""
        tag = asked.storage[TAG_LABEL]
        found = await self._driver.enumerate(None, {TAG_LABEL: tag})
        volumes = [volume for volume in found if volume.state not in LEFTOVER]
        if len(volumes) > 1:
            names = ", ".join(sorted(quoted(volume.locator.name) for volume in volumes))
            raise AlreadyExists(f"{tag} is several volumes: {names}")
        for volume in volumes:
            if pool_of(volume) != self._pool:
                raise AlreadyExists(f"{tag} is volume {quoted(volume.locator.name)} of pool {quoted(pool_of(volume))}")
            return volume
        return None

    async def _adopted(self, asked: "_Asked", source: Source | None, error: AlreadyExists) -> Volume:
        """The volume that has the name, and is nobody's. Raises AlreadyExists: `error`, where it has no record."""
        volume = await self._driver.store.named(asked.name)
        if volume is None:
            raise error
        theirs = _storage_of(volume)
        owner = theirs.get(TAG_LABEL)
        # Whoever imported it for this has said so with the same resource tags.
        same = theirs == {**asked.storage, TAG_LABEL: _IMPORTED}
        if pool_of(volume) != self._pool or not (same or (asked.adopt and owner in (None, _IMPORTED))):
            whose = "nobody's" if owner is None else owner
            raise AlreadyExists(
                f"volume {quoted(asked.name)} of pool {quoted(pool_of(volume))} exists already, and is {whose}"
            )
        asked.check(with_labels(volume, asked.storage), source)
        await self._label(volume, asked.storage)
        return await self._driver.resolve(volume.id)

    async def destroy_filesystems(self, filesystem_ids: Sequence[str]) -> list[FusevolError | None]:
        """Unmount volumes and delete them. One that has snapshots is VolumeHasSnapshots."""

        async def destroy(volume: Volume) -> None:
            # First, since one that is going to stay is to stay mounted.
            refuse_if_used(volume, "deleted")
            await self._driver.deleting.refuse_if_needed(volume)
            await self._unmount(volume)
            await self._driver.delete(volume.id)

        return [await self._with(filesystem_id, destroy) for filesystem_id in filesystem_ids]

    async def release_filesystems(self, filesystem_ids: Sequence[str]) -> list[FusevolError | None]:
        """Take the labels off that say whose volumes are. One that is mounted is VolumeAttached."""

        async def release(volume: Volume) -> None:
            await self._label(volume, {}, f"cannot release filesystem {quoted(volume.id)}: attachments still active")

        return [await self._with(filesystem_id, release, missing_ok=False) for filesystem_id in filesystem_ids]

    # -- mounting ---------------------------------------------------------------------------------

    async def attach_filesystems(self, params: Sequence[FilesystemAttachmentParams]) -> list[AttachFilesystemsResult]:
        """Mount volumes on directories of this host, which are made where there are none, and must be empty."""
        results = []
        for one in params:
            try:
                results.append(AttachFilesystemsResult(filesystem_attachment=await self._attach(one)))
            except FusevolError as error:
                results.append(AttachFilesystemsResult(error=error))
        return results

    async def _attach(self, params: FilesystemAttachmentParams) -> FilesystemAttachment:
        volume = await self._owned(params.filesystem_id)
        if not params.path:
            raise InvalidArgument(f"{params.filesystem}: filesystem mountpoint not specified")
        path = await resolved(params.path)
        if path not in volume.attach_path:
            if volume.attached_on:
                raise VolumeAttached(f"filesystem {volume.id} is attached to {volume.attach_path[0]} already")
            await trio.to_thread.run_sync(self._driver.mounting.refuse_own_place, path)
            await take_away(path)
            await trio.to_thread.run_sync(_make_mountpoint, path)
        volume = await self._driver.mounting.mount(volume.id, path, {"ro": ""} if params.read_only else None)
        # Somebody else may have been faster, or it was there; by itself it is read-only where its spec says so.
        if _is_read_only(volume) != (params.read_only or "ro" in volume.spec.mount_options):
            how = "read-only" if _is_read_only(volume) else "for writing"
            raise VolumeAttached(f"filesystem {volume.id} is attached to {path} already, {how}")
        return FilesystemAttachment(
            filesystem=params.filesystem, machine=params.machine, path=path, read_only=_is_read_only(volume)
        )

    async def detach_filesystems(self, params: Sequence[FilesystemAttachmentParams]) -> list[FusevolError | None]:
        """Unmount volumes from their paths; from all of them, where no path is said."""

        def detach(path: str) -> _Action:
            async def act(volume: Volume) -> None:
                await self._unmount(volume, path)

            return act

        return [await self._with(one.filesystem_id, detach(one.path)) for one in params]

    async def _unmount(self, volume: Volume, path: str = "") -> None:
        where = await resolved(path) if path else ""
        for mounted in volume.attach_path:
            if where in ("", mounted):
                # Somebody else may have been faster.
                with suppress(VolumeDetached):
                    await self._driver.unmount(volume.id, mounted)

    # -- whose they are ---------------------------------------------------------------------------

    async def import_filesystem(self, filesystem_id: str, resource_tags: Mapping[str, str]) -> FilesystemInfo:
        """Take a volume of the pool, by its id or name, for one's own (FilesystemImporter of the seed).

        One that is in the pool and has no record here gets one. Raises VolumeNotFound, VolumeAttached, AlreadyExists
        for one that has a tag here, InvalidArgument for a snapshot, for one of another pool, and for tags that cannot
        be labels, and as `Importing.import_volume` does.
        """
        labels = {TAG_LABEL: _IMPORTED, **_resource_labels(resource_tags)}
        volume = await self._found(filesystem_id)
        await self._label(volume, labels, 'cannot import volume with status "in-use"')
        return _info(volume)

    async def _found(self, filesystem_id: str) -> Volume:
        importing = self._driver.importing
        for volume in await self._driver.inspect([filesystem_id]):
            self._refuse_others(volume)
            _refuse_owned(volume)
            return volume
        for item in await importing.found(self._pool):
            if filesystem_id == item.id or (filesystem_id == item.name and not item.problem):
                if item.record:
                    _refuse_owned(item.record)
                return await importing.import_volume(item)
        raise VolumeNotFound(f"{filesystem_id} not found")

    async def _label(self, volume: Volume, labels: Mapping[str, str], in_use: str = "") -> None:
        """Have those labels say whose a volume is, and no others. in_use: what is wrong where it is mounted."""
        context = self._driver.context
        async with context.hold(volume.id) as held:
            if in_use and held.attached_on:
                raise VolumeAttached(in_use)
            before = held.locator.volume_labels
            if before.get(TAG_LABEL) != volume.locator.volume_labels.get(TAG_LABEL):
                raise VolumeBusy(f"somebody else takes or releases {quoted(held.locator.name)}", hint="try again")
            wanted = with_labels(without_labels(held, STORAGE_LABELS), labels).locator
            after = await context.change(held.id, lambda now: msgspec.structs.replace(now, locator=wanted))
            await context.describe(after, held)

    async def _owned(self, filesystem_id: str) -> Volume:
        """A filesystem of this source, as far as its record is true. Raises VolumeNotFound, InvalidArgument."""
        try:
            volume = believed(await self._driver.store.get_vol(filesystem_id))
        except VolumeNotFound as error:
            raise VolumeNotFound(f"{filesystem_id} not found") from error
        self._refuse_others(volume)
        if TAG_LABEL not in volume.locator.volume_labels:
            raise InvalidArgument(f"{quoted(filesystem_id)} is nobody's, or was released", hint="import it first")
        return volume

    def _refuse_others(self, volume: Volume) -> None:
        if volume.is_snapshot or pool_of(volume) != self._pool:
            raise InvalidArgument(f"{quoted(volume.id)} is not a volume of pool {quoted(self._pool)}")

    async def _with(self, filesystem_id: str, act: _Action, *, missing_ok: bool = True) -> FusevolError | None:
        """Do something with a filesystem of this source; return what was wrong."""
        try:
            await act(await self._owned(filesystem_id))
        except VolumeNotFound as error:
            return None if missing_ok else error
        except FusevolError as error:
            return error
        return None


class _Asked(NamedTuple):
    """What a volume is to be like that is asked for.

    storage: the labels that say whose it is. adopt: one of that name that is nobody's will do.
    """

    name: str
    labels: dict[str, str]
    storage: dict[str, str]
    spec: VolumeSpec
    options: CreateOptions
    adopt: bool

    def check(self, volume: Volume, source: Source | None) -> None:
        """Raise AlreadyExists for one that is there, and not like that in all that was said."""
        name = quoted(volume.locator.name)
        if source and volume.source != source:
            raise AlreadyExists(f"volume {name} exists already, and was not made from that")
        if (self.labels | self.storage).items() - volume.locator.volume_labels.items():
            raise AlreadyExists(f"volume {name} exists already, with other labels or resource tags")
        if self.options.applied_to(volume.spec) != volume.spec:
            raise AlreadyExists(f"volume {name} exists already, with other attributes")


def _storage_of(volume: Volume) -> dict[str, str]:
    """The labels that say whose a volume is."""
    labels = volume.locator.volume_labels
    return {key: text for key, text in labels.items() if key.startswith(STORAGE_LABELS)}


def _refuse_owned(volume: Volume) -> None:
    if (owner := _storage_of(volume).get(TAG_LABEL, _IMPORTED)) != _IMPORTED:
        raise AlreadyExists(f"volume {quoted(volume.locator.name)} is {owner} already", hint="release it first")


def _info(volume: Volume) -> FilesystemInfo:
    return FilesystemInfo(filesystem_id=volume.id, size=volume.spec.size >> _MIB)


def _is_read_only(volume: Volume) -> bool:
    return mount_options(volume.mount_options, volume.locator.name)[0].read_only


def _resource_labels(tags: Mapping[str, str]) -> dict[str, str]:
    for key, value in tags.items():
        if not isinstance(value, str):
            raise InvalidArgument(f"resource tag {quoted(key)}: expected a text, got {value!r}")
    check_labels(tags)
    return {RESOURCE_LABELS + key: value for key, value in tags.items()}


def _text_of(key: str, value: Any) -> str:
    """An attribute as an option has it. Raises InvalidArgument."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    raise InvalidArgument(f"attribute {quoted(key)}: expected a text, a number, or true or false, got {value!r}")


def _make_mountpoint(path: str) -> None:
    """Have an empty directory there. Blocks. Raises InvalidArgument, VolumeBusy, BackendError."""
    try:
        os.makedirs(path, exist_ok=True)
        if os.listdir(path):
            raise VolumeBusy(f"{quoted(path)} is not empty")
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidArgument(f"path {quoted(path)} must be a directory") from error
    except OSError as error:
        # A mount that has nobody to serve it any more is for whoever mounts there to take away.
        if error.errno != errno.ENOTCONN:
            raise BackendError(f"{quoted(path)} cannot be mounted on: {error.strerror}") from error
