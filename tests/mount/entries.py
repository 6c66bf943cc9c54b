"""What the tests of processes run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from fusevol.errors import SnapshotNotFound
from fusevol.mount.process import Arguments


async def serve(arguments: Arguments, ready: Callable[[], None]) -> None:
    """Write down what it is, become ready, and go on until the file `end` appears."""
    directory = Path(arguments["directory"])
    facts = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "cwd": os.getcwd(),
        "stdin": os.readlink("/proc/self/fd/0"),
        "parent": os.getppid(),
    }
    (directory / "facts").write_text(json.dumps(facts))
    print("printed", flush=True)
    ready()
    ready()
    try:
        while not (directory / "end").exists():  # noqa: ASYNC110 -- who makes it is another process
            await trio.sleep(0.005)
    finally:
        with trio.CancelScope(shield=True):
            (directory / "ending").touch()
            while arguments.get("slow") and not (directory / "end").exists():  # noqa: ASYNC110
                await trio.sleep(0.005)
        (directory / "ended").touch()


async def fail(arguments: Arguments, ready: Callable[[], None]) -> None:
    await trio.lowlevel.checkpoint()
    raise SnapshotNotFound('"web" has no snapshot\n"x"', hint="fusevol snapshots web")


async def crash(arguments: Arguments, ready: Callable[[], None]) -> None:
    await trio.lowlevel.checkpoint()
    raise ZeroDivisionError("by zero")


async def fail_later(arguments: Arguments, ready: Callable[[], None]) -> None:
    ready()
    await trio.sleep(0.01)
    raise SnapshotNotFound("too late")


async def die(arguments: Arguments, ready: Callable[[], None]) -> None:
    await trio.lowlevel.checkpoint()
    print("last words", file=sys.stderr, flush=True)
    os._exit(3)


async def never(arguments: Arguments, ready: Callable[[], None]) -> None:
    Path(arguments["directory"], "pid").write_text(str(os.getpid()))  # noqa: ASYNC240
    await trio.sleep_forever()
