"""Copies of volumes in another pool are what was copied, snapshots and all, whatever came in between."""

import random
import time
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from fusevol.api import Source, VolumeLocator, VolumeSpec, VolumeState
from fusevol.backends.wrappers.faults import FaultyBackend, fail
from fusevol.driver import LocalDriver
from fusevol.driver.copying import Copied
from fusevol.driver.labels import own_labels, pool_of
from fusevol.errors import (
    AlreadyExists,
    BackendError,
    InvalidArgument,
    NoSpace,
    NotSupported,
    VolumeBusy,
)
from fusevol.forms.objects import volume_object
from fusevol.home import Home
from fusevol.log import copying
from fusevol.mount.schedule import utc_text
from tests.unit.copies import PLACES, contents, copy, home_with_far, snapshots
from tests.unit.driving import BLOCK, create, get, read, snapshot, write
from tests.unit.volumes import Content


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_far(tmp_path)


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
    assert (made.spec.size, made.spec.snapshot_interval, made.spec.sticky) == (1 << 30, 0, False)
    assert own_labels(made) == {"app": "shop"}
    assert pool_of(made) == "far"
    assert made.state is VolumeState.AVAILABLE
    copied = await driver.resolve("copy@first")
    assert (copied.ctime, copied.locator.volume_labels["why"]) == (first.ctime, "test")
    assert await read(driver, made.id) == b"two"
    assert await driver.read(copied.id, 3, 0) == b"one"
    assert (await driver.upkeep.scrub(made)).problems == ()


async def test_a_copy_says_as_of_when_it_is_one_and_what_is_none_says_nothing(driver: LocalDriver) -> None:
    web = await create(driver, "web")
    await write(driver, web, b"one")
    first = await get(driver, await snapshot(driver, web, "first"))
    await copy(driver, "web@first")
    assert await copied_as_of(driver, "copy") == utc_text(first.ctime.timestamp())
    begun = utc_text(time.time())
    await copy(driver, "web")
    last = await copied_as_of(driver, "copy")
    assert last is not None
    assert last >= begun
    # Nothing was written: what it holds is older, and it is a copy as of now.
    assert (await copy(driver, "web")).written == 0
    again = await copied_as_of(driver, "copy")
    assert again is not None
    assert again >= last
    await driver.create(
        VolumeLocator(name="twin"), Source(parent=(await driver.resolve("copy@first")).id), VolumeSpec()
    )
    assert [await copied_as_of(driver, name) for name in ("web", "twin")] == [None, None]


async def copied_as_of(driver: LocalDriver, name: str) -> str | None:
    return (await volume_object(driver, await driver.resolve(name))).copied


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
    await create(driver, "web")
    for name in ("one", "two"):
        await copy(driver, "web", name)
    assert len(await snapshots(driver, "web")) == 2
    one = await driver.resolve("one")
    await driver.delete(one.id, with_snapshots=True)
    [left] = await snapshots(driver, "web")
    assert left == (await snapshots(driver, "two"))[-1]


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
    await create(driver, "web")
    await driver.create(VolumeLocator(name="scratch"), None, VolumeSpec(ephemeral=True))
    for source, target in (("scratch", "new"), ("web", "scratch")):
        with pytest.raises(NotSupported, match="ephemeral"):
            await driver.copying.copy(await driver.resolve(source), target)
    assert await driver.store.named("new") is None
    assert await snapshots(driver, "web") == []


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


# -- lives ----------------------------------------------------------------------------------------


def break_far(driver: LocalDriver, call: str, nth: int, error: type[Exception] = BackendError) -> FaultyBackend:
    """Have the pool "far" fail from the nth call of a kind on, until `clear`."""
    inner = driver.context.backend("far")
    faulty = inner if isinstance(inner, FaultyBackend) else FaultyBackend(inner)
    driver.context._backends["far"] = faulty

    def from_then() -> Exception:
        return error(f"{call} failed on demand")

    for n in range(nth, nth + 200):
        faulty.add(fail(call, nth=n, error=from_then))
    return faulty


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
