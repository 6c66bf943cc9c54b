"""What Docker's volume plugin does with volumes.

A volume that containers use is mounted once, in a directory of the daemon's named by the volume's id; how many
times it is used, and by which mount ids, is written down in its record before dockerd hears of it. Rules:

- Get, List and Path answer from the records, whatever the store of bytes does.
- A use is counted after the volume is mounted, and taken back before it is unmounted: whatever dies in between leaves
  a mount without uses, which `docker.counts` takes away, and never a use without a mount.
- Unmount of what is not mounted succeeds, as does Remove of what is gone: dockerd repeats itself.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import trio

from fusevol.api import Volume, VolumeState, check_name
from fusevol.daemon.known import Known
from fusevol.daemon.work import Call, Work
from fusevol.docker.engine import Engine
from fusevol.docker.protocol import VolumeAnswer
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import believed
from fusevol.driver.consumers import added, dropped, refuse_if_used, removed, uses
from fusevol.driver.labels import pool_of
from fusevol.errors import BackendError, VolumeBusy, VolumeNotFound
from fusevol.forms.options import parse_create_options

__all__ = ["DockerVolumes"]

log = logging.getLogger(__name__)

_HIDDEN = (VolumeState.PENDING, VolumeState.DELETED)


class DockerVolumes:
    """The volumes of a driver, as dockerd uses them. mounts: the directory that they are mounted in."""

    def __init__(self, driver: LocalDriver, work: Work, known: Known, engine: Engine, mounts: Path) -> None:
        self.driver = driver
        self.work = work
        self.known = known
        self.engine = engine
        self.mounts = mounts

    def path_of(self, volume: Volume) -> str:
        """Where a volume is mounted for containers."""
        return str(self.mounts / volume.id)

    async def _named(self, name: str) -> Volume:
        """The volume of that name, as far as its record is true. Raises VolumeNotFound, InvalidArgument."""
        volume = await self.driver.store.named(check_name(name, "volume"))
        if volume is None or volume.state in _HIDDEN:
            raise VolumeNotFound(f'volume "{name}" does not exist')
        return believed(volume)

    def is_here(self, volume: Volume) -> bool:
        """Whether a volume, whose record is true, is mounted for containers."""
        # Where it is being mounted or unmounted, its record has the path too.
        return volume.state is VolumeState.ATTACHED and self.path_of(volume) in volume.attach_path

    def _mountpoint(self, volume: Volume) -> str:
        return self.path_of(volume) if self.is_here(volume) else ""

    # -- what dockerd asks ------------------------------------------------------------------------

    async def create(self, name: str, options: Mapping[str, str] | None) -> None:
        """Make a volume, as `docker volume create` says. One of that name, size and source is the one asked for."""
        asked = parse_create_options([f"{key}={value}" for key, value in (options or {}).items()])

        async def make(_: Call[str]) -> str:
            return await self.driver.create(*await asked.request(self.driver, name))

        await self.work.on(name, "creating it", make)

    async def get(self, name: str) -> VolumeAnswer:
        """A volume, with what `docker volume inspect` shows of it."""
        volume = await self._named(name)
        used = await self.known.used(volume)
        snapshots = [child for child in await self.driver.store.children(volume.id) if child.is_snapshot]
        status: dict[str, object] = {
            "id": volume.id,
            "state": volume.state.value,
            "size": volume.spec.size,
            "used": used,
            "snapshots": len(snapshots),
            "uses": uses(volume),
            "pool": pool_of(volume),
            "error": self.known.error(volume),
        }
        created = volume.ctime.isoformat(timespec="seconds").replace("+00:00", "Z")
        return VolumeAnswer(name=name, mountpoint=self._mountpoint(volume), created_at=created, status=status)

    async def list(self) -> "list[VolumeAnswer]":
        """All volumes."""
        volumes = [believed(volume) for volume, _ in await self.driver.store.volumes()]
        return [
            VolumeAnswer(name=volume.locator.name, mountpoint=self._mountpoint(volume))
            for volume in volumes
            if volume.state not in _HIDDEN
        ]

    async def path(self, name: str) -> str:
        """Where a volume is mounted for containers; "" where it is not."""
        return self._mountpoint(await self._named(name))

    async def mount(self, name: str, mount_id: str) -> str:
        """Mount a volume for a container, unless it is mounted, and count the use; return where."""
        volume = await self._named(name)

        async def mount(call: Call[None]) -> None:
            await self.mount_here(volume)
            if not call.given_up:
                await self.driver.context.change(volume.id, lambda now: added(now, mount_id))

        await self.work.on(name, "mounting it", mount)
        return self.path_of(volume)

    async def mount_here(self, volume: Volume) -> None:
        """Mount a volume where containers have it, unless it is mounted there."""
        path = self.path_of(volume)
        if self.is_here(believed(await self.driver.store.get_vol(volume.id))):
            return
        await trio.to_thread.run_sync(_make_directory, path)
        await self.driver.mount(volume.id, path)
        self.known.forget_error(volume)

    async def unmount(self, name: str, mount_id: str) -> None:
        """Take back one use of a volume, and after the last one unmount it."""
        with suppress(VolumeNotFound):
            volume = await self._named(name)

            async def unmount(_: Call[None]) -> None:
                after = await self.driver.context.change(volume.id, lambda now: removed(now, mount_id))
                if not uses(after):
                    await self.unmount_here(after)

            await self.work.on(name, "unmounting it", unmount, must_run=True)

    async def unmount_here(self, volume: Volume) -> None:
        """Unmount a volume that no container uses, if it is mounted for them. What is in use is tried again later."""
        path = self.path_of(volume)
        if path in believed(volume).attach_path:
            try:
                await self.driver.unmount(volume.id, path)
            except VolumeBusy as error:
                log.warning("%s: no container uses it any more, but: %s", volume.locator.name, error)
                self.known.set_error(volume, str(error))
                return
        with suppress(OSError):
            # Gone already, or a dead mount is still on it: whoever mounts it next takes that away.
            os.rmdir(path)

    async def remove(self, name: str) -> None:
        """Delete a volume that no container uses and that is mounted nowhere."""
        with suppress(VolumeNotFound):
            volume = await self._named(name)
            in_use = await self.engine.volumes_in_use() if uses(volume) else None

            async def remove(_: Call[None]) -> None:
                now = await self.driver.store.get_vol(volume.id)
                if uses(now) and in_use is not None and name not in in_use:
                    log.info("%s: no container has it; its count of %d was stale", name, uses(now))
                    now = await self.driver.context.change(volume.id, dropped)
                refuse_if_used(now, "removed")
                await self.unmount_here(now)
                await self.driver.delete(volume.id)
                self.known.forget(volume)

            await self.work.on(name, "removing it", remove)


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path)
    except FileExistsError:
        # It may have a dead mount on it, which nobody can look at; mounting takes that away.
        pass
    except OSError as error:
        raise BackendError(f"{path} cannot be made: {error.strerror}") from error
