"""Backends are found by name, and mistakes are told in one line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusevol import backends
from fusevol.backends.memory import MemoryBackend
from fusevol.errors import DriverNotFound, InvalidArgument


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Install a distribution `acme-store` with these entry points and this module."""

    def install(points: str, module: str = "") -> None:
        (tmp_path / "acme_store.py").write_text(module)
        info = tmp_path / "acme_store-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-store\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[fusevol.backends]\n{points}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "acme_store", raising=False)

    return install


def test_the_built_in_backends_are_available_by_name() -> None:
    assert {"memory", "file", "object"} <= set(backends.available())
    assert backends.load("memory") is MemoryBackend


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(DriverNotFound, match=r"no backend 'tape'; known: .*memory"):
        backends.load("tape")


def test_a_third_party_backend_is_found(third_party: Callable[..., None]) -> None:
    third_party("acme = acme_store:Store", "from fusevol.backends.memory import MemoryBackend as Store")
    assert "acme" in backends.available()
    assert isinstance(backends.open_backend("acme"), MemoryBackend)


@pytest.mark.parametrize(
    ("points", "module"),
    [
        ("acme = acme_store:Store", "raise ImportError('no\\nlibacme')"),
        ("acme = acme_store:Missing", ""),
        ("acme = acme_absent:Store", ""),
        ("acme = acme_store:Store", "Store = 5"),
    ],
)
def test_a_broken_backend_is_one_line_naming_its_package(
    third_party: Callable[..., None], points: str, module: str
) -> None:
    third_party(points, module)
    with pytest.raises(DriverNotFound, match="acme-store") as caught:
        backends.load("acme")
    assert "\n" not in str(caught.value)


def test_open_backend_passes_its_parameters_on(third_party: Callable[..., None]) -> None:
    third_party(
        "acme = acme_store:Store",
        "from fusevol.backends.memory import MemoryBackend\n"
        "class Store(MemoryBackend):\n"
        "    def __init__(self, shelf, depth=1):\n"
        "        super().__init__()\n"
        "        self.where = shelf, depth\n",
    )
    assert vars(backends.open_backend("acme", shelf="a"))["where"] == ("a", 1)
    with pytest.raises(InvalidArgument, match=r"'acme' has no parameter 'self'; known: shelf, depth"):
        backends.open_backend("acme", shelf="a", self=1)
    with pytest.raises(InvalidArgument, match="'shelf'"):
        backends.open_backend("acme")


def test_an_unknown_parameter_is_named_with_the_known_ones() -> None:
    with pytest.raises(InvalidArgument, match="'memory' has no parameter 'size'; known: none"):
        backends.open_backend("memory", size=5)


def test_heavy_modules_are_imported_only_when_used() -> None:
    code = "import sys, fusevol.backends as b; b.available(); print([m for m in sys.modules if m in HEAVY])"
    heavy = {"obstore", "numpy", "fusevol.backends.object", "fusevol.backends.file", "pytest"}
    done = subprocess.run([sys.executable, "-c", f"HEAVY={heavy}\n{code}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_the_package_exports_exists() -> None:
    assert all(hasattr(backends, name) for name in backends.__all__)
