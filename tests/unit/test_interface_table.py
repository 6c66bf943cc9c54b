"""The table in docs/driver.md has all of the seed's interface, and places and tests that there are."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from fusevol.errors import SEED_ERRORS
from tests.unit.test_api_drivers import METHODS

_PAGE = Path(__file__).parents[2] / "docs" / "driver.md"
_ROW = re.compile(r"^\| `([A-Z]\w+(?:\.\w+)?)` \| `(fusevol\.[\w.]+)` \| (.*) \|$", re.MULTILINE)
ROWS = {seed: (place, re.findall(r"`([^`]+)`", tests)) for seed, place, tests in _ROW.findall(_PAGE.read_text())}


def named(seed: str) -> str:
    """A method or error in Python's spelling."""
    last = seed.rpartition(".")[2]
    return SEED_ERRORS[seed].__name__ if seed in SEED_ERRORS else re.sub(r"(?<!^)(?=[A-Z])", "_", last).lower()


def found(path: str) -> Any:
    """What a dotted path names."""
    module, *rest = path.split(".")
    thing: Any = importlib.import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        thing = getattr(thing, part) if hasattr(thing, part) else importlib.import_module(module)
    return thing


def test_the_table_has_every_method_and_every_error_and_nothing_else() -> None:
    methods = {seed.partition(".")[0] + "." + named(seed) for seed in ROWS if "." in seed}
    assert methods == {f"{interface}.{method}" for interface, method in METHODS}
    assert {seed for seed in ROWS if "." not in seed} == set(SEED_ERRORS)
    assert len(_ROW.findall(_PAGE.read_text())) == len(ROWS)


@pytest.mark.parametrize("seed", ROWS)
def test_what_the_table_names_is_there(seed: str) -> None:
    place, tests = ROWS[seed]
    thing = found(place)
    # A registry's methods are those of what the function makes.
    assert named(seed) == place.rpartition(".")[2] or inspect.isfunction(thing)
    assert tests
    for test in tests:
        path, *names = test.split("::")
        function = found(".".join([path.removesuffix(".py").replace("/", "."), *names]))
        assert inspect.isfunction(function)
        source = inspect.getsource(function)
        assert re.search(rf"\b{named(seed)}\b", source) or "SEED_ERRORS" in source, test
