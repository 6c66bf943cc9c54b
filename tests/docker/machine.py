"""A machine of its own on this kernel: processes, network, mounts, /run, /etc, /var/lib; switched off in one go.

Docker's paths are fixed (/run/docker/plugins), and a second engine beside the first one takes its network away. In here
both have the usual paths, and so does fusevol: nothing has to be told where anything is. When the machine is switched
off, the kernel ends its processes and takes its mounts away, and it is when its tests end, however they do: the machine
runs while a pipe to it is open.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.harness import until

__all__ = ["LIMIT", "Answer", "Machine", "Program", "Result"]

#: Seconds that any one command or request may take, unless a test says otherwise.
LIMIT = 60.0

#: /etc and /var/lib as they are, with changes that are gone after the machine. Data and records are on its disk, which
#: stays. Every boot has an id of its own, by which fusevol knows that processes are not those of before.
_BOOT = r"""
set -eu
disk=$1 ram=$2
# What other tests have mounted just now must not stay mounted for as long as this is up.
awk '$3 ~ /^fuse/ || $1 ~ "^/dev/loop" { print $2 }' /proc/self/mounts | while read -r other; do
    umount -l "$(printf %b "$other")" || :
done
mkdir -p "$ram"/run/lock "$ram"/etc "$ram"/etc.work "$ram"/lib "$ram"/lib.work
mount --bind "$ram"/run /run
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$ram/etc,workdir=$ram/etc.work" /etc
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$ram/lib,workdir=$ram/lib.work" /var/lib
for name in docker containerd fusevol; do
    mkdir -p "$disk/$name" "/var/lib/$name"
    mount --bind "$disk/$name" "/var/lib/$name"
done
mount -t tmpfs tmpfs /mnt
mount --bind "$ram"/boot_id /proc/sys/kernel/random/boot_id
ip link set lo up
echo up
exec docker-init -- cat
"""


class Result(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str


class Answer(NamedTuple):
    """What an HTTP server answered."""

    status: int
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Machine:
    """A machine. It is off at first; `boot` switches it on, and `power_off` is pulling the plug.

    disk: what is there again after the next boot.
    """

    def __init__(self, disk: Path) -> None:
        self.disk = disk
        self._ram: Path | None = None
        self._holder: subprocess.Popen[str] | None = None
        self._init = 0
        self._programs: list[Program] = []
        #: For every command that is run on it.
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("FUSEVOL", "_FUSEVOL", "DOCKER", "COMP_", "NOTIFY", "CONTAINER", "PYTHON"))
        } | {"PATH": f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/sbin:/sbin:{os.environ['PATH']}"}
        self.environment |= {"COLUMNS": "160", "HOME": str(disk)}

    # -- on and off -------------------------------------------------------------------------------

    def boot(self) -> None:
        """Switch it on. Nothing but its first process runs then. Raises OSError where that is not possible."""
        assert self._holder is None, "it is on"
        self._ram = Path(tempfile.mkdtemp(prefix="ram-", dir=self.disk.parent))
        (self._ram / "boot_id").write_text(f"{uuid.uuid4()}\n")
        words = ["unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--mount-proc", "--propagation=private"]
        self._holder = subprocess.Popen(
            [*words, "sh", "-c", _BOOT, "boot", self.disk, self._ram],
            env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "up\n":
            _, said = self._holder.communicate(timeout=LIMIT)
            self._off()
            raise OSError(f"no namespaces of its own: {' '.join(said.split())}")
        (self._init,) = _children(self._holder.pid)

    def power_off(self) -> None:
        """Pull the plug: every process is killed, and every mount gone. The disk stays."""
        if self._holder is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._init, signal.SIGKILL)
        try:
            self._holder.communicate(timeout=LIMIT)
            for program in self._programs:
                program.wait()
            self._programs.clear()
        finally:
            self._off()

    def _off(self) -> None:
        if self._ram is not None:
            shutil.rmtree(self._ram)
        self._holder, self._ram, self._init = None, None, 0

    @contextlib.contextmanager
    def powered(self) -> Iterator[Machine]:
        """On for as long as this lasts."""
        self.boot()
        try:
            yield self
        finally:
            self.power_off()

    def path(self, path: str) -> Path:
        """Where a path of the machine is seen from outside. It is short enough for sockets."""
        return Path(f"/proc/{self._init}/root{path}")

    # -- programs ---------------------------------------------------------------------------------

    def start(self, *command: str, log: Path | None = None, env: Mapping[str, str] | None = None) -> Program:
        """Start a program on the machine. Its output goes to the file `log`, if one is given."""
        with contextlib.ExitStack() as files:
            output = files.enter_context(log.open("ab")) if log else subprocess.DEVNULL
            process = subprocess.Popen(
                self._words(command), env=self.environment | dict(env or {}),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        self._programs.append(Program(command, process))
        return self._programs[-1]

    def call(self, *command: str, text: str | bytes | None = None, limit: float = LIMIT) -> Result:
        """Run a program on the machine to its end."""
        process = subprocess.Popen(
            self._words(command), env=self.environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = process.communicate(text.encode() if isinstance(text, str) else text, timeout=limit)
        except subprocess.TimeoutExpired:
            Program(command, process).kill()
            process.communicate()
            raise AssertionError(f"{' '.join(command)} has not ended after {limit:g} s") from None
        return Result(process.returncode, out.decode(), err.decode())

    def run(self, *command: str, text: str | bytes | None = None, limit: float = LIMIT) -> str:
        """What a program says that must succeed."""
        result = self.call(*command, text=text, limit=limit)
        assert result.status == 0, f"{' '.join(command)}: {result}"
        return result.out

    def shell(self, script: str, limit: float = LIMIT) -> str:
        """What a script of the shell says that must succeed."""
        return self.run("bash", "-euo", "pipefail", "-c", script, limit=limit)

    def _words(self, command: tuple[str, ...]) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--mount", "--net", "--pid", "--ipc", "--", *command]

    # -- what is to be seen on it ------------------------------------------------------------------

    def mounts(self, path: str = "/") -> list[str]:
        """Where filesystems of fusevol are mounted at or below a path."""
        lines = [line.split() for line in self.path("/proc/1/mountinfo").read_text().splitlines()]
        found = [line[4] for line in lines if "fuse" in line[line.index("-") + 1]]
        return [place for place in found if Path(place).is_relative_to(path)]

    def processes(self, *words: str) -> list[int]:
        """Ids, as seen from outside, of the machine's processes that have all these words in their command lines."""
        found = []
        namespace = os.readlink(f"/proc/{self._init}/ns/pid")
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                    line = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if all(word in line for word in words):
                        found.append(int(entry))
        return found

    def ask(self, method: str, socket_path: str, url: str, body: Any = None, *, raw: bytes | None = None,
            headers: Mapping[str, str] | None = None, limit: float = LIMIT) -> Answer:  # fmt: skip
        """Ask an HTTP server on a unix socket. The body is sent as JSON, or as it is if it is `raw`."""
        with contextlib.closing(_UnixConnection(self.path(socket_path), limit)) as connection:
            data = raw if raw is not None else None if body is None else json.dumps(body).encode()
            # It may have answered before it had everything.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, url, data, dict(headers or {}))
            response = connection.getresponse()
            return Answer(response.status, response.read())


class Program:
    """A program that runs on a machine."""

    def __init__(self, command: tuple[str, ...], process: subprocess.Popen[bytes]) -> None:
        self.command = command
        # That is nsenter, which waits for the program, and ends as it does.
        self._process = process

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process, as seen from outside."""
        return until(lambda: _children(self._process.pid), f"{self.command[0]} to be started")[0]

    def kill(self) -> None:
        """End it as a crash does, and wait until it is gone."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> int:
        """Ask it to end, wait until it has, and return its exit status; negative for a signal."""
        return self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> int:
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        return self.wait()

    def wait(self, limit: float = LIMIT) -> int:
        """Wait for its end, and return its exit status; negative for a signal."""
        return self._process.wait(timeout=limit)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, limit: float) -> None:
        super().__init__("localhost", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
