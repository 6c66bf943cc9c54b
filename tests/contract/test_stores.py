"""Every store keeps the contract."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fusevol.store import SqliteStore
from fusevol.testing.store import Reopen, StoreContract


class TestSqliteStore(StoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(tmp_path / "fusevol.db", wait=0.05)
        yield store
        await store.aclose()

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda: SqliteStore(tmp_path / "fusevol.db", wait=0.05)


class TestSqliteStoreInMemory(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[SqliteStore]:
        store = SqliteStore(":memory:", wait=0.05)
        yield store
        await store.aclose()
