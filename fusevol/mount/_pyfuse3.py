"""The only module that touches private names of pyfuse3.

`pyfuse3._wait_fuse_readable` is what each of pyfuse3's tasks awaits before it reads a request; it is replaced by
a PollingWaiter. `pyfuse3._session_loop` is such a task; it is wrapped, to count them, and so that a request
that vanishes between poll and read does no harm: the descriptor is made non-blocking, the read answers
EAGAIN, which ends the task with an OSError, and the task is started afresh. Likewise an abort of the
connection just then ends the task and is no failure. (Unpatched, pyfuse3 would block
its whole loop in that read until the next request comes.)

Where these names are missing or look different, `supported` is False, and all works without polling.
`CHECKED` lists the versions this was checked with; tests/mount/test_private_names.py fails with others, so that
somebody looks at the changes of pyfuse3 first.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pyfuse3

from fusevol.mount.waiter import PollingWaiter
from fusevol.mount.wakeful import Wakefulness

__all__ = ["CHECKED", "polling", "supported"]

CHECKED = ("3.5.0",)

_module: Any = pyfuse3


def supported() -> bool:
    """Whether this pyfuse3 has the private names in the form that is known here."""
    wait = getattr(pyfuse3, "_wait_fuse_readable", None)
    loop = getattr(pyfuse3, "_session_loop", None)
    return callable(wait) and callable(loop) and _positional(wait) == 0 and _positional(loop) == 3


def _positional(function: object) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return -1
    return sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)


@contextlib.contextmanager
def polling(fd: int, wakefulness: Wakefulness | None = None) -> Iterator[PollingWaiter]:
    """While this context lasts, pyfuse3.main waits for requests on `fd` with the waiter it yields."""
    waiter = PollingWaiter(fd, wakefulness)
    original_wait, original_loop = _module._wait_fuse_readable, _module._session_loop

    async def session_loop(*arguments: object) -> None:
        waiter.started()
        while True:
            try:
                await original_loop(*arguments)
            except OSError as error:
                # Only those of reading a request; what a handler raises is another matter.
                reading = (error.strerror or "").startswith("fuse_session_receive_buf")
                if reading and error.errno == errno.EAGAIN:
                    continue
                if not (reading and error.errno == errno.ECONNABORTED):
                    raise
            return

    os.set_blocking(fd, False)
    _module._wait_fuse_readable, _module._session_loop = waiter.wait, session_loop
    try:
        yield waiter
    finally:
        _module._wait_fuse_readable, _module._session_loop = original_wait, original_loop
