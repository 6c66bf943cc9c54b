"""The command on a state directory of its own."""

from pathlib import Path

import pytest

from tests.cli.command import Fusevol


@pytest.fixture
def fusevol(tmp_path: Path) -> Fusevol:
    return Fusevol(tmp_path / "home")


@pytest.fixture
def real(tmp_path: Path) -> Fusevol:
    """The installed command, in a process of its own each time."""
    return Fusevol(tmp_path / "home", real=True)
