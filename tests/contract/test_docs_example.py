"""The backend that docs/backends.md shows keeps the contract."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fusevol.backends.base import Backend
from fusevol.testing.backends import BackendContract, Reopen

_PAGE = Path(__file__).parents[2] / "docs" / "backends.md"


def _example() -> Callable[[str], Backend]:
    code = re.search(r"```python\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert code is not None
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(code[1], str(_PAGE), "exec"), namespace)
    return namespace["SqliteBackend"]  # type: ignore[no-any-return]


class TestTheExample(BackendContract):
    @pytest.fixture
    async def backend(self, tmp_path: Path) -> AsyncIterator[Backend]:
        backend = _example()(f"{tmp_path}/db")
        yield backend
        await backend.aclose()

    @pytest.fixture
    async def reopen(self, tmp_path: Path) -> AsyncIterator[Reopen]:
        opened: list[Backend] = []

        def reopen() -> Backend:
            opened.append(_example()(f"{tmp_path}/db"))
            return opened[-1]

        yield reopen
        for backend in opened:
            await backend.aclose()
