"""pyfuse3 is as it was when its private names were last looked at."""

from __future__ import annotations

import inspect

import pyfuse3
import pytest

from fusevol.mount import _pyfuse3


def test_this_version_of_pyfuse3_was_checked() -> None:
    """Where this fails: compare internal.pxi with what _pyfuse3.py says of it, run tests/mount, add the version."""
    assert pyfuse3.__version__ in _pyfuse3.CHECKED


def test_the_private_names_are_known() -> None:
    assert _pyfuse3.supported()


@pytest.mark.parametrize("name", ["_wait_fuse_readable", "_session_loop"])
def test_a_missing_private_name_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pyfuse3, name)
    assert not _pyfuse3.supported()


def test_a_private_name_with_other_arguments_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(fd: int) -> bool:
        return bool(fd)

    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", wait)
    assert not _pyfuse3.supported()


def test_private_names_are_used_in_one_module_only() -> None:
    from pathlib import Path

    package = Path(inspect.getfile(_pyfuse3)).parent
    private = ("_wait_fuse_readable", "_session_loop")
    users = [path.name for path in package.glob("*.py") if any(name in path.read_text() for name in private)]
    assert users == ["_pyfuse3.py"]
