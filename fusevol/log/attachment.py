"""The manifest as its writer sees it: claiming an epoch, confirming it, publishing checkpoints.

A writer owns the volume while the manifest names its epoch and its writer name. Others may change the
manifest in the meantime, but only to add or drop pins; that is merged and goes on.
"""

import secrets
from collections.abc import Callable

import msgspec

from fusevol.backends.base import NO_VERSION, Backend
from fusevol.errors import BackendError, CorruptData, Fenced, ManifestConflict, VolumeBusy
from fusevol.log.format import INDEX_BITS, LAST_EPOCH
from fusevol.log.records import Manifest

__all__ = ["Attachment", "read_manifest", "update_manifest"]

_RETRIES = 16


async def read_manifest(backend: Backend, volume_id: str) -> tuple[Manifest, str]:
    """A volume's manifest and its version. Raises VolumeNotFound, CorruptData, NotSupported."""
    data, version = await backend.get_manifest(volume_id)
    if version == NO_VERSION:
        raise CorruptData(
            f'volume "{volume_id}" has no manifest',
            hint="its creation was interrupted; delete it and create it again",
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


class Attachment:
    """A writer's hold on a volume."""

    def __init__(self, backend: Backend, volume_id: str, manifest: Manifest, version: str) -> None:
        self.backend = backend
        self.volume_id = volume_id
        self.manifest = manifest
        self._version = version

    @classmethod
    async def claim(cls, backend: Backend, volume_id: str) -> "Attachment":
        """Take the volume over: the next epoch, and a new writer name. Earlier writers are fenced from now on."""
        writer = secrets.token_hex(8)

        def take(manifest: Manifest) -> Manifest:
            if manifest.state != "ready":
                raise CorruptData(
                    f'volume "{volume_id}" is {manifest.state}: its creation was interrupted',
                    hint="delete it and create it again",
                )
            return msgspec.structs.replace(manifest, epoch=_next(manifest, volume_id), writer=writer)

        return cls(backend, volume_id, *await update_manifest(backend, volume_id, take))

    @property
    def head(self) -> int:
        """Address where the claimed epoch's log starts."""
        return self.manifest.epoch << INDEX_BITS

    async def confirm(self) -> None:
        """Return if this writer still holds the volume. Raises Fenced, BackendError."""
        data, version = await self.backend.get_manifest(self.volume_id)
        if version != self._version:
            self._merge(Manifest.from_bytes(data, self.volume_id), version)

    async def publish(self, change: Callable[[Manifest], Manifest]) -> None:
        """Change the manifest, as its writer. Raises Fenced, BackendError; `change` may raise to give up.

        After a BackendError that says so the outcome is unknown; after any other error nothing was changed.
        """

        def guarded(manifest: Manifest) -> Manifest:
            self._check(manifest)
            return change(manifest)

        self.manifest, self._version = await update_manifest(self.backend, self.volume_id, guarded)

    async def claim_next_epoch(self) -> int:
        """Take another epoch for the same writer; return the address where its log starts."""
        await self.publish(lambda manifest: msgspec.structs.replace(manifest, epoch=_next(manifest, self.volume_id)))
        return self.head

    def _merge(self, manifest: Manifest, version: str) -> None:
        self._check(manifest)
        self.manifest, self._version = manifest, version

    def _check(self, manifest: Manifest) -> None:
        if (manifest.epoch, manifest.writer) != (self.manifest.epoch, self.manifest.writer):
            raise Fenced(
                f'volume "{self.volume_id}" was taken over by another writer (epoch {manifest.epoch}; '
                f"this one has {self.manifest.epoch})",
                hint="what was flushed before is safe; detach this writer",
            )


def _next(manifest: Manifest, volume_id: str) -> int:
    if manifest.epoch >= LAST_EPOCH:
        raise CorruptData(f'volume "{volume_id}" has used up its {LAST_EPOCH} epochs')
    return manifest.epoch + 1
