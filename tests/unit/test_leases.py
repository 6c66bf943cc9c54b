"""Who has a volume attached: seen, believed as long as that may be so, and taken from nobody by accident."""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio

from fusevol.api import Volume, VolumeLocator, VolumeSpec, VolumeState
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import attached, believed, lease_of, server_of
from fusevol.driver.mounts import mount_at
from fusevol.driver.snapmounts import mounted, servers
from fusevol.errors import InvalidArgument, VolumeAttachedOnRemoteNode, VolumeBusy
from fusevol.home import Home
from fusevol.mount import syscalls
from fusevol.store import Life, Process, this_node
from fusevol.testing.driver import Places
from tests.cli.command import Fusevol

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")

ME = Process.current("test")
#: Processes of which nothing can be seen from here.
CONTAINED = msgspec.structs.replace(ME, namespace="pid:[1]", command="serving /mnt")
ELSEWHERE = msgspec.structs.replace(ME, boot="another", node="other", machine="another", command="serving /mnt")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.toml").write_text("lock_timeout = 0.2\n")
    return Home(tmp_path / "home")


@pytest.fixture
async def web(driver: LocalDriver) -> str:
    return await driver.create(VolumeLocator(name="web"), None, VolumeSpec())


def held_by(server: Process, path: str = "/mnt") -> Callable[[Volume], Volume]:
    return lambda volume: attached(volume, path, server)


@pytest.mark.parametrize(
    ("changed", "life"),
    [
        ({}, Life.RUNS),
        ({"start": 1}, Life.GONE),
        ({"boot": "an earlier one"}, Life.GONE),
        # As those were written down that did not name their host yet.
        ({"boot": "an earlier one", "node": "", "machine": ""}, Life.GONE),
        ({"boot": "another", "node": "other"}, Life.UNKNOWN),
        ({"boot": "another", "machine": "0" * 32}, Life.UNKNOWN),
        # The host has got another name since, but it is the same boot.
        ({"node": "before"}, Life.RUNS),
        ({"namespace": "pid:[1]"}, Life.UNKNOWN),
        ({"namespace": "pid:[1]", "boot": "an earlier one"}, Life.GONE),
    ],
)
def test_that_a_process_is_gone_is_believed_only_where_it_is_proved(changed: dict[str, object], life: Life) -> None:
    process = msgspec.structs.replace(ME, **changed)
    if changed.get("machine") and not ME.machine:
        pytest.skip("this host has no machine id")
    assert process.life is life
    assert process.alive is (life is not Life.GONE)


@needs_fuse
async def test_a_mounted_volume_shows_who_has_it_where_and_since_when(
    driver: LocalDriver, web: str, places: Places, tmp_path: Path
) -> None:
    fusevol, path = Fusevol(tmp_path / "home"), places()
    assert lease_of(await driver.resolve("web")) is None
    await driver.mount(web, path)
    lease = lease_of(await driver.resolve("web"))
    assert lease is not None
    assert lease.holder is not None
    assert (lease.node, lease.life, lease.holder.boot) == (this_node(), Life.RUNS, ME.boot)
    found = await trio.to_thread.run_sync(fusevol.json, "inspect", "web")
    assert found["lease"] == {
        "holder": f"process {lease.holder.pid} (serving {path})",
        "pid": lease.holder.pid,
        "node": this_node(),
        "boot": ME.boot,
        "since": lease.since and lease.since.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "life": "runs",
    }
    said = await trio.to_thread.run_sync(fusevol, "inspect", "web")
    assert f"process {lease.holder.pid} (serving {path}) of {this_node()}, since" in said
    await driver.unmount(web, path)
    assert (await trio.to_thread.run_sync(fusevol.json, "inspect", "web"))["lease"] is None


@pytest.mark.parametrize("server", [CONTAINED, ELSEWHERE], ids=["container", "host"])
async def test_what_a_process_that_cannot_be_seen_has_is_not_touched_without_force(
    driver: LocalDriver, web: str, places: Places, server: Process
) -> None:
    before = await driver.context.change(web, held_by(server))
    assert believed(before) == before
    for attempt in (
        driver.mounting.mount(web, places()),
        driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a")),
        driver.unmount(web, "/mnt"),
        driver.delete(web),
        driver.read(web, 1, 0),
    ):
        with pytest.raises(VolumeAttachedOnRemoteNode, match=r'volume "web" is attached by process \d+ ') as caught:
            await attempt
        assert caught.value.hint
        assert "fusevol mount --force web PATH" in caught.value.hint
    assert (await driver.reconcile()).lines == ()
    assert await driver.store.get_vol(web) == before
    await driver.break_lease(web)
    assert (await driver.store.get_vol(web)).state is VolumeState.DETACHED


async def test_a_holder_from_before_a_reboot_needs_no_force(driver: LocalDriver, web: str) -> None:
    await driver.context.change(web, held_by(msgspec.structs.replace(CONTAINED, boot="an earlier one")))
    await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))
    assert (await driver.store.get_vol(web)).state is VolumeState.DETACHED


@needs_fuse
async def test_force_takes_nothing_from_a_process_that_runs(driver: LocalDriver, web: str, places: Places) -> None:
    path = places()
    await driver.mount(web, path)
    before = await driver.store.get_vol(web)
    for attempt in (driver.mounting.mount(web, places(), force=True), driver.break_lease(web)):
        with pytest.raises(VolumeBusy, match=f'volume "web" is mounted on {path}'):
            await attempt
    assert await driver.store.get_vol(web) == before
    async with LocalDriver(driver.context.home, command="fusevol scrub web") as other:
        token = await other.store.lock(web)
        with pytest.raises(VolumeBusy, match=r'volume "web" is in use by process \d+ \(fusevol scrub web\)'):
            await driver.mounting.mount(web, places(), force=True)
        await other.store.unlock(token)


@needs_fuse
async def test_a_writer_whose_lease_was_broken_publishes_nothing_any_more(
    driver: LocalDriver, web: str, tmp_path: Path, places: Places
) -> None:
    first, second, fusevol = Path(places()), Path(places()), Fusevol(tmp_path / "home")
    await driver.mount(web, str(first))
    await trio.to_thread.run_sync(write_and_sync, first / "kept", "acknowledged")
    server = server_of(await driver.store.get_vol(web))
    assert server
    # To others it looks like one in a container, which may run or not.
    await driver.context.change(web, held_by(msgspec.structs.replace(server, namespace="pid:[1]"), str(first)))
    said = await trio.to_thread.run_sync(fusevol.fails, "mount", "web", str(second))
    assert "--force" in said
    await trio.to_thread.run_sync(fusevol, "mount", "--force", "web", str(second))
    try:
        taken = await driver.store.get_vol(web)
        assert taken.attach_path == (str(second),)
        with pytest.raises(OSError, match="Stale file handle"):
            await trio.to_thread.run_sync(write_and_sync, first / "lost", "never acknowledged")
        await trio.to_thread.run_sync(write_and_sync, second / "new", "of the second")
        found = {path.name: path.read_text() for path in await trio.to_thread.run_sync(lambda: [*second.iterdir()])}
        assert found == {"kept": "acknowledged", "new": "of the second"}
    finally:
        await trio.to_thread.run_sync(syscalls.umount2, first, syscalls.UnmountFlag.DETACH)
    with trio.fail_after(30):
        while server.alive:  # noqa: ASYNC110  it is nobody's child here
            await trio.sleep(0.01)
    # Its end is not written down as that of the second.
    assert await driver.store.get_vol(web) == taken
    assert mount_at(str(second)) is not None
    await driver.unmount(web, str(second))
    assert (await driver.upkeep.check(await driver.resolve("web"))).problems == ()


def write_and_sync(path: Path, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, text.encode())
        os.fsync(fd)
    finally:
        os.close(fd)


async def test_a_lock_whose_owner_cannot_be_seen_is_broken_by_force_alone(driver: LocalDriver, web: str) -> None:
    async with LocalDriver(driver.context.home) as other:
        other.store.owner = msgspec.structs.replace(CONTAINED, command="fusevol gc")
        token = await other.store.lock(web)
        with pytest.raises(
            VolumeBusy, match=r'volume "web" is in use by .*\(fusevol gc\), which cannot be seen'
        ) as caught:
            await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))
        assert caught.value.hint
        assert "fusevol mount --force web PATH" in caught.value.hint
        await driver.break_lease(web)
        with pytest.raises(InvalidArgument, match="not held with that token"):
            await other.store.unlock(token)
    await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))


async def test_a_snapshot_that_a_process_elsewhere_has_mounted_stays_until_that_is_broken(
    driver: LocalDriver, web: str
) -> None:
    snapshot = await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))
    await driver.context.change(snapshot, lambda record: mounted(record, "/old", CONTAINED))
    for attempt in (driver.delete(snapshot), driver.unmount(snapshot, "/old")):
        with pytest.raises(VolumeBusy, match=r'snapshot "web@a" is mounted on /old by process .* cannot be seen'):
            await attempt
    with pytest.raises(InvalidArgument, match="needs no force"):
        await driver.mounting.mount(snapshot, "/mnt", force=True)
    assert set(servers(await driver.store.get_vol(snapshot))) == {"/old"}
    await driver.break_lease(web)
    await driver.delete(snapshot)
