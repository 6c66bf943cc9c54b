"""Volumes that are mounted: driven through their mount, and never believed to be mounted when they are not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
import trio

from fusevol.api import SpecUpdate, Volume, VolumeLocator, VolumeSpec, VolumeState
from fusevol.driver import LocalDriver, snapmounts
from fusevol.driver.attachment import attached, server_of
from fusevol.driver.control import Control
from fusevol.driver.mounts import mount_at
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    InvalidArgument,
    NotSupported,
    SnapshotNotFound,
    VolumeAttachedOnRemoteNode,
    VolumeBusy,
)
from fusevol.home import Home
from fusevol.log import LogVolume
from fusevol.store import Process

T = TypeVar("T")

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[LocalDriver]:
    (tmp_path / "config.toml").write_text("lock_timeout = 0.5\n")
    async with LocalDriver(Home(tmp_path), command="test") as driver:
        yield driver


@pytest.fixture
async def web(driver: LocalDriver) -> str:
    return await driver.create(VolumeLocator(name="web"), None, VolumeSpec(size=1 << 30))


@pytest.fixture
async def mount(driver: LocalDriver, web: str, tmp_path: Path) -> AsyncIterator[Path]:
    """Where the volume `web` is mounted."""
    path = tmp_path / "mnt"
    path.mkdir()
    await driver.mounting.mount(web, str(path))
    yield path
    with trio.CancelScope(shield=True):
        for volume in await driver.inspect([web]):
            if volume.attached_on:
                await driver.mounting.unmount(web)
    assert mount_at(str(path)) is None


def text(path: Path) -> str:
    return path.read_text()


async def in_thread(work: object, *arguments: object) -> object:
    """Touch a mount away from the event loop's thread."""
    assert callable(work)
    return await trio.to_thread.run_sync(work, *arguments)


@needs_fuse
async def test_snapshots_go_through_the_mount_and_hold_what_was_written(
    driver: LocalDriver, web: str, mount: Path
) -> None:
    await in_thread((mount / "file").write_text, "one")
    taken = await driver.snapshot(
        web, readonly=True, locator=VolumeLocator(name="before", volume_labels={"why": "test"})
    )
    await in_thread((mount / "file").write_text, "two")
    found = await driver.resolve("web@before")
    assert (found.id, found.locator.volume_labels["why"]) == (taken, "test")
    with pytest.raises(AlreadyExists, match='volume "web" has a snapshot "before" already'):
        await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="before"))
    kept = await driver.restore_keeping(web, taken)
    assert kept
    assert await in_thread(text, mount / "file") == "one"
    await driver.restore(web, kept.id)
    assert await in_thread(text, mount / "file") == "two"
    await driver.delete(taken)
    assert [item.locator.name for item in await driver.snap_enumerate([web])] != []


@needs_fuse
async def test_a_clone_of_a_mounted_volume_has_all_that_was_written(
    driver: LocalDriver, web: str, mount: Path, tmp_path: Path
) -> None:
    await in_thread((mount / "file").write_text, "one")
    copy = await driver.snapshot(web, readonly=False, locator=VolumeLocator(name="copy"))
    other = tmp_path / "other"
    other.mkdir()
    await driver.mounting.mount(copy, str(other))
    try:
        assert await in_thread(text, other / "file") == "one"
    finally:
        await driver.mounting.unmount(copy)
    await driver.delete(copy)
    # The snapshot that was taken for it is gone as well.
    assert await driver.snap_enumerate([web]) == []


@needs_fuse
async def test_a_mounted_volume_is_measured_and_verified_in_use(driver: LocalDriver, web: str, mount: Path) -> None:
    await in_thread((mount / "file").write_bytes, os.urandom(3 << 20))
    [volume] = await driver.inspect([web])
    assert (await driver.upkeep.usage(volume)).live >= 3 << 20
    report = await driver.upkeep.check(volume)
    assert report.problems == ()
    assert report.verified >= 3 << 20
    await in_thread((mount / "file").unlink)
    done = await driver.upkeep.gc(volume)
    assert done.note == ""
    # Less what the log may have taken meanwhile, to write ahead of itself.
    assert done.freed >= 2 << 20
    assert int(str(await in_thread(text, mount / ".fusevol" / "reclaim"))) < 1 << 16
    # What is stored says so as well.
    assert (await driver.upkeep.usage(volume)).reclaimable < 1 << 16
    await in_thread((mount / ".fusevol" / "quiesce").write_text, "60")
    assert "busy" in (await driver.upkeep.gc(volume)).note
    await in_thread((mount / ".fusevol" / "unquiesce").write_text, "1")
    assert (await driver.upkeep.overview()).mounted == 1


@needs_fuse
async def test_a_mounted_volume_grows_and_is_not_deleted(driver: LocalDriver, web: str, mount: Path) -> None:
    await driver.set(web, None, SpecUpdate(size=2 << 30))
    shown = await in_thread(os.statvfs, mount)
    assert isinstance(shown, os.statvfs_result)
    assert shown.f_blocks * shown.f_frsize == 2 << 30
    with pytest.raises(VolumeBusy, match=f'volume "web" is mounted on {mount}'):
        await driver.delete(web)
    assert await driver.mounting.mounted_at(str(mount)) == web


@needs_fuse
async def test_a_volume_whose_server_was_killed_is_not_mounted_any_more(
    driver: LocalDriver, web: str, mount: Path
) -> None:
    [volume] = await driver.inspect([web])
    server = server_of(volume)
    assert server
    assert volume.state is VolumeState.ATTACHED
    os.kill(server.pid, signal.SIGKILL)
    while server.alive:  # noqa: ASYNC110  it is nobody's child here
        await trio.sleep(0.01)
    # Looking tells the truth; the next command writes it down, and takes the dead mount away.
    [volume] = await driver.inspect([web])
    assert (volume.state, volume.attach_path) == (VolumeState.DETACHED, ())
    assert any("is gone" in problem for problem in (await driver.upkeep.overview()).problems)
    await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="after"))
    assert mount_at(str(mount)) is None
    assert (await driver.store.get_vol(web)).state is VolumeState.DETACHED
    assert not any("is gone" in problem for problem in (await driver.upkeep.overview()).problems)


async def test_a_volume_attached_to_a_process_without_a_mount_is_busy(driver: LocalDriver, web: str) -> None:
    """It is being mounted or unmounted, and that process may be writing."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:  # noqa: ASYNC220
        await driver.context.change(web, lambda volume: attached(volume, "/nowhere", _process(server.pid)))
        for attempt in (
            driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a")),
            driver.delete(web),
        ):
            with pytest.raises(VolumeBusy, match="web"):
                await attempt
        server.kill()
        server.wait()
    await driver.delete(web)


def _process(pid: int) -> Process:
    start = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return msgspec.structs.replace(Process.current(), pid=pid, start=start)


async def test_a_volume_that_another_host_has_is_not_touched(driver: LocalDriver, web: str) -> None:
    server = msgspec.structs.replace(Process.current(), boot="another", node="other", machine="another")
    await driver.context.change(web, lambda volume: attached(volume, "/mnt", server))
    with pytest.raises(VolumeAttachedOnRemoteNode, match=r'volume "web" is attached by process .* on other'):
        await driver.delete(web)
    [volume] = await driver.inspect([web])
    assert volume.state is VolumeState.ATTACHED


# -- the control directory's client ---------------------------------------------------------------------


async def test_errors_of_control_files_are_ours_and_name_the_volume(tmp_path: Path) -> None:
    (tmp_path / ".fusevol").mkdir()
    control = Control(str(tmp_path), "web")
    with pytest.raises(NotSupported, match='volume "web" has no control file snapshot'):
        await control.snapshot("a", {})
    (tmp_path / ".fusevol" / "snapshot").symlink_to("/dev/full")
    with pytest.raises(BackendError, match='volume "web": snapshot a could not be taken: no space left on device'):
        await control.snapshot("a", {})
    (tmp_path / ".fusevol" / "used_size").write_text("many")
    with pytest.raises(BackendError, match="makes no sense"):
        await control.used_size()


@needs_fuse
async def test_a_command_for_a_volume_never_reaches_another_one_that_is_mounted_there_by_now(
    driver: LocalDriver, web: str, mount: Path
) -> None:
    """It may be unmounted, and another one mounted, after its record was read."""
    control = Control(str(mount), "db", volume_id="another")
    for attempt in (control.snapshot("a", {}), control.used_size()):
        with pytest.raises(VolumeBusy, match=f'volume "db" is not mounted on {mount} any more'):
            await attempt
    assert await driver.snapshots.of(await driver.resolve("web")) == []
    await Control(str(mount), "web", volume_id=web).snapshot("a", {})


@needs_fuse
async def test_a_directory_that_was_a_mount_a_moment_ago_is_not_taken_for_one(
    driver: LocalDriver, web: str, tmp_path: Path
) -> None:
    for options in ({}, {"control": "off"}):
        mount = tmp_path / f"mnt{len(options)}"
        mount.mkdir()
        await driver.mounting.mount(web, str(mount), options)
        control = Control(str(mount), "web", volume_id=web)
        os.close(await trio.to_thread.run_sync(control.open_root))
        await driver.mounting.unmount(web)
        with pytest.raises(VolumeBusy, match=r"is not mounted on .* any more"):
            await control.snapshot("s", {})


@needs_fuse
async def test_unmounting_waits_for_the_process_that_serves_the_mount_however_late_it_came(
    driver: LocalDriver, web: str, mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody mounts the volume again after the record was read, and before it is held."""
    get_vol = driver.store.get_vol
    await driver.mounting.unmount(web)
    before = [await get_vol(web)]
    await driver.mounting.mount(web, str(mount))
    server = server_of(await get_vol(web))
    assert server is not None

    async def read(volume_id: str) -> Volume:
        return before.pop() if before else await get_vol(volume_id)

    monkeypatch.setattr(driver.store, "get_vol", read)
    await driver.mounting.unmount(web)
    assert not before
    assert not server.alive


@needs_fuse
async def test_what_a_mount_refuses_comes_as_the_error_it_is(driver: LocalDriver, web: str, mount: Path) -> None:
    control = Control(str(mount), "web")
    with pytest.raises(SnapshotNotFound):
        await control.restore("nope")
    with pytest.raises(InvalidArgument):
        await control.snapshot("..", {})
    await control.snapshot("a", {})
    with pytest.raises(AlreadyExists):
        await control.snapshot("a", {})
    assert await control.used_size() > 0
    assert web


async def test_a_mount_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    (tmp_path / ".fusevol").mkdir()
    # Opening a FIFO that nobody reads waits, as a mount whose process is stopped does.
    fifo = tmp_path / ".fusevol" / "flush"
    os.mkfifo(fifo)
    began = time.monotonic()
    with pytest.raises(VolumeBusy, match=r'mount of volume "web" on .* has not answered'):
        await Control(str(tmp_path), "web", patience=0.1).flush()
    assert time.monotonic() - began < 30
    # Let the thread go.
    os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))


@needs_fuse
async def test_of_commands_that_mount_one_volume_at_once_one_succeeds(
    driver: LocalDriver, web: str, tmp_path: Path
) -> None:
    results: list[object] = []
    paths = [tmp_path / f"mnt-{number}" for number in range(3)]

    async def attempt(path: Path) -> None:
        async with LocalDriver(driver.context.home) as other:
            try:
                results.append((await other.mounting.mount(web, str(path))).attach_path)
            except VolumeBusy as error:
                results.append(error)

    async with trio.open_nursery() as nursery:
        for path in paths:
            path.mkdir()
            nursery.start_soon(attempt, path)
    try:
        mounted = [str(path) for path in paths if mount_at(str(path))]
        assert [result for result in results if isinstance(result, tuple)] == [tuple(mounted)]
        assert sum(isinstance(result, VolumeBusy) for result in results) == 2
    finally:
        await driver.mounting.unmount(web)


async def test_a_snapshot_that_is_taken_and_mounted_while_another_command_reads_the_log_stays_on_record(
    driver: LocalDriver, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="old"))
    look, taken = driver.context.look, []
    async with LocalDriver(Home(tmp_path), command="test") as other:

        async def slow_look(volume: Volume, work: Callable[[LogVolume], Awaitable[T]]) -> T:
            result = await look(volume, work)
            taken.append(await other.snapshot(web, readonly=True, locator=VolumeLocator(name="new")))
            mounted = partial(snapmounts.mounted, path="/mnt/new", server=Process.current(command="serving"))
            await other.context.change(taken[0], mounted)
            return result

        with monkeypatch.context() as patch:
            patch.setattr(driver.context, "look", slow_look)
            await driver.resolve("web@old")
        with pytest.raises(VolumeBusy, match="mounted on /mnt/new"):
            await other.delete(taken[0])
