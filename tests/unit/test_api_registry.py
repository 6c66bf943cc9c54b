"""The registry of drivers."""

from collections.abc import Mapping

import pytest
import trio

from fusevol.api import (
    BlockNotSupported,
    DriverType,
    InitFunc,
    IONotSupported,
    LocatorUpdate,
    SnapshotNotSupported,
    Source,
    SpecUpdate,
    StatsNotSupported,
    Volume,
    VolumeDriver,
    VolumeDriverRegistry,
    VolumeLocator,
    VolumeSpec,
    new_volume_driver_registry,
)
from fusevol.errors import (
    AlreadyExists,
    AlreadyShutdown,
    DriverInitializing,
    DriverNotFound,
    InvalidArgument,
    NotSupported,
)


class FakeDriver(BlockNotSupported, SnapshotNotSupported, IONotSupported, StatsNotSupported, VolumeDriver):
    """A driver of nothing that notes when it is shut down, and may fail to."""

    def __init__(self, name: str, log: list[str], error: Exception | None = None) -> None:
        self._name = name
        self._log = log
        self._error = error

    @property
    def name(self) -> str:
        return self._name

    @property
    def type(self) -> DriverType:
        return DriverType.NONE

    async def create(self, locator: VolumeLocator, source: Source | None, spec: VolumeSpec) -> str:
        raise NotSupported

    async def delete(self, volume_id: str) -> None:
        raise NotSupported

    async def mount(self, volume_id: str, mount_path: str) -> None:
        raise NotSupported

    async def mounted_at(self, mount_path: str) -> str:
        return ""

    async def unmount(self, volume_id: str, mount_path: str) -> None:
        raise NotSupported

    async def set(self, volume_id: str, locator: LocatorUpdate | None, spec: SpecUpdate | None) -> None:
        raise NotSupported

    async def status(self) -> list[tuple[str, str]]:
        return []

    async def shutdown(self) -> None:
        await trio.lowlevel.checkpoint()
        self._log.append(self._name)
        if self._error is not None:
            raise self._error

    async def inspect(self, volume_ids: object) -> list[Volume]:
        return []

    async def enumerate(self, locator: object = None, labels: object = None) -> list[Volume]:
        return []

    async def snap_enumerate(self, volume_ids: object = None, snap_labels: object = None) -> list[Volume]:
        return []


class Bench:
    """A registry that knows "a", "b" and "c", and the drivers shut down so far."""

    def __init__(self, errors: Mapping[str, Exception] | None = None) -> None:
        self.log: list[str] = []
        self.errors = errors or {}
        self.registry = new_volume_driver_registry({name: self.init_of(name) for name in "abc"})

    def init_of(self, name: str) -> InitFunc:
        def init(params: Mapping[str, str]) -> VolumeDriver:
            return FakeDriver(params.get("name", name), self.log, self.errors.get(name))

        return init


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def registry(bench: Bench) -> VolumeDriverRegistry:
    return bench.registry


async def test_a_registered_driver_is_made_with_the_parameters_and_given_out(
    registry: VolumeDriverRegistry,
) -> None:
    await registry.register("a", {"name": "made"})
    assert registry.get("a").name == "made"
    assert registry.get("a") is registry.get("a")


async def test_a_driver_that_is_known_but_not_registered_is_not_found(registry: VolumeDriverRegistry) -> None:
    with pytest.raises(DriverNotFound, match='"a"'):
        registry.get("a")


async def test_a_name_that_is_not_known_is_neither_found_nor_registered(
    registry: VolumeDriverRegistry,
) -> None:
    with pytest.raises(DriverNotFound):
        registry.get("x")
    with pytest.raises(DriverNotFound):
        await registry.register("x", {})


async def test_registering_twice_is_refused_and_keeps_the_first(registry: VolumeDriverRegistry) -> None:
    await registry.register("a", {})
    first = registry.get("a")
    with pytest.raises(AlreadyExists):
        await registry.register("a", {})
    assert registry.get("a") is first


async def test_an_added_name_can_be_registered(bench: Bench) -> None:
    bench.registry.add("d", bench.init_of("d"))
    await bench.registry.register("d", {})
    assert bench.registry.get("d").name == "d"


async def test_adding_a_known_name_is_refused(bench: Bench) -> None:
    with pytest.raises(AlreadyExists):
        bench.registry.add("a", bench.init_of("a"))


@pytest.mark.parametrize("name", ["", " "])
async def test_a_blank_name_is_refused(bench: Bench, name: str) -> None:
    with pytest.raises(InvalidArgument):
        bench.registry.add(name, bench.init_of(name))


async def test_a_driver_whose_init_is_still_running_is_initializing(
    registry: VolumeDriverRegistry, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(params: Mapping[str, str]) -> VolumeDriver:
        await trio.sleep(1)
        return FakeDriver("slow", [])

    registry.add("slow", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.register, "slow", {})
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(DriverInitializing) as caught:
            registry.get("slow")
        assert caught.value.hint
        with pytest.raises(DriverInitializing):
            await registry.register("slow", {})
        await registry.register("a", {})  # others need not wait
    assert registry.get("slow").name == "slow"


async def test_a_failed_init_leaves_the_name_to_be_registered_again(registry: VolumeDriverRegistry) -> None:
    def init(params: Mapping[str, str]) -> VolumeDriver:
        if "ok" not in params:
            raise InvalidArgument("no ok")
        return FakeDriver("f", [])

    registry.add("f", init)
    with pytest.raises(InvalidArgument, match="no ok"):
        await registry.register("f", {})
    with pytest.raises(DriverNotFound):
        registry.get("f")
    await registry.register("f", {"ok": ""})
    assert registry.get("f")


async def test_a_cancelled_init_leaves_the_name_to_be_registered_again(
    registry: VolumeDriverRegistry, autojump_clock: trio.testing.MockClock
) -> None:
    async def init(params: Mapping[str, str]) -> VolumeDriver:
        if params:
            await trio.sleep_forever()
        return FakeDriver("f", [])

    registry.add("f", init)
    with trio.move_on_after(1) as scope:
        await registry.register("f", {"wait": ""})
    assert scope.cancelled_caught
    await registry.register("f", {})
    assert registry.get("f")


async def test_an_init_function_may_use_the_registry(bench: Bench) -> None:
    async def init(params: Mapping[str, str]) -> VolumeDriver:
        await bench.registry.register("a", {})
        return FakeDriver(f"over-{bench.registry.get('a').name}", bench.log)

    bench.registry.add("over", init)
    await bench.registry.register("over", {})
    assert bench.registry.get("over").name == "over-a"


async def test_shutdown_shuts_down_every_driver_the_last_one_first(bench: Bench) -> None:
    for name in "abc":
        await bench.registry.register(name, {})
    await bench.registry.shutdown()
    assert bench.log == ["c", "b", "a"]


async def test_after_shutdown_everything_is_refused(bench: Bench) -> None:
    await bench.registry.register("a", {})
    await bench.registry.shutdown()
    for name in ("a", "b", "unknown"):
        with pytest.raises(AlreadyShutdown):
            bench.registry.get(name)
        with pytest.raises(AlreadyShutdown):
            await bench.registry.register(name, {})
        with pytest.raises(AlreadyShutdown):
            bench.registry.add(name, bench.init_of(name))
    with pytest.raises(AlreadyShutdown):
        await bench.registry.shutdown()
    assert bench.log == ["a"]


async def test_a_driver_that_fails_to_shut_down_spares_no_other_and_is_reported() -> None:
    bench = Bench({"a": RuntimeError("a is stuck"), "c": OSError("c is gone")})
    for name in "abc":
        await bench.registry.register(name, {})
    with pytest.raises(ExceptionGroup) as caught:
        await bench.registry.shutdown()
    assert [str(error) for error in caught.value.exceptions] == ["c is gone", "a is stuck"]
    assert bench.log == ["c", "b", "a"]
    with pytest.raises(AlreadyShutdown):
        bench.registry.get("b")


async def test_a_cancelled_shutdown_still_shuts_down_every_driver(bench: Bench) -> None:
    for name in "abc":
        await bench.registry.register(name, {})
    with trio.CancelScope() as scope:
        scope.cancel()
        await bench.registry.shutdown()
    assert bench.log == ["c", "b", "a"]


async def test_a_driver_that_becomes_ready_after_shutdown_is_shut_down_too(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(params: Mapping[str, str]) -> VolumeDriver:
        await trio.sleep(1)
        return FakeDriver("slow", bench.log)

    async def register() -> None:
        with pytest.raises(AlreadyShutdown):
            await bench.registry.register("slow", {})

    bench.registry.add("slow", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(register)
        await trio.testing.wait_all_tasks_blocked()
        await bench.registry.shutdown()
        assert bench.log == []
    assert bench.log == ["slow"]


async def test_an_init_function_may_shut_the_registry_down(bench: Bench) -> None:
    async def init(params: Mapping[str, str]) -> VolumeDriver:
        await bench.registry.shutdown()
        return FakeDriver("suicidal", bench.log)

    bench.registry.add("d", init)
    with trio.fail_after(5), pytest.raises(AlreadyShutdown):
        await bench.registry.register("d", {})
    assert bench.log == ["suicidal"]
