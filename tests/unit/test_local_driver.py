"""What the local driver does beyond the contract of drivers: specs, several paths, requests, groups, quiescing."""

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from fusevol.api import ActiveRequests, LocatorUpdate, SpecUpdate, VolumeLocator, VolumeSpec, VolumeState
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import server_of
from fusevol.driver.mounts import mount_at
from fusevol.errors import (
    AlreadyExists,
    InvalidArgument,
    NoSpace,
    NotSupported,
    SnapshotNotFound,
    VolumeBusy,
    VolumeDetached,
    VolumeNotFound,
)
from fusevol.home import Home
from fusevol.mount import syscalls
from fusevol.testing.driver import Places, make, remove_all

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")

KIB = 1024
MIB = 1024 * KIB

#: A backend that flushes nothing for as long as there is a file `held` beside its data.
HELD = """
from pathlib import Path
import trio
from fusevol.backends.file import FileBackend

class Held(FileBackend):
    def __init__(self, path):
        super().__init__(path)
        self.held = Path(path + ".held")

    async def flush(self, volume_id):
        while self.held.exists():
            await trio.sleep(0.01)
        await super().flush(volume_id)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text(
        f'lock_timeout = 0.5\n[pools.held]\nbackend = "held"\npath = "{tmp_path}/data"\n'
    )
    return Home(tmp_path / "home")


async def in_thread(work: Callable[..., object], *arguments: object) -> object:
    """Touch a mount away from the event loop's thread."""
    return await trio.to_thread.run_sync(work, *arguments)


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that must happen."""
    with trio.fail_after(30):
        while not await done():  # noqa: ASYNC110  it happens in another process
            await trio.sleep(0.01)


# -- specs ----------------------------------------------------------------------------------------


@needs_fuse
async def test_the_mount_options_of_the_spec_hold_for_every_mount_that_says_nothing_else(
    driver: LocalDriver, places: Places
) -> None:
    web, path = await make(driver, "web"), places()
    await driver.set(web, None, SpecUpdate(mount_options={"ro": "", "noexec": ""}))
    await driver.mount(web, path)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        await in_thread(Path(path, "file").write_text, "text")
    mounted = mount_at(path)
    assert mounted
    assert {"ro", "noexec"} <= mounted.options
    assert bytes(await driver.read(web, 4 * KIB, 0)) != bytes(4 * KIB)
    await driver.unmount(web, path)
    await driver.mounting.mount(web, path, {"rw": ""})
    await in_thread(Path(path, "file").write_text, "text")
    mounted = mount_at(path)
    assert mounted
    assert "noexec" in mounted.options


async def test_mount_options_that_do_not_exist_are_refused_when_they_are_given(driver: LocalDriver) -> None:
    for options in ({"sparkling": ""}, {"ro": "yes"}, {"control": "no"}):
        with pytest.raises(InvalidArgument, match="mount option"):
            await driver.create(VolumeLocator(name="web"), None, VolumeSpec(mount_options=options))
    web = await make(driver, "web")
    with pytest.raises(InvalidArgument, match="sparkling"):
        await driver.set(web, LocatorUpdate(name="new"), SpecUpdate(mount_options={"sparkling": ""}))
    assert [volume.locator.name for volume in await driver.enumerate()] == ["web"]


# -- paths ----------------------------------------------------------------------------------------


@needs_fuse
async def test_a_path_that_somebody_else_unmounted_is_not_believed_in(driver: LocalDriver, places: Places) -> None:
    web, one, two = await make(driver, "web"), places(), places()
    await driver.mount(web, one)
    await driver.mount(web, two)
    await in_thread(syscalls.umount2, Path(one))
    assert [volume.attach_path for volume in await driver.inspect([web])] == [(two,)]
    await driver.set(web, None, SpecUpdate(size=2 << 30))
    assert (await driver.stats(web, cumulative=True)).interval_ms >= 0
    await driver.mount(web, one)
    assert [volume.attach_path for volume in await driver.inspect([web])] == [(two, one)]


@needs_fuse
async def test_when_its_server_is_killed_a_volume_leaves_both_its_paths(driver: LocalDriver, places: Places) -> None:
    web, one, two = await make(driver, "web"), places(), places()
    await driver.mount(web, one)
    await driver.mount(web, two)
    [volume] = await driver.inspect([web])
    server = server_of(volume)
    assert server
    os.kill(server.pid, signal.SIGKILL)

    async def gone() -> bool:
        return not server.alive

    await until(gone)
    await driver.mount(web, two)
    assert mount_at(one) is None
    assert [volume.attach_path for volume in await driver.inspect([web])] == [(two,)]


@needs_fuse
async def test_a_server_that_is_told_to_end_leaves_both_paths(driver: LocalDriver, places: Places) -> None:
    web, one, two = await make(driver, "web"), places(), places()
    await driver.mount(web, one)
    await driver.mount(web, two)
    await in_thread(Path(two, "file").write_text, "text")
    [volume] = await driver.inspect([web])
    server = server_of(volume)
    assert server
    os.kill(server.pid, signal.SIGTERM)

    async def gone() -> bool:
        return not server.alive

    await until(gone)
    assert (mount_at(one), mount_at(two)) == (None, None)
    await driver.mount(web, one)
    assert await in_thread(Path(one, "file").read_text) == "text"


@needs_fuse
async def test_unmounting_waits_for_the_server_even_if_the_next_mount_of_the_machine_gets_its_number(
    driver: LocalDriver, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    web, path = await make(driver, "web"), places()
    await driver.mount(web, path)
    mounted, umount2, strangers = mount_at(path), syscalls.umount2, list[Path]()
    assert mounted

    def umount_and_mount_another(target: Path, flags: syscalls.UnmountFlag) -> None:
        umount2(target, flags)
        # The kernel gives the lowest number that is free.
        for _ in range(100):
            strangers.append(Path(places()))
            syscalls.mount("tmpfs", strangers[-1], "tmpfs", syscalls.MountFlag(0), "size=4k")
            other = mount_at(str(strangers[-1]))
            if other and other.device == mounted.device:
                return

    monkeypatch.setattr(syscalls, "umount2", umount_and_mount_another)
    try:
        await driver.unmount(web, path)
        [volume] = await driver.inspect([web])
    finally:
        for stranger in strangers:
            umount2(stranger)
    assert (volume.state, volume.attached_on) == (VolumeState.DETACHED, "")


@needs_fuse
async def test_a_volume_that_somebody_mounted_elsewhere_too_is_there_once_it_is_unmounted(
    driver: LocalDriver, places: Places
) -> None:
    web, one, two = await make(driver, "web"), places(), places()
    await driver.mount(web, one)
    await in_thread(Path(one, "file").write_text, "text")
    await in_thread(syscalls.mount, one, Path(two), "none", syscalls.MountFlag.BIND, "")
    await driver.unmount(web, one)
    [volume] = await driver.inspect([web])
    assert (mount_at(one), volume.state, volume.attach_path) == (None, VolumeState.ATTACHED, (two,))
    await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="through-it"))
    await driver.unmount(web, two)
    [volume] = await driver.inspect([web])
    assert (mount_at(two), volume.state) == (None, VolumeState.DETACHED)


@needs_fuse
async def test_a_snapshot_that_somebody_mounted_elsewhere_too_is_there_once_it_is_unmounted(
    driver: LocalDriver, places: Places
) -> None:
    web, one, two = await make(driver, "web"), places(), places()
    await driver.mount(web, one)
    await driver.unmount(web, one)
    snapshot = await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="before"))
    await driver.mount(snapshot, one)
    await in_thread(syscalls.mount, one, Path(two), "none", syscalls.MountFlag.BIND, "")
    await driver.unmount(snapshot, one)
    [record] = await driver.inspect([snapshot])
    assert (mount_at(one), record.attach_path) == (None, (two,))
    assert await in_thread(os.listdir, two) == []
    with pytest.raises(VolumeBusy, match=two):
        await driver.delete(snapshot)
    await driver.unmount(snapshot, two)
    [record] = await driver.inspect([snapshot])
    assert (mount_at(two), record.attach_path, record.attached_on) == (None, (), "")
    await driver.delete(snapshot)


# -- requests -------------------------------------------------------------------------------------


@needs_fuse
async def test_a_request_that_a_slow_backend_holds_up_is_shown_with_its_age(
    home: Home, places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    info = package / "held-1.0.dist-info"
    info.mkdir(parents=True)
    (package / "held_backend.py").write_text(HELD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: held\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fusevol.backends]\nheld = held_backend:Held\n")
    monkeypatch.syspath_prepend(package)
    monkeypatch.delitem(sys.modules, "held_backend", raising=False)
    held, path = tmp_path / "data.held", places()
    seen: list[ActiveRequests] = []

    def write() -> None:
        with open(os.path.join(path, "file"), "wb") as file:
            file.write(b"text")
            file.flush()
            os.fsync(file.fileno())

    async with LocalDriver(home, command="test") as driver:
        labels = {"fusevol.pool": "held"}
        web = await driver.create(VolumeLocator(name="web", volume_labels=labels), None, VolumeSpec())
        await driver.mount(web, path)

        async def shown() -> bool:
            seen.append(await driver.get_active_requests())
            return any("web: fsync of inode" in request.description for request in seen[-1].requests)

        async def idle() -> bool:
            return await driver.get_active_requests() == ActiveRequests()

        try:
            held.touch()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, write)
                with contextlib.ExitStack() as stack:
                    stack.callback(held.unlink)
                    await until(shown)
                    first = seen[-1].requests[0]
                    await until(shown)
                    later = {request.id: request.description for request in seen[-1].requests}
            assert later[first.id] > first.description
            await until(idle)
        finally:
            held.unlink(missing_ok=True)
            with trio.CancelScope(shield=True):
                await remove_all(driver)


# -- bytes ----------------------------------------------------------------------------------------


async def test_no_more_bytes_are_written_than_the_volume_may_hold(driver: LocalDriver) -> None:
    web = await make(driver, "web", size=MIB)
    await driver.write(web, bytes(range(256)) * 4096, 0)
    with pytest.raises(NoSpace, match='volume "web" may hold 1048576 bytes'):
        await driver.write(web, b"x", 1 << 40)
    await driver.write(web, b"in place", 5)
    assert bytes(await driver.read(web, 8, 5)) == b"in place"
    await driver.set(web, None, SpecUpdate(size=2 * MIB))
    assert await driver.write(web, b"x", 1 << 40) == 1


async def test_a_read_is_short_where_the_space_ends(driver: LocalDriver) -> None:
    web = await make(driver, "web")
    assert bytes(await driver.read(web, 10, (1 << 63) - 4)) == bytes(4)
    assert await driver.read(web, 10, 1 << 63) == b""


async def test_what_snapshots_and_clones_share_is_told_from_what_they_alone_hold(driver: LocalDriver) -> None:
    web = await make(driver, "web")
    await driver.write(web, os.urandom(4 * MIB), 0)
    snapshot = await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="before"))
    await driver.write(web, os.urandom(MIB), 0)
    kept = await driver.capacity_usage(snapshot)
    assert MIB <= kept.exclusive < 2 * MIB
    assert kept.shared == 3 * MIB
    assert await driver.used_size(snapshot) == kept.total
    copy = await make(driver, "copy", parent=snapshot)
    used = await driver.capacity_usage(copy)
    assert used.exclusive < MIB
    assert used.shared == 4 * MIB
    whole = await driver.capacity_usage(web)
    assert whole.shared == 0
    assert whole.exclusive == await driver.used_size(web) >= 5 * MIB
    with pytest.raises(VolumeNotFound):
        await driver.capacity_usage("nope")


# -- several volumes, held still ------------------------------------------------------------------


async def test_a_group_is_snapshotted_as_a_whole_or_not_at_all(driver: LocalDriver) -> None:
    ids = []
    for name in ("a", "b", "c"):
        spec = VolumeSpec(group="" if name == "c" else "db")
        ids.append(await driver.create(VolumeLocator(name=name, volume_labels={"tier": name}), None, spec))
    a, b, c = ids
    taken = await driver.snapshot_group(VolumeLocator(name="one", volume_labels={"why": "test"}), group="db")
    assert sorted(taken) == sorted([a, b])
    for volume_id, snapshot_id in taken.items():
        [snapshot] = await driver.inspect([snapshot_id])
        assert (snapshot.source.parent, snapshot.locator.volume_labels["why"]) == (volume_id, "test")
    assert [*await driver.snapshot_group(VolumeLocator(name="two"), group="db", labels={"tier": "a"})] == [a]
    # Whichever of the three comes last, its snapshot is the one that is in the way at some time.
    for volume_id in ids:
        there = await driver.snapshot(volume_id, readonly=True, locator=VolumeLocator(name="three"))
        with pytest.raises(AlreadyExists, match="three"):
            await driver.snapshot_group(VolumeLocator(name="three"), volume_ids=ids)
        found = [item.id for item in await driver.snap_enumerate() if item.locator.name == "three"]
        assert found == [there]
        await driver.delete(there)
    assert sorted(await driver.snapshot_group(VolumeLocator(name="three"), volume_ids=[c, a, b])) == sorted(ids)


async def test_a_group_of_nothing_is_refused(driver: LocalDriver) -> None:
    web, locator = await make(driver, "web"), VolumeLocator(name="s")
    with pytest.raises(InvalidArgument):
        await driver.snapshot_group(locator)
    with pytest.raises(VolumeNotFound):
        await driver.snapshot_group(locator, group="nope")
    with pytest.raises(VolumeNotFound, match="nope"):
        await driver.snapshot_group(locator, volume_ids=[web, "nope"])
    with pytest.raises(InvalidArgument):
        await driver.snapshot_group(VolumeLocator(name=""), volume_ids=[web])
    assert await driver.snap_enumerate() == []


@needs_fuse
async def test_only_a_mounted_volume_is_quiesced_and_it_goes_on_in_time(driver: LocalDriver, places: Places) -> None:
    web, path = await make(driver, "web"), places()
    for call in (driver.quiesce(web, 1), driver.unquiesce(web)):
        with pytest.raises(VolumeDetached, match="web"):
            await call
    with pytest.raises(InvalidArgument):
        await driver.quiesce(web, 0)
    await driver.mount(web, path)
    if not await in_thread(Path(path, ".fusevol", "quiesce").exists):
        with pytest.raises(NotSupported, match="has no control file quiesce"):
            await driver.quiesce(web, 0.2)
        return
    await driver.quiesce(web, 0.2)
    await in_thread(Path(path, "file").write_text, "text")
    await driver.quiesce(web, 600)
    await driver.unquiesce(web)
    await in_thread(Path(path, "file").write_text, "more")


async def test_a_snapshot_that_is_gone_from_the_log_is_not_found(driver: LocalDriver) -> None:
    web = await make(driver, "web")
    snapshot = await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="before"))
    async with driver.context.hold(web) as volume, driver.context.writing(volume) as log:
        await log.delete_snapshot("before")
    for call in (driver.capacity_usage(snapshot), driver.read(snapshot, 1, 0)):
        with pytest.raises(SnapshotNotFound, match="before"):
            await call


async def test_no_file_of_a_volume_stays_open_when_it_was_looked_into(driver: LocalDriver, tmp_path: Path) -> None:
    # The driver of a daemon lives long; meanwhile others remove what it would hold.
    web = await make(driver, "web")
    await driver.write(web, b"x" * 4096, 0)
    await driver.used_size(web)
    await driver.read(web, 4096, 0)
    opened = await trio.to_thread.run_sync(_opened_below, tmp_path / "home" / "volumes")
    assert opened == []


def _opened_below(directory: Path) -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [path for path in found if path.startswith(str(directory))]
