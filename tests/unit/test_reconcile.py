"""Reconciliation: after crashes and reboots the records become what is so, and nothing else is touched."""

import os
import signal
from pathlib import Path

import msgspec
import pytest
import trio

from fusevol.api import Source, VolumeLocator, VolumeSpec, VolumeState
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import attached, server_of
from fusevol.driver.mounts import mount_at
from fusevol.driver.reconciliation import Reconciled
from fusevol.driver.snapmounts import servers
from fusevol.driver.upkeep import REMOVED
from fusevol.errors import BackendError
from fusevol.store import Process
from fusevol.testing.driver import Places
from tests.cli.command import Fusevol

needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="needs /dev/fuse")

NOTHING = Reconciled()


async def create(driver: LocalDriver, name: str) -> str:
    return await driver.create(VolumeLocator(name=name), None, VolumeSpec())


async def kill(server: Process | None) -> None:
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    with trio.fail_after(30):
        while server.alive:  # noqa: ASYNC110  it is nobody's child here
            await trio.sleep(0.01)


async def states(driver: LocalDriver) -> dict[str, VolumeState]:
    """What the records say, whether it is so or not."""
    return {volume.locator.name: volume.state for volume, _ in await driver.store.volumes()}


async def test_where_all_is_in_order_nothing_is_done(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))
    before = await driver.store.enumerate()
    assert await driver.reconcile() == NOTHING
    assert NOTHING.lines == ()
    assert await driver.store.enumerate() == before


@needs_fuse
async def test_mounts_whose_process_was_killed_are_taken_away_and_the_others_stay(
    driver: LocalDriver, places: Places
) -> None:
    web, db, paths = await create(driver, "web"), await create(driver, "db"), [places() for _ in range(4)]
    await driver.mount(web, paths[0])
    await driver.mount(db, paths[1])
    snapshot = await driver.snapshot(web, readonly=True, locator=VolumeLocator(name="a"))
    for path in paths[2:]:
        await driver.mounting.mount(snapshot, path)
    await kill(server_of(await driver.store.get_vol(web)))
    await kill(servers(await driver.store.get_vol(snapshot))[paths[2]])
    done = await driver.reconcile()
    assert sorted(done.detached) == ["web", "web@a"]
    assert sorted(done.unmounted) == sorted([paths[0], paths[2]])
    assert (done.removed, done.problems) == ((), ())
    assert f"{paths[0]} is unmounted: the process that served it is gone" in done.lines
    assert [mount_at(path) is not None for path in paths] == [False, True, False, True]
    assert await states(driver) == {"web": VolumeState.DETACHED, "db": VolumeState.ATTACHED}
    assert (await driver.store.get_vol(snapshot)).attach_path == (paths[3],)
    assert await driver.reconcile() == NOTHING


async def test_after_a_reboot_nothing_is_attached_any_more(driver: LocalDriver, places: Places) -> None:
    web, path = await create(driver, "web"), places()
    server = msgspec.structs.replace(Process.current(), boot="an earlier one")
    await driver.context.change(web, lambda volume: attached(volume, path, server))
    assert await driver.reconcile() == Reconciled(detached=("web",))
    record = await driver.store.get_vol(web)
    assert (record.state, record.attached_on, record.attach_path) == (VolumeState.DETACHED, "", ())


async def test_what_another_host_has_stays_as_it_is(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    server = msgspec.structs.replace(Process.current(), boot="another", node="other", machine="another")
    before = await driver.context.change(web, lambda volume: attached(volume, "/mnt", server))
    assert await driver.reconcile() == NOTHING
    assert await driver.store.get_vol(web) == before
    await driver.store.delete_vol(web)


@pytest.mark.parametrize("state", [VolumeState.PENDING, VolumeState.DELETED])
async def test_volumes_that_were_being_made_or_deleted_are_removed_with_their_data(
    driver: LocalDriver, state: VolumeState
) -> None:
    web, _ = await create(driver, "web"), await create(driver, "db")
    await driver.context.change(web, lambda volume: msgspec.structs.replace(volume, state=state))
    assert await driver.reconcile() == Reconciled(removed=("web",))
    assert set(await states(driver)) == {"db"}
    assert web not in await driver.context.backend("default").list()


async def test_what_somebody_is_at_work_on_is_left_to_them(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    pending = msgspec.structs.replace(await driver.store.get_vol(web), state=VolumeState.PENDING)
    async with LocalDriver(driver.context.home, command="fusevol create web") as other:
        token = await other.store.lock(web)
        await driver.context.change(web, lambda _: pending)
        assert await driver.reconcile() == NOTHING
        assert await driver.store.get_vol(web) == pending
        await other.store.unlock(token)
    assert (await driver.reconcile()).removed == ("web",)


async def test_a_snapshot_that_was_taken_for_a_clone_that_never_came_to_be_goes(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    kept = await driver.create(VolumeLocator(name="kept"), Source(parent=web), VolumeSpec())
    lost = "0" * 36
    await driver.snapshots.take_for_clone(web, lost)
    assert await driver.reconcile() == Reconciled(removed=(f"web@clone-{lost[:8]}",))
    assert [item.locator.name for item in await driver.snapshots.of(await driver.store.get_vol(web))] == [
        f"clone-{kept[:8]}"
    ]


async def test_one_volume_that_cannot_be_put_in_order_does_not_keep_the_others(
    driver: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("web", "db"):
        record = await driver.store.get_vol(await create(driver, name))
        await driver.context.change(record.id, lambda now: msgspec.structs.replace(now, state=VolumeState.PENDING))
    broken, backend = await driver.store.named("db"), driver.context.backend("default")
    assert broken
    delete = backend.delete

    async def fails(volume_id: str) -> None:
        if volume_id == broken.id:
            raise BackendError("the disk is on fire")
        await delete(volume_id)

    monkeypatch.setattr(backend, "delete", fails)
    assert await driver.reconcile() == Reconciled(removed=("web",), problems=('"db": the disk is on fire',))
    monkeypatch.undo()
    assert (await driver.reconcile()).removed == ("db",)


async def test_what_was_left_of_data_whose_deletion_was_cut_short_is_removed(driver: LocalDriver) -> None:
    await create(driver, "web")
    pool = driver.context.home.path / "volumes"
    left = pool / ".deleted-0123"
    left.mkdir()
    (left / "0.seg").write_bytes(b"x" * 4096)
    assert await driver.reconcile() == NOTHING
    assert [item.name for item in pool.iterdir()] == await driver.context.backend("default").list()


async def test_a_driver_that_a_registry_makes_begins_with_that(tmp_path: Path, driver: LocalDriver) -> None:
    from fusevol.driver import driver_registry

    web = await create(driver, "web")
    server = msgspec.structs.replace(Process.current(), boot="an earlier one")
    await driver.context.change(web, lambda volume: attached(volume, "/nowhere", server))
    registry = driver_registry()
    await registry.register("local", {"home": str(tmp_path / "home")})
    assert (await driver.store.get_vol(web)).state is VolumeState.DETACHED
    await registry.shutdown()


async def test_gc_does_it_for_all_volumes_and_says_so(driver: LocalDriver) -> None:
    home, web = driver.context.home.path, await create(driver, "web")
    await create(driver, "db")
    await driver.context.change(web, lambda volume: msgspec.structs.replace(volume, state=VolumeState.DELETED))
    assert "web" in (await driver.upkeep.overview()).problems[0]
    found = await trio.to_thread.run_sync(lambda: Fusevol(home, real=True).json("gc"))
    assert [(item["name"], item["note"]) for item in found] == [("web", REMOVED), ("db", "")]
    assert (await driver.upkeep.overview()).problems == ()
