"""The wheel: what users install instead of a checkout."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import pytest

import fusevol

ROOT = Path(__file__).parents[2]
INFO = f"fusevol-{fusevol.__version__}.dist-info"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built with the hatchling that is installed and without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_holds_every_backend_once_and_nothing_beside_the_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        held = Counter(archive.namelist())
    sources = {f"fusevol/{path.relative_to(ROOT)}" for path in (ROOT / "backends").rglob("*.py")}
    assert "fusevol/backends/base.py" in sources
    assert {name for name in held if name.startswith("fusevol/backends/")} == sources
    assert set(held.values()) == {1}
    assert {name.partition("/")[0] for name in held} == {"fusevol", INFO}


def test_a_wheel_holds_the_licence_and_the_mark_of_a_typed_package(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        assert {"fusevol/py.typed", f"{INFO}/licenses/LICENSE"} <= set(archive.namelist())


def test_the_backends_of_a_wheel_can_be_imported(wheel: Path, tmp_path: Path) -> None:
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fusevol.backends.base as m; print(m.__file__)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert Path(done.stdout.strip()) == tmp_path / "fusevol/backends/base.py"
