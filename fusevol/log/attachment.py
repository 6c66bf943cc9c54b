"""The manifest as its writer sees it: claiming an epoch, confirming it, publishing checkpoints.

A writer owns the volume while the manifest names its epoch and its writer name. Others may change the
manifest in the meantime, but only to add or drop pins; that is merged and goes on.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import msgspec
import trio

from fusevol.backends.base import NO_VERSION, Backend
from fusevol.errors import (
    BackendError,
    CorruptData,
    Fenced,
    FusevolError,
    ManifestConflict,
    NotSupported,
    VolumeBusy,
    VolumeNotFound,
)
from fusevol.log.format import INDEX_BITS, LAST_EPOCH
from fusevol.log.mutex import Mutex
from fusevol.log.records import Blob, Manifest, Pin

__all__ = [
    "Attachment",
    "Claim",
    "Diverged",
    "check_ready",
    "is_stale",
    "read_manifest",
    "unfinished",
    "update_manifest",
    "without_pins",
]

_RETRIES = 16


async def read_manifest(backend: Backend, volume_id: str) -> tuple[Manifest, str]:
    """A volume's manifest and its version. Raises VolumeNotFound, CorruptData, NotSupported."""
    data, version = await backend.get_manifest(volume_id)
    if version == NO_VERSION:
        raise CorruptData(
            f'volume "{volume_id}" has no manifest',
            hint="if nobody has used it yet, its creation was interrupted: delete it and create it again",
        )
    return Manifest.from_bytes(data, volume_id), version


async def update_manifest(
    backend: Backend, volume_id: str, change: Callable[[Manifest], Manifest]
) -> tuple[Manifest, str]:
    """Apply `change` by compare-and-swap, again if others were faster; return the manifest and its version.

    `change` may raise to give up. A put whose outcome is unknown is settled by reading: manifests differ
    in every change, so finding what was put means that it was done.
    """
    manifest, version = await read_manifest(backend, volume_id)
    for _ in range(_RETRIES):
        wanted = change(manifest)
        if wanted == manifest:
            return manifest, version
        try:
            return wanted, await backend.put_manifest(volume_id, wanted.to_bytes(), version)
        except ManifestConflict:
            manifest, version = await read_manifest(backend, volume_id)
        except BackendError:
            manifest, version = await read_manifest(backend, volume_id)
            if manifest == wanted:
                return manifest, version
            raise
    raise VolumeBusy(f'the manifest of volume "{volume_id}" keeps changing; try again')


def check_ready(manifest: Manifest, volume_id: str) -> None:
    """Raise CorruptData for a volume whose creation or deletion was interrupted."""
    if manifest.state == "deleting":
        raise CorruptData(
            f'volume "{volume_id}" is being deleted, or its deletion was interrupted', hint="delete it again"
        )
    if manifest.state != "ready":
        raise CorruptData(
            f'volume "{volume_id}" is {manifest.state}: its creation was interrupted',
            hint="delete it and create it again",
        )


def unfinished(volume_id: str) -> VolumeBusy:
    """The error where a volume's live tree is only partly what it is being turned into."""
    return VolumeBusy(
        f'volume "{volume_id}" is an unfinished copy', hint="copy to it again, or restore it to one of its snapshots"
    )


async def is_stale(backend: Backend, pin: Pin) -> bool:
    """Whether the clone of a pin is gone; another volume of that id may have come since."""
    try:
        return (await read_manifest(backend, pin.clone))[0].uuid != pin.uuid
    except VolumeNotFound:
        return True
    except (CorruptData, NotSupported):
        return False


def without_pins(manifest: Manifest, pins: set[Pin]) -> Manifest:
    """The manifest without those pins."""
    return msgspec.structs.replace(manifest, pins=tuple(pin for pin in manifest.pins if pin not in pins))


class Claim(NamedTuple):
    """For whom a volume is attached.

    holder: who that is; it stands in the manifest for as long as the volume is attached. admit: called with what
    stands there of somebody else; raises where that must not be taken over. about: what is to be said of the volume
    from now on, "" to leave it as it is. unfinished: for whoever turns its live tree into something else, or goes on
    with that: nobody else can have a volume where that was begun.
    """

    holder: str
    admit: Callable[[str], None]
    about: str = ""
    unfinished: bool = False


class Diverged(BackendError):
    """A change that the backend had failed took effect after all, and this writer has gone on without it."""


class Attachment:
    """A writer's hold on a volume. It is the writer's name that counts; epochs the writer may take more of.

    A put that failed may still take effect, even later. Until that is settled - by another change of the
    manifest, which no earlier put survives - nothing is confirmed.
    """

    def __init__(self, backend: Backend, volume_id: str, manifest: Manifest, version: str) -> None:
        self.backend = backend
        self.volume_id = volume_id
        self.manifest = manifest
        self._version = version
        self._lock = Mutex()
        self._unsettled = False
        #: Checkpoints that must not turn out to be the volume's: they failed, and are no mere repetition.
        self._doubtful: set[Blob] = set()

    @classmethod
    async def claim(cls, backend: Backend, volume_id: str, claim: Claim | None = None) -> "Attachment":
        """Take the volume over: the next epoch, and a new writer name. Earlier writers are fenced from now on.

        Raises what `claim` does, having changed nothing.
        """
        writer, holder = secrets.token_hex(8), claim.holder if claim else msgspec.UNSET
        about = claim.about if claim else ""

        def take(manifest: Manifest) -> Manifest:
            check_ready(manifest, volume_id)
            if claim and manifest.holder:
                claim.admit(manifest.holder)
            if manifest.becoming and not (claim and claim.unfinished):
                raise unfinished(volume_id)
            return msgspec.structs.replace(
                manifest, epoch=_next(manifest, volume_id), writer=writer, holder=holder, about=about or manifest.about
            )

        return cls(backend, volume_id, *await update_manifest(backend, volume_id, take))

    @property
    def head(self) -> int:
        """Address where the claimed epoch's log starts."""
        return self.manifest.epoch << INDEX_BITS

    async def confirm(self) -> None:
        """Return if this writer still holds the volume. Raises Fenced, Diverged, BackendError."""
        await self.settle()
        async with self._lock:
            data, version = await self.backend.get_manifest(self.volume_id)
            if version != self._version:
                manifest = Manifest.from_bytes(data, self.volume_id)
                self._check(manifest)
                self.manifest, self._version = manifest, version

    async def publish(self, change: Callable[[Manifest], Manifest], *, doubtful: Blob | None = None) -> None:
        """Change the manifest, as its writer. Raises Fenced, Diverged, BackendError; `change` may raise to give up.

        After a BackendError the change may still take effect. Where the caller could not live with that,
        `doubtful` is the checkpoint that the change is about: should it turn up later, that is Diverged.
        Once begun it is not cancelled.
        """
        await self.settle()
        async with self._lock:
            await self._put(change, doubtful)

    async def release(self) -> None:
        """Say that nobody has the volume any more. Where that fails, the holder that has ended is still named."""
        if self.manifest.holder:
            with suppress(FusevolError):
                await self.publish(lambda manifest: msgspec.structs.replace(manifest, holder=msgspec.UNSET))

    async def drop_stale_pins(self, snapshot: int) -> None:
        """Drop pins on a snapshot whose clones do not exist: the deletion of those stopped before its last step."""
        await self.confirm()
        pins = {pin for pin in self.manifest.pins if pin.snapshot == snapshot}
        if stale := {pin for pin in pins if await is_stale(self.backend, pin)}:
            await self.publish(lambda manifest: without_pins(manifest, stale))

    async def claim_next_epoch(self) -> int:
        """Take another epoch for the same writer; return the address where its log starts."""
        async with self._lock:
            await self._take_epoch()
            return self.head

    async def _take_epoch(self) -> None:
        await self._put(lambda manifest: msgspec.structs.replace(manifest, epoch=_next(manifest, self.volume_id)))

    async def settle(self) -> None:
        """After a put that failed: change the manifest, so that it cannot take effect any more, and see if it has.

        To be called before a barrier is sealed: a barrier must not come to stand on a restored tree that its
        writer knows nothing of. Raises as `confirm` does.
        """
        if self._unsettled:
            async with self._lock:
                if self._unsettled:
                    await self._take_epoch()

    async def _put(self, change: Callable[[Manifest], Manifest], doubtful: Blob | None = None) -> None:
        def guarded(manifest: Manifest) -> Manifest:
            self._check(manifest)
            return change(manifest)

        try:
            with trio.CancelScope(shield=True):
                self.manifest, self._version = await update_manifest(self.backend, self.volume_id, guarded)
        except BackendError:
            self._unsettled = True
            if doubtful is not None:
                self._doubtful.add(doubtful)
            raise
        self._unsettled = False
        self._doubtful.clear()

    def _check(self, manifest: Manifest) -> None:
        if manifest.writer != self.manifest.writer:
            raise Fenced(
                f'volume "{self.volume_id}" was taken over by another writer (epoch {manifest.epoch}; '
                f"this one has {self.manifest.epoch})",
                hint="what was flushed before is safe; detach this writer",
            )
        if manifest.checkpoint in self._doubtful:
            raise Diverged(
                f'a change of volume "{self.volume_id}" took effect although the backend had failed it',
                hint="detach and attach it again; it returns to its last barrier",
            )


def _next(manifest: Manifest, volume_id: str) -> int:
    if manifest.epoch >= LAST_EPOCH:
        raise CorruptData(f'volume "{volume_id}" has used up its {LAST_EPOCH} epochs')
    return manifest.epoch + 1
