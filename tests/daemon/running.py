"""A daemon in a process of its own, as systemd starts it: it is ready when it says so on the notify socket."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import httpx

from fusevol.driver.mounts import detach_dead
from fusevol.mount.mounttable import mounts
from tests.cli.command import FUSEVOL, Fusevol

__all__ = ["Answer", "Daemon"]

_LIMIT = 60.0


class Answer(NamedTuple):
    """What came back: the status, and the body as JSON, or as text where it is none."""

    status: int
    body: Any


class Daemon:
    """`fusevol serve` on a state directory; used as a context manager. Options are added to the command line."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.command = Fusevol(directory / "home", real=True)
        self.plugin_socket, self.api_socket = directory / "plugin.sock", directory / "api.sock"
        self.log = directory / "serve.log"
        self._notify = directory / "notify.sock"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def words(self) -> list[str]:
        """Its command line."""
        return [
            str(FUSEVOL), "serve", "--plugin-socket", str(self.plugin_socket), "--api-socket", str(self.api_socket),
            "--docker-socket", "", *self._options,
        ]  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener, self.log.open("ab") as log:
            self._notify.unlink(missing_ok=True)
            listener.bind(str(self._notify))
            listener.settimeout(_LIMIT)
            environment = self.command.environment | {"NOTIFY_SOCKET": str(self._notify)}
            self._process = subprocess.Popen(self.words, stdout=log, stderr=log, env=environment)
            assert listener.recv(64) == b"READY=1", self.log.read_text()

    def kill(self) -> None:
        """End it at once."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_LIMIT)

    def terminate(self) -> int:
        """End it as systemd does, and return its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(_LIMIT)

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            self.terminate()
        for mount in mounts():
            if str(mount.mountpoint).startswith(f"{self.command.home}/"):
                # Not by the command: containers are still counted as using it.
                subprocess.run(["umount", str(mount.mountpoint)], check=False, timeout=_LIMIT)
                detach_dead(str(mount.mountpoint))

    # -- asking -----------------------------------------------------------------------------------

    def _ask(self, path: Path, method: str, where: str, content: bytes | None) -> Answer:
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=_LIMIT) as client:
            return _answer(client.request(method, f"http://daemon{where}", content=content))

    def plugin(self, call: str, **fields: Any) -> Any:
        """What the plugin answers to a call of dockerd's."""
        return self._ask(self.plugin_socket, "POST", f"/{call}", json.dumps(fields).encode()).body

    def volume(self, call: str, name: str, **fields: Any) -> Any:
        """What it answers to a call for a volume."""
        return self.plugin(f"VolumeDriver.{call}", Name=name, **fields)

    def api(self, method: str, where: str, body: object = None) -> Answer:
        """What the REST API answers."""
        return self._ask(self.api_socket, method, where, None if body is None else json.dumps(body).encode())


def _answer(response: httpx.Response) -> Answer:
    is_json = "json" in response.headers.get("content-type", "")
    return Answer(response.status_code, response.json() if is_json else response.text)
