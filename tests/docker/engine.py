"""Docker's engine on a machine: containerd, dockerd, and an image to run containers from."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

from tests.docker.machine import LIMIT, Machine, Program, Result
from tests.e2e.harness import until

__all__ = ["IMAGE", "NEEDED", "Engine"]

IMAGE = "busybox"
#: Programs that the engine and its machine take. scripts/setup installs them.
NEEDED = ("busybox", "containerd", "docker", "docker-init", "dockerd", "ip", "nsenter", "runc", "unshare")

_SOCKET = "/run/docker.sock"
#: What cgroups of these engines are called, and the process that has them made.
_CGROUP = "fusevol-test-"
#: What the image has of busybox, beside busybox itself.
_APPLETS = (
    "cat",
    "chown",
    "cp",
    "dd",
    "echo",
    "grep",
    "head",
    "ls",
    "mkdir",
    "mv",
    "rm",
    "sh",
    "sleep",
    "stat",
    "sync",
    "test",
    "true",
    "touch",
    "wc",
    "yes",
)


class Engine:
    """The engine of a machine, all of it in its usual places but for cgroups: those have a parent of their own."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.log = machine.disk / "dockerd.log"
        self._parent = f"{_CGROUP}{os.getpid()}"
        self._containerd: Program | None = None
        self._dockerd: Program | None = None

    def start(self, *options: str) -> None:
        """Start it, and wait until it answers; as a boot does, without containerd where that runs."""
        self.begin(*options)
        self.ready()

    def begin(self, *options: str) -> None:
        """Start it, and do not wait."""
        machine = self.machine
        if self._containerd is None or not self._containerd.running:
            self._containerd = machine.start("containerd", log=machine.disk / "containerd.log")
        self._dockerd = machine.start(
            "dockerd", "--host", f"unix://{_SOCKET}", "--containerd", "/run/containerd/containerd.sock",
            "--bridge=none", "--iptables=false", "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent=/{self._parent}", *options, log=self.log,
        )  # fmt: skip

    def ready(self, limit: float = LIMIT) -> None:
        """Wait until it answers."""
        until(self._answers, "dockerd to answer", limit)

    def _answers(self) -> bool:
        assert self._dockerd is not None
        assert self._dockerd.running, f"dockerd has ended: {self.said}"
        with contextlib.suppress(OSError):
            return self.machine.ask("GET", _SOCKET, "/_ping").status == 200
        return False

    @property
    def said(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text().splitlines()
        return lines[-1] if lines else "nothing"

    def stop(self) -> None:
        """End it with SIGTERM: it stops its containers, unless it was started with --live-restore."""
        assert self._dockerd is not None
        self._dockerd.terminate()

    def kill(self) -> None:
        """End it with SIGKILL. Its containers run on."""
        assert self._dockerd is not None
        self._dockerd.kill()

    def close(self) -> None:
        """Take away what a machine that was switched off leaves behind: its cgroups, and those of tests that died."""
        self._dockerd = self._containerd = None
        for pattern in f"{_CGROUP}*", f"*/{_CGROUP}*":
            for place in Path("/sys/fs/cgroup").glob(pattern):
                pid = place.name.removeprefix(_CGROUP)
                if pid == str(os.getpid()) or not Path("/proc", pid).exists():
                    for directory, _, _ in os.walk(place, topdown=False):
                        # The last processes may be gone a moment later than the machine.
                        until(functools.partial(_removed, directory), f"{directory} to be empty")

    # -- containers -------------------------------------------------------------------------------

    def import_image(self) -> None:
        """Make the image, of a static busybox."""
        self.docker("import", "-", IMAGE, text=_image())

    def docker(self, *words: str, text: bytes | None = None, limit: float = LIMIT) -> str:
        """What `docker` says to a command that must succeed, without the newline."""
        return self.machine.run("docker", *words, text=text, limit=limit).removesuffix("\n")

    def call(self, *words: str, limit: float = LIMIT) -> Result:
        """Run `docker`, whatever comes of it."""
        return self.machine.call("docker", *words, limit=limit)

    def refused(self, *words: str) -> str:
        """What `docker` says to a command that must fail, on stderr."""
        result = self.call(*words)
        assert result.status != 0, result
        return result.err

    def run(self, *mounts: str, sh: str, name: str = "", options: tuple[str, ...] = ()) -> str:
        """What a script says in a container that is gone afterwards; mounts: as of -v."""
        words = [word for mount in mounts for word in ("-v", mount)]
        return self.docker("run", "--rm", *(("--name", name) if name else ()), *words, *options, IMAGE, "sh", "-ec", sh)

    def detached(self, name: str, *mounts: str, options: tuple[str, ...] = (), sh: str = "") -> str:
        """Start a container that runs until it is stopped, and return its id. Being stopped takes no time.

        sh: what it does first; that is done when this returns, unless it goes on for ever.
        """
        words = [word for mount in mounts for word in ("-v", mount)]
        script = f"trap 'exit 0' TERM; {sh or ':'}; : > /done; while :; do sleep 1 & wait; done"
        container = self.docker("run", "-d", "--name", name, *words, *options, IMAGE, "sh", "-c", script)
        if sh and not sh.startswith("while"):
            until(lambda: self.call("exec", name, "test", "-e", "/done").status == 0, f"{name} to have begun")
        return container

    def exec(self, name: str, sh: str) -> str:
        """What a script says in a running container."""
        return self.docker("exec", name, "sh", "-ec", sh)

    def inspect(self, *words: str) -> Any:
        """What `docker ... inspect` says of one thing."""
        (found,) = json.loads(self.docker(*words[:-1], "inspect", words[-1]))
        return found


def _image() -> bytes:
    busybox = shutil.which("busybox")
    assert busybox
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in _APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        # A directory that has something in it: a volume mounted there gets a copy of it.
        page = tarfile.TarInfo("srv/page")
        page.size = len(b"from the image\n")
        tar.addfile(page, io.BytesIO(b"from the image\n"))
    return file.getvalue()


def _removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True
