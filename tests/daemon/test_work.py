"""Operations that are bounded in time, and one at a time for each volume; on a clock that waits for nobody."""

import pytest
import trio
from trio.testing import MockClock

from fusevol.daemon.work import Call, Work
from fusevol.errors import InvalidArgument, VolumeBusy


async def test_operations_on_one_volume_take_turns_and_others_do_not_wait(autojump_clock: MockClock) -> None:
    order: list[str] = []

    async def take(name: str, seconds: float) -> None:
        async def operation(_: Call[None]) -> None:
            order.append(f"{name} begins")
            await trio.sleep(seconds)
            order.append(f"{name} ends")

        await work.on(name[0], "working", operation)

    async with trio.open_nursery() as nursery:
        work = Work(nursery, patience=10)
        nursery.start_soon(take, "a1", 3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(take, "a2", 3)
        nursery.start_soon(take, "b1", 1)
        await trio.sleep(2)
        assert work.busy("a")
        assert not work.busy("b")
    assert order == ["a1 begins", "b1 begins", "b1 ends", "a1 ends", "a2 begins", "a2 ends"]
    assert not work.busy("a")


async def test_a_caller_gives_up_and_the_operation_goes_on(autojump_clock: MockClock) -> None:
    ended: list[bool] = []

    async def operation(call: Call[None]) -> None:
        await trio.sleep(60)
        ended.append(call.given_up)

    async with trio.open_nursery() as nursery:
        work = Work(nursery, patience=5)
        with pytest.raises(VolumeBusy, match='"web" does not answer: mounting it has taken more than 5 seconds'):
            await work.on("web", "mounting it", operation)
        assert trio.current_time() < 60
        assert ended == []
    assert ended == [True]


async def test_what_is_about_all_volumes_waits_for_none_of_them_and_blames_none(autojump_clock: MockClock) -> None:
    async def long(_: Call[None]) -> None:
        await trio.sleep(60)

    async with trio.open_nursery() as nursery:
        work = Work(nursery, patience=5)
        with pytest.raises(VolumeBusy, match="some volume does not answer: looking has taken more than 5 seconds"):
            await work.on("", "looking", long)
        assert not work.busy("looking")


@pytest.mark.parametrize("must_run", [False, True])
async def test_what_nobody_waits_for_any_more_is_not_begun_unless_it_must(
    autojump_clock: MockClock, must_run: bool
) -> None:
    begun: list[str] = []

    async def long(_: Call[None]) -> None:
        await trio.sleep(60)

    async def late(_: Call[None]) -> None:
        begun.append("late")

    async def give_up(operation: object, **named: bool) -> None:
        with pytest.raises(VolumeBusy):
            await work.on("web", "working", operation, **named)  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        work = Work(nursery, patience=5)
        nursery.start_soon(give_up, long)
        await trio.testing.wait_all_tasks_blocked()
        await give_up(late, must_run=must_run)
    assert begun == (["late"] if must_run else [])


async def test_an_error_reaches_the_caller_and_the_next_one_has_its_turn(autojump_clock: MockClock) -> None:
    async def wrong(_: Call[str]) -> str:
        raise InvalidArgument("wrong")

    async def right(_: Call[str]) -> str:
        return "right"

    async with trio.open_nursery() as nursery:
        work = Work(nursery, patience=5)
        with pytest.raises(InvalidArgument, match="wrong"):
            await work.on("web", "working", wrong)
        assert await work.on("web", "working", right) == "right"
