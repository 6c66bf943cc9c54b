# ruff: noqa: D102 - the names of the tests are the sentences
"""DriverContract: the tests that a volume driver must pass. Needs pytest and pytest-trio in trio mode, and /dev/fuse.

    class TestShelfDriver(DriverContract):
        @pytest.fixture
        async def driver(self, home):
            driver = ShelfDriver(home)
            yield driver
            await driver.shutdown()
            await remove_all(ShelfDriver(home))

        @pytest.fixture
        async def second(self, home):
            ...

`driver` is one without volumes, and `second` another one for the same volumes; or the same, where there can be none.
After a test `remove_all`, called with a driver that is not shut down, unmounts and deletes what it left; so all tests
can use the same `home`. A driver may refuse with NotSupported what the null drivers refuse; then that part of a test is
left out.
"""

import errno
import os
import random
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from fusevol.api import (
    DriverType,
    LocatorUpdate,
    Source,
    SpecUpdate,
    Stats,
    VolumeDriver,
    VolumeLocator,
    VolumeSpec,
    VolumeState,
)
from fusevol.errors import (
    AlreadyExists,
    AlreadyShutdown,
    InvalidArgument,
    NotSupported,
    ReadOnly,
    VolumeBusy,
    VolumeDetached,
    VolumeHasSnapshots,
    VolumeNotFound,
)

__all__ = ["DriverContract", "Places", "make", "remove_all"]

MIB = 1 << 20
NOBODY = str(uuid.UUID(int=1))
#: Makes an empty directory to mount on.
Places = Callable[[], str]
#: Counters of which intervals must add up.
COUNTERS = ("reads", "read_bytes", "read_ms", "writes", "write_bytes", "write_ms", "io_ms", "interval_ms")


async def make(driver: VolumeDriver, name: str, *, parent: str = "", size: int = 1 << 30, **labels: str) -> str:
    """Create a volume and return its id."""
    source = Source(parent=parent) if parent else None
    return await driver.create(VolumeLocator(name=name, volume_labels=labels), source, VolumeSpec(size=size))


async def write_file(path: str, data: bytes) -> None:
    """Write a file on a mount, away from the event loop's thread, and make it durable."""

    def work() -> None:
        with open(os.path.join(path, "file"), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    await trio.to_thread.run_sync(work)


async def read_file(path: str) -> bytes:
    """Read it again."""
    return await trio.to_thread.run_sync(Path(path, "file").read_bytes)


async def take(driver: VolumeDriver, volume_id: str, name: str, **labels: str) -> str:
    """Take a snapshot and return its id."""
    return await driver.snapshot(volume_id, readonly=True, locator=VolumeLocator(name=name, volume_labels=labels))


async def remove_all(driver: VolumeDriver) -> None:
    """Unmount and delete everything, children first."""
    for volume in await driver.enumerate():
        for path in volume.attach_path:
            await driver.unmount(volume.id, path)
        with suppress(VolumeNotFound, NotSupported):
            await driver.set(volume.id, None, SpecUpdate(sticky=False))
    while volumes := await driver.enumerate():
        gone = 0
        for volume in volumes:
            with suppress(VolumeHasSnapshots, VolumeNotFound):
                await driver.delete(volume.id)
                gone += 1
        assert gone, [volume.locator.name for volume in volumes]


class DriverContract:
    """Derive a class of tests from this one, with the fixtures `driver` and `second`."""

    @pytest.fixture
    def places(self, tmp_path: Path) -> Places:
        """Empty directories to mount on."""

        def make_one() -> str:
            path = tmp_path / f"mnt-{len(list(tmp_path.iterdir()))}"
            path.mkdir()
            return str(path)

        return make_one

    # -- the life of a volume ---------------------------------------------------------------------

    async def test_a_volume_through_its_life(self, driver: VolumeDriver, second: VolumeDriver, places: Places) -> None:
        foo = await make(driver, "foo", app="shop")
        assert str(uuid.UUID(foo)) == foo
        [volume] = await second.inspect([foo])
        assert (volume.id, volume.spec.size, volume.state) == (foo, 1 << 30, VolumeState.AVAILABLE)
        assert await second.inspect([NOBODY]) == []
        await second.set(foo, LocatorUpdate(volume_labels={"tier": "gold"}), None)
        [volume] = await driver.inspect(["foo"])
        assert volume.locator.volume_labels.items() >= {"app": "shop", "tier": "gold"}.items()
        assert [found.id for found in await driver.enumerate(VolumeLocator())] == [foo]
        assert [found.id for found in await second.enumerate(VolumeLocator(name="fo+"))] == [foo]
        assert await second.enumerate(VolumeLocator(name="fo")) == []
        assert await second.enumerate(labels={"tier": "gold", "app": "bank"}) == []
        with suppress(NotSupported):
            assert await driver.attach(foo) == await second.attach(foo) != ""
        path, data = places(), random.Random(0).randbytes(10 * MIB)
        await driver.mount(foo, path)
        await write_file(path, data)
        [volume] = await second.inspect([foo])
        assert (volume.state, volume.attach_path) == (VolumeState.ATTACHED, (path,))
        await second.unmount(foo, path)
        assert os.listdir(path) == []
        await driver.mount(foo, path)
        assert await read_file(path) == data
        await driver.unmount(foo, path)
        with suppress(NotSupported):
            await second.detach(foo)
            await driver.detach(foo)
        await second.delete(foo)
        assert await driver.inspect([foo, "foo"]) == []

    async def test_creating_what_is_there_gives_the_same_or_is_refused(
        self, driver: VolumeDriver, second: VolumeDriver
    ) -> None:
        foo = await make(driver, "foo")
        assert await make(second, "foo") == foo
        with pytest.raises(AlreadyExists, match="foo"):
            await make(second, "foo", size=2 << 30)
        with pytest.raises(AlreadyExists, match="foo"):
            await make(second, "foo", parent=foo)

    async def test_of_many_who_create_one_name_all_get_the_same_volume(
        self, driver: VolumeDriver, second: VolumeDriver
    ) -> None:
        found: set[str] = set()

        async def create(by: VolumeDriver) -> None:
            found.add(await make(by, "foo"))

        async with trio.open_nursery() as nursery:
            for by in (driver, second) * 4:
                nursery.start_soon(create, by)
        assert found == {volume.id for volume in await driver.enumerate()}
        assert len(found) == 1

    @pytest.mark.parametrize("name", ["", " ", ".", "a b", "a@b", "x" * 129])
    async def test_a_bad_name_is_refused(self, driver: VolumeDriver, name: str) -> None:
        with pytest.raises(InvalidArgument):
            await make(driver, name)
        assert await driver.enumerate() == []

    async def test_what_does_not_exist_is_not_found(self, driver: VolumeDriver, places: Places) -> None:
        foo, path = await make(driver, "foo"), places()
        calls: list[Callable[[], Any]] = [
            lambda: driver.delete(NOBODY),
            lambda: driver.mount(NOBODY, path),
            lambda: driver.unmount(NOBODY, path),
            lambda: driver.set(NOBODY, None, None),
            lambda: take(driver, NOBODY, "s"),
            lambda: driver.restore(NOBODY, NOBODY),
            lambda: driver.restore(foo, NOBODY),
            lambda: driver.stats(NOBODY, cumulative=True),
            lambda: driver.used_size(NOBODY),
            lambda: make(driver, "bar", parent=NOBODY),
        ]
        for call in calls:
            with pytest.raises(VolumeNotFound):
                await call()
        for call in (lambda: driver.read(NOBODY, 1, 0), lambda: driver.write(NOBODY, b"x", 0)):
            with pytest.raises((VolumeNotFound, NotSupported)):
                await call()

    # -- mounting ---------------------------------------------------------------------------------

    async def test_mounting_where_it_is_mounted_changes_nothing(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, path = await make(driver, "foo"), places()
        assert await driver.mounted_at(path) == ""
        await driver.mount(foo, path + "/")
        await second.mount(foo, path)
        assert await second.mounted_at(path + "/") == foo
        assert [volume.attach_path for volume in await second.inspect([foo])] == [(path,)]
        await second.unmount(foo, path + "/")
        assert await driver.mounted_at(path) == ""
        with pytest.raises(VolumeDetached, match="foo"):
            await driver.unmount(foo, path)

    async def test_a_path_has_one_volume(self, driver: VolumeDriver, second: VolumeDriver, places: Places) -> None:
        foo, bar, path = await make(driver, "foo"), await make(second, "bar"), places()
        await driver.mount(foo, path)
        with pytest.raises(VolumeBusy):
            await second.mount(bar, path)
        with pytest.raises((InvalidArgument, VolumeDetached)):
            await second.unmount(bar, path)
        assert await driver.mounted_at(path) == foo
        with pytest.raises(InvalidArgument):
            await second.mount(bar, path + "-is-not-there")

    async def test_a_volume_on_two_paths_is_one_and_leaves_them_in_any_order(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, one, two = await make(driver, "foo"), places(), places()
        await driver.mount(foo, one)
        await second.mount(foo, two)
        assert [await driver.mounted_at(one), await driver.mounted_at(two)] == [foo, foo]
        assert [volume.attach_path for volume in await driver.inspect([foo])] == [(one, two)]
        await write_file(one, b"one")
        assert await read_file(two) == b"one"
        with pytest.raises(InvalidArgument, match=one):
            await driver.unmount(foo, places())
        await second.unmount(foo, one)
        assert [await driver.mounted_at(one), await driver.mounted_at(two)] == ["", foo]
        # What the kernel holds back is handed over on the path that is left.
        await trio.to_thread.run_sync(Path(two, "file").write_bytes, b"two")
        kept = await take(driver, foo, "kept")
        await write_file(two, b"three")
        await driver.restore(foo, kept)
        assert await read_file(two) == b"two"
        await driver.unmount(foo, two)
        await driver.mount(foo, one)
        assert await read_file(one) == b"two"

    async def test_a_mounted_volume_is_not_deleted_or_detached(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, path = await make(driver, "foo"), places()
        await driver.mount(foo, path)
        with pytest.raises(VolumeBusy, match="foo"):
            await second.delete(foo)
        with pytest.raises((VolumeBusy, NotSupported)):
            await second.detach(foo)
        await write_file(path, b"still there")

    # -- changing ---------------------------------------------------------------------------------

    async def test_an_update_changes_what_it_names_and_no_more(
        self, driver: VolumeDriver, second: VolumeDriver
    ) -> None:
        foo, _ = await make(driver, "foo", a="1", b="2"), await make(driver, "taken")
        [before] = await second.inspect([foo])
        await driver.set(foo, None, None)
        assert await second.inspect([foo]) == [before]
        await driver.set(foo, LocatorUpdate(name="bar", volume_labels={"a": "", "c": "3"}), SpecUpdate(sticky=True))
        [after] = await second.inspect(["bar"])
        labels = before.locator.volume_labels | {"c": "3"}
        del labels["a"]
        assert (after.id, after.locator.volume_labels) == (foo, labels)
        assert (after.spec.sticky, after.spec.size) == (True, before.spec.size)
        with pytest.raises(AlreadyExists, match="taken"):
            await second.set(foo, LocatorUpdate(name="taken"), SpecUpdate(size=2 << 30))
        assert await driver.inspect([foo]) == [after]

    async def test_a_sticky_volume_stays(self, driver: VolumeDriver, second: VolumeDriver) -> None:
        foo = await make(driver, "foo")
        await driver.set(foo, None, SpecUpdate(sticky=True))
        with pytest.raises(VolumeBusy, match="sticky"):
            await second.delete(foo)
        await second.set(foo, None, SpecUpdate(sticky=False))
        await driver.delete(foo)

    async def test_the_size_is_kept_to_and_grows_and_shrinks_while_mounted(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, path = await make(driver, "foo", size=16 * MIB), places()
        await driver.mount(foo, path)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await write_file(path, bytes(range(256)) * (20 * MIB // 256))
        await second.set(foo, None, SpecUpdate(size=64 * MIB))
        await write_file(path, random.Random(1).randbytes(20 * MIB))
        shown = await trio.to_thread.run_sync(os.statvfs, path)
        assert shown.f_blocks * shown.f_frsize == 64 * MIB
        with pytest.raises(InvalidArgument, match="smaller"):
            await second.set(foo, LocatorUpdate(name="bar"), SpecUpdate(size=8 * MIB))
        [volume] = await driver.inspect([foo])
        assert (volume.locator.name, volume.spec.size) == ("foo", 64 * MIB)

    # -- snapshots and clones ---------------------------------------------------------------------

    async def test_snapshots_are_kept_found_and_restored(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, bar, path = await make(driver, "foo"), await make(driver, "bar"), places()
        await driver.mount(foo, path)
        await write_file(path, b"one")
        before = await take(second, foo, "before", why="upgrade")
        await write_file(path, b"two")
        [snapshot] = await driver.inspect([before])
        assert (snapshot.source.parent, snapshot.readonly, snapshot.is_snapshot) == (foo, True, True)
        assert snapshot.locator.volume_labels["why"] == "upgrade"
        with pytest.raises(AlreadyExists, match="before"):
            await take(driver, foo, "before")

        async def found(*args: Any) -> list[str]:
            return [volume.id for volume in await second.snap_enumerate(*args)]

        assert await found() == await found([foo]) == await found(None, {"why": "upgrade"}) == [before]
        assert await found([NOBODY]) == await found([bar]) == await found([foo], {"why": "fun"}) == []
        with pytest.raises(InvalidArgument):
            await second.restore(bar, before)
        await second.restore(foo, before)
        assert await read_file(path) == b"one"
        await driver.unmount(foo, path)
        with pytest.raises(VolumeHasSnapshots, match="foo"):
            await second.delete(foo)
        for snapshot in await second.snap_enumerate([foo]):
            await second.delete(snapshot.id)
        await second.delete(foo)

    async def test_a_snapshot_is_mounted_to_be_read_or_not_at_all(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, path = await make(driver, "foo"), places()
        await driver.mount(foo, path)
        await write_file(path, b"one")
        before = await take(driver, foo, "before")
        await write_file(path, b"two")
        view = places()
        try:
            await second.mount(before, view)
        except NotSupported:
            return
        assert await read_file(view) == b"one"
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            await write_file(view, b"three")
        await driver.unmount(before, view)

    async def test_a_clone_starts_as_its_parent_and_goes_its_own_way(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, path, other = await make(driver, "foo"), places(), places()
        await driver.mount(foo, path)
        await write_file(path, b"one")
        before = await take(driver, foo, "before", app="shop")
        await write_file(path, b"two")
        old = await second.create(
            VolumeLocator(name="old", volume_labels={"env": "test"}), Source(parent=before), VolumeSpec()
        )
        new = await second.snapshot(foo, readonly=False, locator=VolumeLocator(name="new"))
        [clone] = await driver.inspect([old])
        assert (clone.is_clone, clone.source.parent, clone.spec.size) == (True, before, 1 << 30)
        assert clone.locator.volume_labels.items() >= {"app": "shop", "env": "test"}.items()
        for clone_id, data in ((old, b"one"), (new, b"two")):
            await driver.mount(clone_id, other)
            assert await read_file(other) == data
            await write_file(other, b"changed")
            await second.unmount(clone_id, other)
        assert await read_file(path) == b"two"
        with pytest.raises(VolumeHasSnapshots, match="old"):
            await second.delete(before)

    # -- numbers ----------------------------------------------------------------------------------

    async def test_intervals_add_up_to_what_is_counted_since_the_mount(
        self, driver: VolumeDriver, places: Places
    ) -> None:
        foo, path = await make(driver, "foo"), places()
        assert await driver.stats(foo, cumulative=True) == await driver.stats(foo, cumulative=False) == Stats()
        await driver.mount(foo, path)
        intervals = []
        for round_ in range(3):
            await write_file(path, random.Random(round_).randbytes(MIB))
            intervals.append(await driver.stats(foo, cumulative=False))
        total = await driver.stats(foo, cumulative=True)
        intervals.append(await driver.stats(foo, cumulative=False))
        assert all(interval.write_bytes >= MIB for interval in intervals[:3])
        assert total.bytes_used >= MIB <= await driver.used_size(foo)
        for field in COUNTERS:
            sums = [sum(getattr(interval, field) for interval in intervals[:count]) for count in (3, 4)]
            assert sums[0] <= getattr(total, field) <= sums[1], field
        await driver.unmount(foo, path)
        await driver.mount(foo, path)
        assert (await driver.stats(foo, cumulative=False)).write_bytes < MIB

    async def test_nothing_is_active_where_nothing_is_mounted(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, path = await make(driver, "foo"), places()
        await driver.mount(foo, path)
        active = await second.get_active_requests()
        assert active.request_count == len(active.requests)
        await driver.unmount(foo, path)
        assert (await second.get_active_requests()).request_count == 0

    # -- bytes ------------------------------------------------------------------------------------

    async def test_bytes_are_written_and_read_while_it_is_not_mounted(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        foo, path, data = await make(driver, "foo", size=0), places(), random.Random(2).randbytes(MIB + 7)
        # Far from the filesystem that the mount below makes.
        far = 1 << 60
        try:
            assert await driver.write(foo, data, far + 5) == len(data)
        except NotSupported:
            return
        await driver.flush(foo)
        assert bytes(await second.read(foo, len(data) + 10, far)) == bytes(5) + data + bytes(5)
        before = await take(driver, foo, "before")
        await second.write(foo, b"new", far + 5)
        assert bytes(await driver.read(foo, 5, far + 5)) == b"new" + data[3:5]
        assert bytes(await driver.read(before, 5, far + 5)) == data[:5]
        with pytest.raises(ReadOnly):
            await driver.write(before, b"x", far)
        with pytest.raises(InvalidArgument):
            await driver.read(foo, 1, -1)
        await driver.mount(foo, path)
        for call in (
            lambda: second.read(foo, 1, far),
            lambda: second.write(foo, b"x", far),
            lambda: second.flush(foo),
        ):
            with pytest.raises(VolumeBusy, match="foo"):
                await call()
        await driver.unmount(foo, path)
        # The filesystem that the mount made has a beginning.
        assert any(bytes(await second.read(foo, MIB, 0)))

    # -- the driver -------------------------------------------------------------------------------

    async def test_it_says_what_it_is_and_how(self, driver: VolumeDriver) -> None:
        assert driver.name == driver.name.strip() != ""
        assert driver.type in DriverType
        status = await driver.status()
        assert status
        assert all(isinstance(text, str) for pair in status for text in pair)

    async def test_after_shutdown_everything_is_refused_and_mounts_stay(
        self, driver: VolumeDriver, second: VolumeDriver, places: Places
    ) -> None:
        if second is driver:
            pytest.skip("somebody has to look after it")
        foo, path = await make(driver, "foo"), places()
        await driver.mount(foo, path)
        await driver.shutdown()
        await driver.shutdown()
        calls: list[Callable[[], Any]] = [
            lambda: make(driver, "bar"),
            lambda: driver.inspect([foo]),
            lambda: driver.mounted_at(path),
            lambda: driver.delete(foo),
            driver.status,
            driver.get_active_requests,
        ]
        for call in calls:
            with pytest.raises(AlreadyShutdown):
                await call()
        assert await second.mounted_at(path) == foo
        await write_file(path, b"still served")
