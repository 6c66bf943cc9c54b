"""How the daemon treats those who connect to it."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusevol.daemon.http import serve_app


async def nothing(*_: Any) -> None:
    """An application that is not asked for anything."""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_connection_ends_with_its_client_however_long_it_might_have_said_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercorn.config.Config.keep_alive_timeout", 3600.0)
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_app, nothing, listener)
            before = descriptors()
            clients = [await trio.open_unix_socket(path) for _ in range(20)]
            await wait_all_tasks_blocked(0.1)
            assert descriptors() == before + 40  # both ends
            for client in clients:
                await client.aclose()
            await wait_all_tasks_blocked(0.1)
            assert descriptors() == before
            nursery.cancel_scope.cancel()
