"""A mount whose clock a test can put forward, so that days pass in a moment."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

import trio

from fusevol.driver import LocalDriver, server
from fusevol.home import Home
from fusevol.mount.process import Arguments, spawn
from fusevol.mount.serving import serve_volume
from tests.e2e.harness import Volume

__all__ = ["mount_later", "serve_later"]


async def serve_later(arguments: Arguments, ready: Callable[[], None]) -> None:
    """As `serve_mount`, ahead by the seconds that are in the file `ahead`."""
    ahead = Path(arguments["ahead"])
    later = partial(serve_volume, clock=lambda: time.time() + float(ahead.read_text()))
    with patch.object(server, "serve_volume", later):
        await server.serve_mount(arguments, ready)


def mount_later(volume: Volume, ahead: Path) -> None:
    """Mount a volume with such a clock."""

    async def arguments() -> dict[str, object]:
        async with LocalDriver(Home(volume.home)) as driver:
            record = await driver.resolve(volume.name)
            return driver.mounting.arguments(record, os.fspath(volume.path), None)

    log_file = volume.home / "log" / "later.log"
    found = trio.run(arguments) | {"ahead": os.fspath(ahead)}
    spawn(serve_later, found, log_file=log_file, title=f"{volume.name} on {volume.path}")
