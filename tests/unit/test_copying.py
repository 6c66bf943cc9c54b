"""Copies of volumes in another pool are what was copied, snapshots and all, whatever came in between."""

import itertools
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from fusevol.api import LocatorUpdate, VolumeLocator, VolumeSpec, VolumeState
from fusevol.backends.wrappers.faults import FaultyBackend, fail
from fusevol.driver import LocalDriver
from fusevol.driver.copying import Copied
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    CorruptData,
    FusevolError,
    InvalidArgument,
    NoSpace,
    NotSupported,
    VolumeBusy,
)
from fusevol.home import Home
from fusevol.log import LogVolume, copying
from tests.unit.driving import BLOCK, create, get, read, snapshot, write
from tests.unit.volumes import Content, block_bytes, content_of

#: Blocks of three leaves, one of them far away.
PLACES = [*range(12), *range(1020, 1032), *range(5_000_000, 5_000_006)]


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[LocalDriver]:
    """A driver with a second pool, "far"."""
    home = Home(tmp_path / "home")
    home.path.mkdir()
    home.config_path.write_text(f'lock_timeout = 0.2\n[pools.far]\nbackend = "file"\npath = "{tmp_path}/far"\n')
    async with LocalDriver(home) as opened:
        yield opened


@pytest.fixture(autouse=True)
def many_copies_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots for copies are called by the second."""
    numbers = itertools.count()
    monkeypatch.setattr("fusevol.driver.copying._stamp", lambda: f"{next(numbers)}")


async def copy(driver: LocalDriver, source: str, name: str = "copy", *, only: bool = False) -> Copied:
    return await driver.copying.copy(await driver.resolve(source), name, pool="far", only=only)


async def snapshots(driver: LocalDriver, name: str) -> list[str]:
    return [found.locator.name for found in await driver.snapshots.of(await driver.resolve(name))]


async def contents(driver: LocalDriver, name: str) -> tuple[Content, dict[str, Content]]:
    """What the live tree of a volume holds, and each of its snapshots, in PLACES."""

    async def work(log: LogVolume) -> tuple[Content, dict[str, Content]]:
        held = {}
        for found in log.snapshots():
            async with log.view(found.name) as view:
                held[found.name] = await everywhere(view)
        return await everywhere(log), held

    return await driver.context.look(await driver.resolve(name), work)


async def everywhere(source: object) -> Content:
    found: Content = {}
    for first, end in ((0, 1040), (5_000_000, 5_000_010)):
        found |= await content_of(source, range(first, end))  # type: ignore[arg-type]
    return found


# -- what a copy is -------------------------------------------------------------------------------


async def test_a_copy_has_the_data_the_snapshots_and_the_settings(driver: LocalDriver) -> None:
    spec = VolumeSpec(size=1 << 30, snapshot_interval=60, sticky=True)
    web = await driver.create(VolumeLocator(name="web", volume_labels={"app": "shop"}), None, spec)
    await write(driver, web, b"one")
    first = await get(driver, await snapshot(driver, web, "first", why="test"))
    await write(driver, web, b"two")
    done = await copy(driver, "web")
    assert done.copied[0] == "first"
    assert (done.source.volume, done.written) == ("web", 2 * BLOCK)
    made = await driver.resolve("copy")
    assert (made.spec.size, made.spec.snapshot_interval, made.spec.sticky) == (1 << 30, 60, False)
    assert made.locator.volume_labels == {"app": "shop", "fusevol.pool": "far"}
    assert made.state is VolumeState.AVAILABLE
    copied = await driver.resolve("copy@first")
    assert (copied.ctime, copied.locator.volume_labels["why"]) == (first.ctime, "test")
    assert await read(driver, made.id) == b"two"
    assert await driver.read(copied.id, 3, 0) == b"one"
    assert (await driver.upkeep.scrub(made)).problems == ()


async def test_the_next_time_only_what_was_written_since_is_copied(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for block in range(50):
        await write(driver, web, b"%d" % block, block)
    await copy(driver, "web")
    await write(driver, web, b"new", 7)
    done = await copy(driver, "web")
    assert done.written == BLOCK
    assert await read(driver, done.volume.id, 7) == b"new"
    assert await read(driver, done.volume.id, 8) == b"8"


async def test_the_snapshots_taken_for_copies_do_not_pile_up(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await snapshot(driver, web, "mine")
    for text in (b"one", b"two", b"three"):
        await write(driver, web, text)
        await copy(driver, "web")
    for name in ("web", "copy"):
        assert [found.split("-")[0] for found in await snapshots(driver, name)] == ["mine", "copy"]


async def test_the_snapshot_taken_for_a_copy_goes_with_the_copy(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for name in ("one", "two"):
        await copy(driver, "web", name)
    assert len(await snapshots(driver, "web")) == 2
    one = await driver.resolve("one")
    await driver.delete(one.id, with_snapshots=True)
    assert [found.split("-")[1] for found in await snapshots(driver, "web")] == [(await driver.resolve("two")).id[:8]]
    # Where that could not be done, gc does it.
    two = await driver.resolve("two")
    async with driver.context.lock(await get(driver, web)):
        await driver.delete(two.id, with_snapshots=True)
    assert len(await snapshots(driver, "web")) == 1
    await driver.upkeep.gc(await driver.resolve("web"))
    assert await snapshots(driver, "web") == []


async def test_what_is_discarded_is_so_in_the_copy(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one", 3)
    await snapshot(driver, web, "first")
    await copy(driver, "web@first")
    async with driver.context.hold(web) as held, driver.context.writing(held) as log:
        await log.discard(BLOCK, 3 * BLOCK)
    await snapshot(driver, web, "second")
    await copy(driver, "web@second")
    live, held_by = await contents(driver, "copy")
    assert live == {}
    assert list(held_by["first"]) == [3]
    assert (await driver.upkeep.usage(await driver.resolve("copy"))).live == 0


async def test_a_copy_can_be_copied_back_and_goes_on_from_there(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await snapshot(driver, web, "first")
    await write(driver, web, b"two", 1)
    await snapshot(driver, web, "second")
    await copy(driver, "web@second")
    await copy(driver, "copy@second", "back")
    assert await snapshots(driver, "back") == ["first", "second"]
    back = (await driver.resolve("back")).id
    await write(driver, back, b"three", 2)
    await snapshot(driver, back, "third")
    # The original knows the snapshots of its copy's copy for its own.
    done = await driver.copying.copy(await driver.resolve("back@third"), "copy")
    assert (done.copied, done.written) == (("third",), BLOCK)
    assert await read(driver, done.volume.id, 2) == b"three"


async def test_only_a_snapshot_comes_without_those_before_it(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for name in ("first", "second"):
        await write(driver, web, name.encode())
        await snapshot(driver, web, name)
    await copy(driver, "web@second", only=True)
    assert await snapshots(driver, "copy") == ["second"]


async def test_a_snapshot_that_is_there_is_not_copied_again(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await snapshot(driver, web, "first")
    await copy(driver, "web@first")
    done = await copy(driver, "web@first")
    assert (done.copied, done.written, str(done.source)) == ((), 0, "web@first")


async def test_a_snapshot_before_the_last_common_one_can_be_copied_later(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    for name in ("first", "second"):
        await write(driver, web, name.encode())
        await snapshot(driver, web, name)
    await copy(driver, "web@second", only=True)
    done = await copy(driver, "web@first")
    assert done.copied == ("first",)
    assert await read(driver, done.volume.id) == b"first"


async def test_snapshots_deleted_in_the_source_stay_in_the_copy(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await snapshot(driver, web, "first")
    await snapshot(driver, web, "second")
    await copy(driver, "web@second")
    await driver.delete((await driver.resolve("web@first")).id)
    await snapshot(driver, web, "third")
    await copy(driver, "web@third")
    assert await snapshots(driver, "copy") == ["first", "second", "third"]


async def test_a_copy_of_a_clone_depends_on_nothing(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await create(driver, "clone", web)
    await copy(driver, "clone")
    for name in ("clone", "web"):
        await driver.delete((await driver.resolve(name)).id, with_snapshots=True)
    assert await read(driver, (await driver.resolve("copy")).id) == b"one"
    assert (await driver.upkeep.usage(await driver.resolve("copy"))).inherited == 0


async def test_what_a_restore_brought_back_is_copied(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    first = await snapshot(driver, web, "first")
    await write(driver, web, b"two")
    await copy(driver, "web")
    await driver.restore(web, first)
    await write(driver, web, b"three", 1)
    await copy(driver, "web")
    live, held = await contents(driver, "copy")
    assert {block: data.rstrip(b"\0") for block, data in live.items()} == {0: b"one", 1: b"three"}
    assert any(name.startswith("before-restore") for name in held)


# -- what is refused ------------------------------------------------------------------------------


async def test_a_copy_that_was_written_to_is_refused_until_it_is_restored(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await snapshot(driver, web, "first")
    made = (await copy(driver, "web@first")).volume.id
    await write(driver, made, b"mine")
    await write(driver, web, b"two")
    with pytest.raises(AlreadyExists, match='"copy" has been written to since it was a copy of "web@first"') as caught:
        await copy(driver, "web")
    assert "fusevol restore copy@first" in str(caught.value.hint)
    assert await snapshots(driver, "web") == ["first"]
    assert await read(driver, made) == b"mine"
    await driver.restore(made, (await driver.resolve("copy@first")).id)
    await copy(driver, "web")
    assert await read(driver, made) == b"two"


async def test_what_is_no_copy_is_refused(driver: LocalDriver) -> None:
    web, other = await create(driver, "web"), await create(driver, "other")
    await write(driver, web, b"one")
    await write(driver, other, b"other")
    with pytest.raises(AlreadyExists, match="has been written to"):
        await driver.copying.copy(await get(driver, web), "other")
    await snapshot(driver, other, "mine")
    with pytest.raises(AlreadyExists, match="no snapshot in common"):
        await driver.copying.copy(await get(driver, web), "other")
    with pytest.raises(InvalidArgument, match="of itself"):
        await driver.copying.copy(await get(driver, web), "web")
    with pytest.raises(InvalidArgument, match='in pool "default", not in "far"'):
        await copy(driver, "web", "other")
    assert await snapshots(driver, "web") == []
    assert await read(driver, other) == b"other"


async def test_another_snapshot_of_the_same_name_is_refused(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    first = await snapshot(driver, web, "first")
    await snapshot(driver, web, "second")
    await copy(driver, "web@second")
    await driver.delete(first)
    await write(driver, web, b"one")
    await snapshot(driver, web, "first")
    with pytest.raises(AlreadyExists, match='has a snapshot "first" that is not the one'):
        await copy(driver, "web@first")
    await driver.delete((await driver.resolve("copy@first")).id)
    await copy(driver, "web@first")


async def test_an_ephemeral_volume_is_neither_copied_nor_a_copy(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await driver.create(VolumeLocator(name="scratch"), None, VolumeSpec(ephemeral=True))
    for source, target in (("scratch", "new"), ("web", "scratch")):
        with pytest.raises(NotSupported, match="ephemeral"):
            await driver.copying.copy(await driver.resolve(source), target)
    assert await driver.store.named("new") is None
    assert await snapshots(driver, "web") == []
    assert web


async def test_a_copy_that_cannot_begin_leaves_nothing(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    async with driver.context.lock(await get(driver, web)):
        with pytest.raises(VolumeBusy):
            await copy(driver, "web")
    assert await driver.store.named("copy") is None
    with pytest.raises(InvalidArgument, match="no pool"):
        await driver.copying.copy(await get(driver, web), "copy", pool="nowhere")
    assert await snapshots(driver, "web") == []


async def test_a_snapshot_that_is_being_copied_is_not_deleted(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await snapshot(driver, web, "first")
    await write(driver, web, b"two")
    second = await snapshot(driver, web, "second")
    seen = []

    def tell(done: int, total: int) -> None:
        assert 0 <= done <= total
        seen.append(done)

    async def delete() -> None:
        while not seen:
            await trio.lowlevel.checkpoint()
        with pytest.raises(VolumeBusy, match=r'"web@second" is being copied by .*, and cannot be deleted'):
            await driver.delete(second)
        refused.set()

    refused = trio.Event()
    slow = FaultyBackend(driver.context.backend("far"))
    driver.context._backends["far"] = slow
    async with trio.open_nursery() as nursery:
        nursery.start_soon(delete)
        source = await driver.resolve("web@second")
        real = copying.Copier.run

        async def run(self: copying.Copier, tell_: copying.Progress | None = None) -> None:
            await real(self, tell_)
            await refused.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying.Copier, "run", run)
            await driver.copying.copy(source, "copy", pool="far", tell=tell)
    assert (await get(driver, second)).attach_info == {}
    await driver.delete(second)


# -- interruptions --------------------------------------------------------------------------------


def break_far(driver: LocalDriver, call: str, nth: int, error: type[Exception] = BackendError) -> FaultyBackend:
    """Have the pool "far" fail from the nth call of a kind on, until `clear`."""
    inner = driver.context.backend("far")
    faulty = inner if isinstance(inner, FaultyBackend) else FaultyBackend(inner)
    driver.context._backends["far"] = faulty
    seen = 0

    def from_then() -> Exception:
        return error(f"{call} failed on demand")

    for n in range(nth, nth + 200):
        faulty.add(fail(call, nth=n, error=from_then))
    assert seen == 0
    return faulty


@contextmanager
def breaking(error: FusevolError, after: int = 20) -> Iterator[None]:
    """Have copies fail after so many leaves, at a barrier."""
    real, left = copying.Copier._copy, after

    async def copy_one(self: copying.Copier, leaf: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            await self._target.flush()
            raise error
        await real(self, leaf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying.Copier, "_copy", copy_one)
        yield


async def unfinished(driver: LocalDriver) -> str:
    """A copy, of a volume "web" of 40 leaves, of which the first snapshot is there, and half of the second."""
    web = await create(driver, "web")
    for round_ in ("first", "second"):
        async with driver.context.hold(web) as held, driver.context.writing(held) as log:
            for leaf in range(40):
                await log.write(block_bytes((round_, leaf)), leaf * 1024 * BLOCK)
        await snapshot(driver, web, round_)
    await copy(driver, "web@first")
    with breaking(BackendError("no line")), pytest.raises(BackendError, match="no line") as caught:
        await copy(driver, "web@second")
    assert "the same command goes on with it" in str(caught.value.hint)
    return web


async def test_a_copy_that_was_interrupted_goes_on(driver: LocalDriver) -> None:
    await unfinished(driver)
    done = await copy(driver, "web@second")
    # What was on its way when it failed may not have been there.
    assert 20 * BLOCK <= done.written < 40 * BLOCK
    assert await snapshots(driver, "copy") == ["first", "second"]

    async def same(log: LogVolume) -> None:
        for leaf in range(40):
            assert await log.read(BLOCK, leaf * 1024 * BLOCK) == block_bytes(("second", leaf))
        async with log.view("first") as view:
            assert await view.read(BLOCK, 0) == block_bytes(("first", 0))

    await driver.context.look(await driver.resolve("copy"), same)
    assert (await driver.resolve("copy")).state is VolumeState.AVAILABLE


async def test_an_unfinished_copy_is_used_by_its_snapshots_alone(driver: LocalDriver, tmp_path: Path) -> None:
    await unfinished(driver)
    made = await driver.resolve("copy")
    assert made.state is VolumeState.RESTORE
    assert any("unfinished copy" in problem for problem in (await driver.upkeep.overview()).problems)
    (tmp_path / "mnt").mkdir()
    with pytest.raises(VolumeBusy, match='"copy" is an unfinished copy') as caught:
        await driver.mount(made.id, str(tmp_path / "mnt"))
    assert "fusevol copy SOURCE copy" in str(caught.value.hint)
    for refused in (
        driver.read(made.id, BLOCK, 0),
        driver.write(made.id, b"x", 0),
        create(driver, "clone", made.id),
        snapshot(driver, made.id, "mine"),
        driver.restore(made.id, (await driver.resolve("copy@first")).id),
        driver.contents.shares(made),
        copy(driver, "copy", "another"),
    ):
        with pytest.raises(VolumeBusy, match="unfinished copy"):
            await refused
    assert (await driver.upkeep.scrub(made)).problems == ()
    first = (await driver.resolve("copy@first")).id
    assert await driver.read(first, BLOCK, 0) == block_bytes(("first", 0))
    clone = await create(driver, "clone", first)
    assert await driver.read(clone, BLOCK, 0) == block_bytes(("first", 0))
    await driver.delete(clone)
    await driver.set(made.id, LocatorUpdate(name="kept"), None)
    await driver.delete(made.id, with_snapshots=True)


async def test_an_unfinished_copy_is_known_for_one_in_another_home(driver: LocalDriver, tmp_path: Path) -> None:
    await unfinished(driver)
    home = Home(tmp_path / "other")
    home.path.mkdir()
    home.config_path.write_text(f'[pools.far]\nbackend = "file"\npath = "{tmp_path}/far"\n')
    async with LocalDriver(home) as other:
        [item] = await other.importing.found()
        record = await other.importing.import_volume(item)
        assert record.state is VolumeState.RESTORE
        with pytest.raises(VolumeBusy, match="unfinished copy"):
            await other.write(record.id, b"x", 0)


async def test_one_on_its_way_to_a_snapshot_that_is_gone_starts_from_the_last_one(
    driver: LocalDriver,
) -> None:
    web = await unfinished(driver)
    await driver.delete((await driver.resolve("web@second")).id)
    await driver.restore(web, (await driver.resolve("web@first")).id)
    await write(driver, web, b"third", 5)
    await snapshot(driver, web, "third")
    await copy(driver, "web@third")
    live, held = await contents(driver, "copy")
    assert live == held["third"] == (await contents(driver, "web"))[0]
    assert not any(found.locator.volume_labels.get("fusevol.copy") for found in await driver.snapshots.of(
        await driver.resolve("copy")
    ))  # fmt: skip


async def test_the_first_copy_of_a_live_volume_goes_on_where_it_was(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    async with driver.context.hold(web) as held, driver.context.writing(held) as log:
        for leaf in range(60):
            await log.write(block_bytes(leaf), leaf * 1024 * BLOCK)
    await driver.create(VolumeLocator(name="copy", volume_labels={"fusevol.pool": "far"}), None, VolumeSpec())
    for _ in range(2):
        with breaking(NoSpace("full")), pytest.raises(NoSpace):
            await copy(driver, "web")
    # The one that it began with is kept; that of the second attempt is not.
    assert len(await snapshots(driver, "web")) == 1
    await write(driver, web, b"new", 5)
    done = await copy(driver, "web")
    assert len(done.copied) == 2
    assert 41 * BLOCK <= done.written < 60 * BLOCK
    assert len(await snapshots(driver, "web")) == len(await snapshots(driver, "copy")) == 1
    assert (await contents(driver, "copy"))[0] == (await contents(driver, "web"))[0]


async def test_damage_in_the_source_is_not_copied(driver: LocalDriver, tmp_path: Path) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    await snapshot(driver, web, "first")
    await copy(driver, "web@first")
    await write(driver, web, b"precious", 1)
    await snapshot(driver, web, "second")
    damaged = False
    for segment in (driver.context.home.path / "volumes" / web).rglob("*"):
        if segment.is_file():
            data = segment.read_bytes()
            if (at := data.find(b"precious")) >= 0:
                segment.write_bytes(data[:at] + b"P" + data[at + 1 :])
                damaged = True
    assert damaged
    with pytest.raises(CorruptData, match='volume "web"'):
        await copy(driver, "web@second")
    assert await snapshots(driver, "copy") == ["first"]


# -- lives ----------------------------------------------------------------------------------------


async def live(driver: LocalDriver, choose: random.Random) -> None:
    """A random life of a volume and its copy, in which the copy's pool fails at times."""
    web = await create(driver, "web")
    known: dict[str, Content] = {}
    number = 0

    async def change() -> None:
        async with driver.context.hold(web) as held, driver.context.writing(held) as log:
            for place in choose.sample(PLACES, choose.randrange(1, 9)):
                if choose.random() < 0.3:
                    await log.discard(BLOCK, place * BLOCK)
                else:
                    await log.write(choose.randbytes(BLOCK), place * BLOCK)

    async def compare(done: Copied) -> None:
        live, held = await contents(driver, "copy")
        theirs = (await contents(driver, "web"))[1]
        assert live == held[done.source.snapshot or ""] == theirs[done.source.snapshot or ""]
        for name, content in held.items():
            assert known.setdefault(name, content) == content
            assert theirs.get(name, content) == content
        assert not (await driver.upkeep.scrub(await driver.resolve("copy"))).problems

    for _ in range(30):
        kind = choose.randrange(10)
        own = await driver.snapshots.of(await driver.resolve("web"))
        if kind < 3:
            await change()
        elif kind < 5:
            number += 1
            await snapshot(driver, web, f"s{number}")
        elif kind == 5 and own:
            with suppress(VolumeBusy):
                await driver.delete(choose.choice(own).id)
        elif kind == 6 and own:
            await driver.restore(web, choose.choice(own).id)
        else:
            goals = [None, *own]
            goal = choose.choice(goals)
            source = await driver.resolve("web") if goal is None else goal
            faulty = None
            if await driver.store.named("copy") and choose.random() < 0.5:
                call = choose.choice(("write", "flush", "put_manifest"))
                faulty = break_far(driver, call, choose.randrange(1, 25), choose.choice((BackendError, NoSpace)))
            try:
                done: Copied | None = await driver.copying.copy(source, "copy", pool="far", only=choose.random() < 0.3)
            except (BackendError, AlreadyExists) as error:
                done = None
                assert faulty or isinstance(error, AlreadyExists)  # noqa: PT017
                if "no snapshot in common" in str(error):
                    await driver.delete((await driver.resolve("copy")).id, with_snapshots=True)
                    known = {}
            if faulty:
                faulty.clear()
            if done:
                await compare(done)


@pytest.mark.parametrize("seed", range(25))
async def test_whatever_happens_a_copy_is_what_was_copied(
    driver: LocalDriver, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_BARRIER", 3 * BLOCK)
    await live(driver, random.Random(seed))
