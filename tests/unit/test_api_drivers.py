"""The interfaces against the seed, the null drivers, and the constants."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from fusevol import api, errors
from fusevol.api import (
    ActiveRequests,
    BlockNotSupported,
    IONotSupported,
    SnapshotNotSupported,
    StatsNotSupported,
    VolumeDriver,
    VolumeLocator,
)
from fusevol.errors import NotSupported

#: The interfaces of the seed, their methods in Python spelling, and the errors the seed names for each.
SEED: dict[str, dict[str, set[str]]] = {
    "BlockDriver": {
        "attach": {"ErrEnoEnt", "ErrVolAttached"},
        "detach": {"ErrEnoEnt", "ErrVolDetached"},
    },
    "Enumerator": {"inspect": set(), "enumerate": set(), "snap_enumerate": set()},
    "IODriver": {"read": set(), "write": set(), "flush": set()},
    "ProtoDriver": {
        "name": set(),
        "type": set(),
        "create": set(),
        "delete": {"ErrEnoEnt", "ErrVolHasSnaps"},
        "mount": {"ErrEnoEnt", "ErrVolDetached"},
        "mounted_at": set(),
        "unmount": {"ErrEnoEnt", "ErrVolDetached"},
        "set": {"ErrNotSupported"},
        "status": set(),
        "shutdown": set(),
    },
    "SnapshotDriver": {"snapshot": {"ErrEnoEnt"}, "restore": set()},
    "StatsDriver": {"stats": {"ErrEnoEnt"}, "used_size": {"ErrEnoEnt"}, "get_active_requests": set()},
    "Store": {
        "lock": set(),
        "unlock": set(),
        "create_vol": {"ErrExist"},
        "get_vol": set(),
        "update_vol": set(),
        "delete_vol": {"ErrEnoEnt"},
    },
    "StoreEnumerator": {},
    "VolumeDriver": {},
    "VolumeDriverProvider": {"get": {"ErrDriverNotFound"}, "shutdown": set()},
    "VolumeDriverRegistry": {"register": {"ErrExist"}, "add": set()},
}

BASES = {
    "ProtoDriver": {"SnapshotDriver", "StatsDriver"},
    "VolumeDriver": {"IODriver", "ProtoDriver", "BlockDriver", "Enumerator"},
    "StoreEnumerator": {"Store", "Enumerator"},
    "VolumeDriverRegistry": {"VolumeDriverProvider"},
}

METHODS = [(interface, method) for interface, methods in SEED.items() for method in methods]

#: What does no I/O: the driver's own attributes, and look-ups in memory.
SYNCHRONOUS = {"name", "type", "get", "add"}

ERROR_NAMES = {kind.__name__ for kind in errors.ERRNO}


@pytest.mark.parametrize("interface", SEED)
def test_an_interface_of_the_seed_has_its_methods_and_no_others(interface: str) -> None:
    kind = getattr(api, interface)
    own = {name for name in vars(kind) if name in kind.__abstractmethods__}
    assert own == set(SEED[interface])
    assert kind.__doc__
    assert inspect.isabstract(kind)


@pytest.mark.parametrize("interface", BASES)
def test_an_interface_of_the_seed_is_made_of_the_same_parts(interface: str) -> None:
    assert {base.__name__ for base in getattr(api, interface).__bases__} - {"ABC"} == BASES[interface]


@pytest.mark.parametrize(("interface", "method"), METHODS)
def test_a_method_says_which_errors_it_raises_and_names_those_of_the_seed(interface: str, method: str) -> None:
    doc = inspect.getdoc(vars(getattr(api, interface))[method]) or ""
    if method in ("name", "type"):
        assert "Raises nothing" in doc
        return
    raises = re.sub(r"\s+", " ", doc).partition("Raises ")[2]
    named = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", raises)) - {"ExceptionGroup"}
    assert named
    assert named <= ERROR_NAMES
    assert named >= {errors.SEED_ERRORS[name].__name__ for name in SEED[interface][method]}


@pytest.mark.parametrize(("interface", "method"), METHODS)
def test_a_method_that_may_wait_is_async(interface: str, method: str) -> None:
    attribute = vars(getattr(api, interface))[method]
    assert inspect.iscoroutinefunction(attribute) == (method not in SYNCHRONOUS)
    assert isinstance(attribute, property) == (method in ("name", "type"))


def test_the_package_exports_what_its_modules_export() -> None:
    modules = [importlib.import_module(f"fusevol.api.{m.name}") for m in pkgutil.iter_modules(api.__path__)]
    exported = {name for module in modules for name in module.__all__}
    assert exported == set(api.__all__)


class NullDriver(IONotSupported, SnapshotNotSupported, StatsNotSupported, BlockNotSupported, VolumeDriver):
    """All that the null drivers leave to be written, left out."""


def test_the_null_drivers_leave_a_driver_nothing_to_write_but_the_rest() -> None:
    rest = set(SEED["ProtoDriver"]) | set(SEED["Enumerator"])
    assert set(NullDriver.__abstractmethods__) == rest


CALLS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (BlockNotSupported, lambda d: d.attach("v")),
    (BlockNotSupported, lambda d: d.detach("v", unmount_before_detach=True)),
    (SnapshotNotSupported, lambda d: d.snapshot("v", readonly=True, locator=VolumeLocator(name="s"))),
    (SnapshotNotSupported, lambda d: d.restore("v", "s")),
    (IONotSupported, lambda d: d.read("v", 1, 0)),
    (IONotSupported, lambda d: d.write("v", b"x", 0)),
    (IONotSupported, lambda d: d.flush("v")),
    (StatsNotSupported, lambda d: d.stats("v", cumulative=True)),
    (StatsNotSupported, lambda d: d.used_size("v")),
]


@pytest.mark.parametrize(("null", "call"), CALLS)
async def test_a_null_driver_says_what_it_does_not_support(null: Callable[[], Any], call: Callable[[Any], Any]) -> None:
    driver = null()
    with pytest.raises(NotSupported, match=rf"^{type(driver).__name__} does not support \w+$"):
        await call(driver)


async def test_a_null_driver_has_no_active_requests() -> None:
    assert await StatsNotSupported().get_active_requests() == ActiveRequests()


def test_every_method_of_a_null_driver_was_called_above() -> None:
    nulls = (BlockNotSupported, SnapshotNotSupported, IONotSupported, StatsNotSupported)
    methods = [name for null in nulls for name in vars(null) if not name.startswith("_")]
    assert len(methods) == len(CALLS) + 1


def test_the_constants_have_the_values_of_the_seed() -> None:
    assert (api.API_VERSION, api.LOCATION_CONSTRAINT, api.LOCAL_NODE) == (
        "v1",
        "LocationConstraint",
        "LocalNode",
    )
    assert api.PLUGIN_API_BASE == "/run/docker/plugins/"
    assert api.DRIVER_API_BASE == "/var/lib/osd/driver/"
    assert api.MOUNT_BASE == "/var/lib/osd/mounts/"
    assert api.VOLUME_BASE == "/var/lib/osd/"
    assert api.AttachOptionsKey("SECRET_KEY") == api.ATTACH_OPTIONS_SECRET


def test_the_interfaces_can_be_imported_without_an_event_loop() -> None:
    code = "import sys, fusevol.api; sys.exit('trio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
