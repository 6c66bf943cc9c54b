"""`fusevol serve` on a machine, in its usual places, and those who ask it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from tests.docker.engine import Engine
from tests.docker.machine import LIMIT, Answer, Machine, Program, Result
from tests.e2e.harness import until

__all__ = ["API_SOCKET", "DRIVER", "MOUNTS", "PLUGIN_SOCKET", "Daemon"]

DRIVER = "fusevol"
PLUGIN_SOCKET = "/run/docker/plugins/fusevol.sock"
API_SOCKET = "/run/fusevol/api.sock"
#: Where volumes are mounted for containers.
MOUNTS = "/var/lib/fusevol/mounts"


class Daemon:
    """The daemon of a machine, and what it knows."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.machine: Machine = engine.machine
        self._log = self.machine.disk / "serve.log"
        self._program: Program | None = None

    # -- its life ---------------------------------------------------------------------------------

    def start(self, *options: str, env: Mapping[str, str] | None = None) -> None:
        """Start it, and wait until it answers."""
        self.begin(*options, env=env)
        self.ready()

    def begin(self, *options: str, env: Mapping[str, str] | None = None, by: tuple[str, ...] = ()) -> None:
        """Start it, and do not wait. by: a command that is to start it, instead of this."""
        self._program = self.machine.start(*by, "fusevol", "serve", *options, log=self._log, env=env)

    def ready(self, limit: float = LIMIT) -> None:
        """Wait until it answers on both sockets."""
        until(self._answers, "fusevol serve to answer", limit)

    def _answers(self) -> bool:
        assert self.program.running, f"fusevol serve has ended: {self.log}"
        with contextlib.suppress(OSError):
            return self.rest("GET", "/healthz").status == 200 and bool(self.plugin("Plugin.Activate"))
        return False

    @property
    def program(self) -> Program:
        assert self._program is not None, "it was not started"
        return self._program

    def stop(self) -> None:
        """End it as systemd does."""
        assert self.program.terminate() == 0, self.log

    def kill(self) -> None:
        """End it as a crash does."""
        self.program.kill()

    @property
    def log(self) -> str:
        """What it wrote on stderr, of all its lives."""
        return self._log.read_text() if self._log.exists() else ""

    # -- asking it --------------------------------------------------------------------------------

    def plugin(self, method: str, body: Any = None, limit: float = LIMIT) -> Any:
        """What it answers to dockerd: JSON, whether it is an error or not."""
        headers = {"Accept": "application/vnd.docker.plugins.v1.2+json"}
        answer = self.machine.ask("POST", PLUGIN_SOCKET, f"/{method}", body, headers=headers, limit=limit)
        assert answer.status in (200, 400, 500), answer
        return answer.json

    def rest(self, method: str, url: str, body: Any = None, limit: float = LIMIT) -> Answer:
        """What the REST API answers."""
        return self.machine.ask(method, API_SOCKET, url, body, limit=limit)

    def fusevol(self, *words: str, limit: float = LIMIT) -> str:
        """What the command says that must succeed."""
        return self.machine.run("fusevol", *words, limit=limit)

    def call(self, *words: str, limit: float = LIMIT) -> Result:
        """Run the command, whatever comes of it."""
        return self.machine.call("fusevol", *words, limit=limit)

    def json(self, *words: str) -> Any:
        """What the command says with --json."""
        return json.loads(self.fusevol(*words, "--json"))

    # -- volumes ----------------------------------------------------------------------------------

    def create(self, name: str, *options: str) -> None:
        """docker volume create, with options as of -o."""
        words = [word for option in options for word in ("-o", option)]
        assert self.engine.docker("volume", "create", "-d", DRIVER, *words, name) == name

    def names(self) -> list[str]:
        """The volumes that Docker lists, all of them of this driver."""
        lines = self.engine.docker("volume", "ls", "--format", "{{.Driver}} {{.Name}}").splitlines()
        assert all(line.startswith(f"{DRIVER} ") for line in lines), lines
        return sorted(line.split()[1] for line in lines)

    def status(self, name: str) -> Any:
        """What docker volume inspect says of the volume's state."""
        return self.engine.inspect("volume", name)["Status"]

    def mounted(self) -> list[str]:
        """Where volumes are mounted for containers."""
        return self.machine.mounts(MOUNTS)

    def all_unmounted(self, limit: float = LIMIT) -> None:
        """Wait until no volume is mounted for a container, and no process serves one."""
        until(lambda: not self.mounted(), f"volumes to be unmounted: {self.mounted()}", limit)
        until(lambda: not self.machine.processes("fusevol.mount.process"), "mount processes to end", limit)

    def server(self, name: str) -> int:
        """The process that serves the mount of a volume, as seen from outside."""
        (pid,) = self.machine.processes("fusevol.mount.process", f"{name} on ")
        return pid
