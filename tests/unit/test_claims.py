"""Two state directories with one pool: each volume is written by one of them at a time, and taken by force alone."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import trio

from fusevol.api import VolumeLocator, VolumeSpec
from fusevol.backends.base import Backend
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import server_of
from fusevol.driver.claims import claim
from fusevol.errors import Fenced, VolumeAttachedOnRemoteNode, VolumeBusy
from fusevol.home import Home
from fusevol.log import open_volume, read_manifest
from fusevol.store import Process
from fusevol.testing.driver import remove_all

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")

#: A process of which nothing can be seen from here.
CONTAINED = msgspec.structs.replace(Process.current("serving /mnt"), namespace="pid:[1]")


async def holder_of(backend: Backend, volume_id: str) -> str:
    """Who stands in the manifest; "" for nobody."""
    return (await read_manifest(backend, volume_id))[0].holder or ""


@pytest.fixture
async def web(tmp_path: Path) -> str:
    """The id of the volume `web` in the pool `shared`, of the state directory `first` and its copy, `second`."""
    home = Home(tmp_path / "first")
    home.path.mkdir()
    home.config_path.write_text(f'lock_timeout = 0.2\n[pools.shared]\nbackend = "file"\npath = "{tmp_path}/shared"\n')
    async with LocalDriver(home) as driver:
        locator = VolumeLocator(name="web", volume_labels={"fusevol.pool": "shared"})
        made = await driver.create(locator, None, VolumeSpec())
    shutil.copytree(home.path, tmp_path / "second")
    return made


@pytest.fixture
async def first(web: str, tmp_path: Path) -> AsyncIterator[LocalDriver]:
    async with LocalDriver(Home(tmp_path / "first"), command="first") as driver:
        yield driver
        await remove_all(driver)


@pytest.fixture
async def second(web: str, tmp_path: Path) -> AsyncIterator[LocalDriver]:
    async with LocalDriver(Home(tmp_path / "second"), command="second") as driver:
        yield driver


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


@needs_fuse
async def test_what_one_has_mounted_the_other_does_not_touch(
    first: LocalDriver, second: LocalDriver, web: str, place: Path, tmp_path: Path
) -> None:
    await first.mount(web, str(place))
    other = tmp_path / "other"
    other.mkdir()
    for attempt in (
        second.mounting.mount(web, str(other)),
        second.mounting.mount(web, str(other), force=True),
        second.snapshot(web, readonly=True, locator=VolumeLocator(name="a")),
        second.delete(web),
        second.break_lease(web),
    ):
        with pytest.raises(VolumeBusy, match=rf'volume "web" is in use by process .* state directory {tmp_path}/first'):
            await attempt
    await trio.to_thread.run_sync((place / "file").write_text, "written on")
    await first.unmount(web, str(place))
    # Each closes it properly, so the other can have it.
    assert await holder_of(second.context.backend("shared"), web) == ""
    await second.mount(web, str(other))
    assert await trio.to_thread.run_sync((other / "file").read_text) == "written on"
    await second.unmount(web, str(other))


@needs_fuse
async def test_what_one_had_mounted_when_it_was_killed_the_other_can_have(
    first: LocalDriver, second: LocalDriver, web: str, place: Path
) -> None:
    await first.mount(web, str(place))
    server = server_of(await first.store.get_vol(web))
    assert server
    os.kill(server.pid, signal.SIGKILL)
    with trio.fail_after(30):
        while server.alive:  # noqa: ASYNC110  it is nobody's child here
            await trio.sleep(0.01)
    await second.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))
    assert await holder_of(second.context.backend("shared"), web) == ""
    await first.reconcile()
    await first.delete((await first.resolve("web@a")).id)


async def test_what_a_process_that_cannot_be_seen_has_open_is_taken_by_force_and_its_barriers_fail(
    first: LocalDriver, second: LocalDriver, web: str, tmp_path: Path
) -> None:
    backend = first.context.backend("shared")
    mine = claim(await first.store.get_vol(web), CONTAINED, tmp_path / "first", force=False)

    async def write() -> None:
        async with open_volume(backend, web, claim=mine) as log:
            await log.write(b"a" * 4096, 0)
            await log.flush()
            for attempt in (second.snapshot(web, readonly=True, locator=VolumeLocator(name="a")), second.delete(web)):
                with pytest.raises(VolumeAttachedOnRemoteNode, match='"web" is in use by process') as caught:
                    await attempt
                assert caught.value.hint
                assert "fusevol mount --force web PATH" in caught.value.hint
            await second.break_lease(web)
            await log.write(b"b" * 4096, 0)
            with pytest.raises(Fenced):
                await log.flush()

    # On leaving once more.
    with pytest.raises(Fenced):
        await write()
    assert await second.read(web, 4096, 0) == b"a" * 4096
    assert await holder_of(backend, web) == ""


async def test_within_one_state_directory_the_records_decide(first: LocalDriver, web: str, tmp_path: Path) -> None:
    """Whoever stands in the manifest there lost the volume by its record or lock already."""
    backend = first.context.backend("shared")
    mine = claim(await first.store.get_vol(web), CONTAINED, tmp_path / "first", force=False)
    async with open_volume(backend, web, claim=mine) as log:
        log.abandon()
    assert await holder_of(backend, web) != ""
    await first.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))
    assert await holder_of(backend, web) == ""


async def test_a_holder_of_a_later_version_is_not_guessed_at(second: LocalDriver, web: str, tmp_path: Path) -> None:
    record = await second.store.get_vol(web)
    own = claim(record, Process.current(), tmp_path / "second", force=False)
    with pytest.raises(VolumeAttachedOnRemoteNode, match="another process, which cannot be seen"):
        own.admit('{"version":9}')
    claim(record, Process.current(), tmp_path / "second", force=True).admit('{"version":9}')
