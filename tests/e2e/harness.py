"""Volumes driven as their users do it: by the installed command, on real mounts, with time limits.

Whatever a test leaves behind is ended by what this started: processes by their ids, mounts by their paths, where
nothing else helps through fusectl. Nobody waits for ever for a mount that hangs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fusevol.mount import syscalls
from fusevol.mount.kernel import abort
from fusevol.mount.mounttable import find, mounts

__all__ = ["FUSEVOL", "Bench", "Volume", "as_user", "public_directory", "raised", "seed", "until"]

#: The command as it was installed.
FUSEVOL = Path(sys.executable).with_name("fusevol")
#: Seconds that any one command may take, unless a test says otherwise.
LIMIT = 60.0

T = TypeVar("T")
Words = tuple[str | os.PathLike[str], ...]


def until(condition: Callable[[], T], what: str, limit: float = LIMIT) -> T:
    """Wait for something to become true, and fail when it does not."""
    deadline = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {limit:g} s for {what}"
        time.sleep(0.01)
    return value


def raised(call: Callable[[], object]) -> str:
    """The name of the errno a call fails with."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "nothing"


def seed() -> int:
    """A seed for this run: $FUSEVOL_SEED, or a new one. It is printed, so that a failure shows it."""
    chosen = int(os.environ.get("FUSEVOL_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"FUSEVOL_SEED={chosen}")
    return chosen


def as_user(user: str) -> list[str]:
    """What to put in front of a command to run it as somebody else."""
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


@contextlib.contextmanager
def public_directory() -> Iterator[Path]:
    """A directory on disk that every user can reach, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="fusevol-e2e-", dir="/var/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Bench:
    """Runs programs for one test, and ends what is left of them. place: where the test has its files."""

    def __init__(self, place: Path, limit: float) -> None:
        self.place = place
        self._limit = limit
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *command: str | os.PathLike[str], cwd: Path | None = None,
              env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL,
              stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:  # fmt: skip
        """Start a program in a process group of its own. Its output is one text, stderr included."""
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdin=stdin, stdout=stdout,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self._running.append(process)
        return process

    def run(self, *command: str | os.PathLike[str], cwd: Path | None = None, env: Mapping[str, str] | None = None,
            text: str | None = None, status: int | None = 0, limit: float = LIMIT) -> str:  # fmt: skip
        """Run a program and return what it said; fail where it exits otherwise than with `status` (None: any)."""
        process = self.start(*command, cwd=cwd, env=env, stdin=subprocess.PIPE)
        output = self.finish(process, limit, text)
        if status is not None:
            said = " ".join(os.fspath(word) for word in command)
            assert process.returncode == status, f"{said}: exit status {process.returncode}, not {status}\n{output}"
        return output

    def shell(self, script: str, cwd: Path | None = None, *, status: int | None = 0, limit: float = LIMIT) -> str:
        """Run a script with bash, ended by the first error."""
        return self.run("bash", "-euo", "pipefail", "-c", script, cwd=cwd, status=status, limit=limit)

    def finish(self, process: subprocess.Popen[str], limit: float = LIMIT, text: str | None = None) -> str:
        """Wait for a program that was started, and return what it said."""
        try:
            output, _ = process.communicate(text, timeout=limit)
        except subprocess.TimeoutExpired:
            state = self.state()
            self.abort()
            self._end(process)
            raise AssertionError(f"{process.args!r} has not ended after {limit:g} s\n{state}") from None
        self._running.remove(process)
        return output or ""

    def _end(self, process: subprocess.Popen[str]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)

    def mountpoints(self) -> list[Path]:
        """What is mounted below the test's directory, topmost first."""
        return [mount.mountpoint for mount in reversed(mounts()) if mount.mountpoint.is_relative_to(self.place)]

    def servers(self) -> list[int]:
        """The processes that serve mounts below the test's directory."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0") if entry.isdigit() else []
                if b"fusevol.mount.process" in words and any(os.fsencode(self.place) in word for word in words):
                    found.append(int(entry))
        return found

    def state(self) -> str:
        """The logs of all volumes and what waits on their mounts, for a message."""
        lines = []
        for file in sorted(self.place.glob("*/log/*.log")):
            lines += [f"--- {file}", *file.read_text(errors="replace").splitlines()[-20:]]
        for pid in self.servers():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/wchan").read_text()
                lines.append(f"--- server {pid} waits in {status}")
        return "\n".join(lines)

    def abort(self) -> None:
        """Let everybody who waits for a mount of this test have an error."""
        for path in self.mountpoints():
            with contextlib.suppress(Exception):
                abort(path)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End the test's mounts when its time is up, and everything that is left in the end."""
        watchdog = threading.Timer(self._limit, self.abort)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()
            watchdog.join()
            self._clean()

    def _clean(self) -> None:
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for pid in self.servers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.abort()
        deadline = time.monotonic() + 20
        while (left := self.mountpoints()) and time.monotonic() < deadline:
            for path in left:
                with contextlib.suppress(OSError):
                    syscalls.umount2(path, syscalls.UnmountFlag.DETACH)
        for process in self._running:
            self._end(process)


class Volume:
    """A volume of one state directory, and where it is mounted."""

    def __init__(self, bench: Bench, home: Path, name: str = "web", path: Path | None = None) -> None:
        self.bench = bench
        self.home = home
        self.name = name
        self.path = path or bench.place / "mnt" / name
        self.path.mkdir(parents=True, exist_ok=True)

    def fusevol(self, *words: str | os.PathLike[str], status: int | None = 0, limit: float = LIMIT) -> str:
        """Run the command with this state directory."""
        home = {"FUSEVOL_HOME": os.fspath(self.home)}
        return self.bench.run(FUSEVOL, *words, env=home, cwd=Path("/"), status=status, limit=limit)

    def refused(self, *words: str | os.PathLike[str]) -> str:
        """Run the command, which must fail with one line that says why, and perhaps a hint; return that."""
        home = {"FUSEVOL_HOME": os.fspath(self.home)}
        process = self.bench.start(FUSEVOL, *words, env=home, cwd=Path("/"))
        output = self.bench.finish(process)
        lines = output.splitlines()
        assert process.returncode in (1, 2), f"exit status {process.returncode}: {output}"
        assert lines, "it says nothing"
        assert lines[0].startswith("fusevol: "), output
        assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("hint: ")), output
        assert "internal error" not in output
        return output

    def create(self, *options: str) -> Volume:
        self.fusevol("create", self.name, *options)
        return self

    def mount(self, *options: str, limit: float = LIMIT) -> Volume:
        self.fusevol("mount", self.name, self.path, *options, limit=limit)
        return self

    def umount(self, limit: float = LIMIT) -> None:
        self.fusevol("umount", self.name, limit=limit)
        assert not self.mounted

    @property
    def mounted(self) -> bool:
        return find(self.path) is not None

    @property
    def server(self) -> int:
        """The process that serves the mount."""
        wanted = f"{self.name} on {self.path}".encode()
        (pid,) = (pid for pid in self.bench.servers() if wanted in _command_line(pid))
        return pid

    def kill(self) -> None:
        """End the serving process as a crash does, and wait until it is gone."""
        pid = self.server
        fd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
            until(lambda: not _alive(pid), f"process {pid} to be gone")
        finally:
            os.close(fd)

    def check(self) -> None:
        """`fusevol check` finds nothing wrong."""
        found = json.loads(self.fusevol("check", self.name, "--json", status=None))
        assert found["problems"] == [], found

    def inspected(self) -> Any:
        """What `fusevol inspect` says."""
        return json.loads(self.fusevol("inspect", self.name, "--json"))

    def told(self, file: str) -> Any:
        """What a control file says."""
        return json.loads((self.path / ".fusevol" / file).read_bytes())

    def command(self, file: str, text: str) -> None:
        """Write to a control file. Raises OSError."""
        fd = os.open(self.path / ".fusevol" / file, os.O_WRONLY)
        try:
            os.write(fd, text.encode() + b"\n")
        finally:
            os.close(fd)

    @property
    def log(self) -> str:
        """What the serving process wrote in its log."""
        return "".join(file.read_text() for file in self.home.glob("log/*.log"))


def _command_line(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []


def _alive(pid: int) -> bool:
    """Whether a process, or a thread of it, runs; one that nobody has waited for yet does not."""
    try:
        if len(os.listdir(f"/proc/{pid}/task")) > 1:
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
