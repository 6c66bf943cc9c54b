"""A server in a process of its own: started, reported on, and ended by signals.

    spawn()  ──exec──>  python -m fusevol.mount.process ENTRY  ──fork──>  the server
       │                                                                   │
       └──── one line of JSON through a pipe: ready, or the error ─────────┘

`spawn` returns when the server says that it is ready, and raises what kept it from that. The server has a
session of its own, no terminal, "/" as its directory, and its output in a log file, whose last line says why it
ended. It is a grandchild, so nobody has to wait for it.

What runs is an entry: an importable `async def entry(arguments, ready)`, where `arguments` is what was given to
`spawn`, after JSON, and `ready` is to be called once. SIGTERM and SIGINT cancel it, and it then unmounts and
flushes as it pleases; a second signal ends the process at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import trio

import fusevol.errors
from fusevol.errors import BackendError, FusevolError, InvalidArgument, exit_code_of
from fusevol.mount.flood import Flood
from fusevol.mount.syscalls import keep_freed_memory

__all__ = ["Arguments", "Entry", "readable", "run", "spawn"]

Arguments = Mapping[str, Any]
Entry = Callable[[Arguments, Callable[[], None]], Awaitable[None]]

log = logging.getLogger("fusevol.process")

#: How long a server that is not wanted any more may take to end, in seconds.
_PATIENCE = 5.0
#: The largest buffers that requests take, and how much of what they freed is kept.
_LARGEST, _KEPT = 4 << 20, 16 << 20


def spawn(entry: Entry | str, arguments: Arguments, *, log_file: Path, title: str = "", timeout: float = 60.0) -> int:
    """Start a server and return its process id once it is ready; raise what it failed with.

    `entry` is a function at the top level of a module, or "module:function"; `title` follows in the process
    list. A server that is neither ready nor failed after `timeout` seconds is ended (BackendError), and so it is
    when the caller is interrupted. Blocks: from an event loop, call it in a thread.
    """
    name: str = entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"
    try:
        request = json.dumps(dict(arguments)).encode()
    except TypeError as error:
        raise InvalidArgument(f"the arguments of {name} are not JSON: {error}") from error
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        output = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise BackendError(f'the log file "{log_file}" cannot be written: {error.strerror}') from error
    read_end, write_end = os.pipe()
    group = 0
    try:
        with open(output, "ab") as stream, open(write_end, "wb") as pipe:
            before = stream.seek(0, os.SEEK_END)
            starter = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, name, str(pipe.fileno()), *([title] if title else [])],
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                pass_fds=[pipe.fileno()],
                start_new_session=True,
                cwd="/",
                env=os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(part) for part in sys.path)},
            )
        group = starter.pid
        starter.communicate(request)
        pid: int = 0
        for report in _reports(read_end, timeout):
            pid = int(report.get("pid", pid))
            if "ready" in report:
                group = 0
                return pid
            if "error" in report:
                group = 0
                raise _exception(report)
        hint = f"see {log_file}"
        if not _closed(read_end, 0):
            raise BackendError(f"{title or name} was not ready after {timeout:g} seconds", hint=hint)
        group = 0
        raise BackendError(f"{title or name} died while starting: {_last_line(log_file, before)}", hint=hint)
    finally:
        if group:
            _end(group, read_end)
        os.close(read_end)


def run(entry: Entry | str, arguments: Arguments, *, ready: Callable[[], None] | None = None) -> None:
    """Run an entry in this process (`--foreground`): until it ends, or has ended after SIGTERM or SIGINT.

    Raises what it raises; to be ended by a signal is no error. Why it ended is logged.
    """
    keep_freed_memory(_LARGEST, _KEPT)
    ended = ""

    async def watch(work: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
        nonlocal ended
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if ended:
                    log.error("ended: %s after %s, at once", name, ended)
                    os._exit(128 + number)
                log.info("%s: ending", name)
                ended = name
                work.cancel()

    async def supervised() -> None:
        async with trio.open_nursery() as nursery:
            work = trio.CancelScope()
            await nursery.start(watch, work)
            with work:
                await (_load(entry) if isinstance(entry, str) else entry)(arguments, ready or (lambda: None))
            # Not cancelled with `work`, so that a second signal is heard while the first is obeyed.
            nursery.cancel_scope.cancel()

    try:
        trio.run(supervised)
    except BaseException as error:
        cause = _only(error)
        if not isinstance(cause, FusevolError):
            log.error("unexpected", exc_info=cause)
        log.error("ended: %s", _one_line(cause))
        if cause is not error:
            raise cause from cause.__cause__
        raise
    log.info("ended: %s", ended or "unmounted")


def _load(name: str) -> Entry:
    module, _, function = name.partition(":")
    try:
        entry: Entry = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidArgument(f'there is nothing to run by the name of "{name}": {error}') from error
    return entry


def _reports(read_end: int, timeout: float) -> Iterator[dict[str, Any]]:
    """What the server says through the pipe, until it closes it or time is up."""
    deadline = time.monotonic() + timeout
    said = b""
    while (left := deadline - time.monotonic()) > 0:
        if not readable(read_end, left):
            return
        more = os.read(read_end, 65536)
        if not more:
            return
        *lines, said = (said + more).split(b"\n")
        yield from map(json.loads, lines)


def readable(fd: int, seconds: float) -> bool:
    """Wait until there is something to be read, or an end; whether there is. For a pidfd: whether it has ended."""
    # Not select(2), which takes no descriptor above 1023: a daemon with many clients has those.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _closed(read_end: int, timeout: float) -> bool:
    """Whether all processes that could write to the pipe have ended."""
    return readable(read_end, timeout) and not os.read(read_end, 65536)


def _end(group: int, read_end: int) -> None:
    """End a server that did not become ready: it may unmount, but not for long."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        if _closed(read_end, _PATIENCE):
            return


def _exception(report: Mapping[str, Any]) -> FusevolError:
    kind = getattr(fusevol.errors, report["type"], None) if report["type"] in fusevol.errors.__all__ else None
    if not (isinstance(kind, type) and issubclass(kind, FusevolError)):
        kind = BackendError
    return kind(report["error"], hint=report["hint"])


def _last_line(log_file: Path, since: int) -> str:
    """The last line the server wrote, where it wrote any."""
    with contextlib.suppress(OSError), open(log_file, "rb") as file:
        file.seek(max(since, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it left no message")
    return "it left no message"


def _only(error: BaseException) -> BaseException:
    """The exception in a group of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, FusevolError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _serve(name: str, number: int) -> int:
    """The child's side of `spawn`: the starter ends here at once, what it forked is the server."""
    arguments = json.load(sys.stdin.buffer)
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.set_inheritable(number, False)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    faulthandler.enable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for output in logging.getLogger().handlers:
        output.addFilter(Flood())
    pipe = open(number, "wb", buffering=0)  # noqa: SIM115 -- open until ready

    def report(**fields: object) -> None:
        # Who started this may be gone by now; that is no reason to stop.
        with contextlib.suppress(BrokenPipeError):
            pipe.write(json.dumps(fields).encode() + b"\n")

    def ready() -> None:
        if not pipe.closed:
            report(ready=True)
            pipe.close()
            log.info("ready")

    report(pid=os.getpid())
    try:
        run(name, arguments, ready=ready)
    except BaseException as error:  # noqa: BLE001 -- reported, and this is the end
        if not pipe.closed:
            hint = error.hint if isinstance(error, FusevolError) else None
            report(error=_one_line(error), type=type(error).__name__, hint=hint, exit=exit_code_of(error))
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(_serve(sys.argv[1], int(sys.argv[2])))
