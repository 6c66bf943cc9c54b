"""Serve one volume; run as a program: volumefs.py BACKEND-DIRECTORY MOUNTPOINT READY-FILE QUOTA-BYTES.

Makes the volume if it is not there. SIGTERM unmounts it, and makes all that was written durable.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import sys
from pathlib import Path

import trio

from fusevol.backends.file import FileBackend
from fusevol.errors import AlreadyExists
from fusevol.log import create_volume
from fusevol.mount.serving import serve_volume

VOLUME = "posix"


async def main(directory: Path, mountpoint: Path, ready: Path, size: int) -> None:
    backend = FileBackend(directory)
    with contextlib.suppress(AlreadyExists):
        await create_volume(backend, VOLUME)
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def ended() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(ended)
            serve = functools.partial(serve_volume, name=VOLUME, ready=ready.touch, size=size)
            await serve(backend, VOLUME, mountpoint)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    backend, mountpoint, ready, quota = sys.argv[1:]
    trio.run(main, Path(backend), Path(mountpoint), Path(ready), int(quota))
