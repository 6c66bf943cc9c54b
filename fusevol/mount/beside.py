"""A process beside the server of a mount, which makes the system calls that wait for the server.

syncfs(2) and umount2(2) wait until the server has answered what the kernel has to write, in a way that no signal ends.
A thread of the server that is in one when the server is killed would never end, and nor would the connection to the
kernel, which the whole process has open; everybody who uses the mount would wait for ever. So they are made by another
process, that does not have it open (`attendant`). With the server the connection ends, and whatever waits for it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from fusevol.mount import attendant, syscalls

__all__ = ["Beside"]

log = logging.getLogger(__name__)

_PROGRAM = os.fspath(attendant.__file__)
#: Seconds that it may take to end once it is not needed any more.
_PATIENCE = 1.0


class Beside:
    """The process, which is started when it is first needed. All of this blocks; one call after the other is made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def sync(self, path: Path, device: int = 0) -> None:
        """syncfs(2) on the filesystem of a directory; raises OSError, ESTALE where it is on another device (0: any)."""
        self._ask("sync", path, device)

    def hold(self, path: Path, device: int = 0) -> None:
        """Keep a directory open until `sync_held`, whatever is at its path by then; raises as `sync`."""
        self._ask("hold", path, device)

    def sync_held(self, path: Path) -> None:
        """syncfs(2) on the filesystem of a directory that is held; raises OSError, ESTALE if it is not any more."""
        self._ask("sync_held", path)

    def umount2(self, path: os.PathLike[str], flags: syscalls.UnmountFlag) -> None:
        """umount2(2); raises OSError."""
        self._ask("umount", path, int(flags))

    def size(self, path: Path, device: int, node: int) -> int:
        """Bytes that the kernel takes a file to be long: one of the FUSE mount on `path`, by its node id.

        Raises OSError: EPERM for all but root, ESTALE where something else is mounted there, or the node is not known.
        """
        return self._ask("size", path, device, node)

    def _ask(self, name: str, path: os.PathLike[str], *arguments: int) -> int:
        line = json.dumps([name, os.fsencode(path).hex(), *arguments])
        with self._lock:
            try:
                answer = self._answer(line) or self._answer(line)
            except (OSError, TypeError) as error:  # the latter where Python does not know how it was started
                answer, why = "", str(error)
            else:
                why = "it ends at once"
        if not answer:
            # Better to wait for oneself, which does harm only if one is killed meanwhile, than not to do it.
            log.warning("there is no process beside the server: %s", why)
            return attendant.CALLS[name](os.fsencode(path), *arguments)
        number, result = map(int, answer.split())
        if number:
            raise OSError(number, os.strerror(number), os.fspath(path))
        return result

    def _answer(self, line: str) -> str:
        """What it answers; nothing where it has ended: the next time there is another. Raises OSError if not."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                text=True, cwd="/", start_new_session=True,
            )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        answer = ""
        with contextlib.suppress(OSError):
            self._process.send_signal(signal.SIGCONT)  # somebody may have stopped all that there is
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        if not answer:
            self._end()
        return answer

    def close(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("process %d beside the server does not end, and is left alone", process.pid)
