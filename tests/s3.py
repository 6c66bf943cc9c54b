"""A real S3 server, for tests of object stores: SeaweedFS, with its data in a directory."""

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from tests.e2e.harness import until

__all__ = ["S3", "configure", "s3_server"]

_WEED = Path(sys.executable).with_name("weed")
_BUCKET = "volumes"


class S3:
    """A running server with one bucket."""

    def __init__(self, directory: Path, process: "subprocess.Popen[bytes]", port: int) -> None:
        self.directory = directory
        self.process = process
        self.endpoint = f"http://127.0.0.1:{port}"

    def parameters(self, prefix: str, *, timeout: str = "30s") -> dict[str, object]:
        """What an ObjectBackend in a folder of the bucket is given. timeout: of one request."""
        return {
            "url": f"s3://{_BUCKET}/{prefix}",
            "config": {
                "endpoint": self.endpoint,
                "region": "us-east-1",
                "access_key_id": "any",
                "secret_access_key": "any",
            },
            "client_options": {"allow_http": True, "timeout": timeout},
            "retry_config": {"max_retries": 2, "retry_timeout": 10},
        }  # fmt: skip

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Inside, it answers nobody, and refuses nobody either."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.directory / "log").read_text()[-2000:]
        try:
            return httpx.put(f"{self.endpoint}/{_BUCKET}").status_code in (200, 409)
        except httpx.HTTPError:
            return False


def configure(home: Path, parameters: Mapping[str, object], *, cache_size: str = "64M", pool: str = "default") -> None:
    """Have a pool of a state directory in an object store."""
    lines = [f"[pools.{pool}]", 'backend = "object"', f'cache_size = "{cache_size}"']
    for key, value in parameters.items():
        pairs = value.items() if isinstance(value, dict) else [(key, value)]
        prefix = f"{key}." if isinstance(value, dict) else ""
        lines += [f"{prefix}{name} = {json.dumps(each)}" for name, each in pairs]
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text("\n".join(lines) + "\n")


@contextmanager
def s3_server(directory: Path) -> Iterator[S3]:
    """A server that is there until the block is left."""
    ports = _free_ports(4)
    names = ("master", "volume", "filer", "s3")
    words = [word for name, port in zip(names, ports, strict=True) for word in (f"-{name}.port={port}",)]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [_WEED, "server", f"-dir={directory}", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
             "-volume.max=20", "-master.volumeSizeLimitMB=64", "-s3.port.iceberg=0", "-s3.port.lance=0", *words],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        server = S3(directory, process, ports[-1])
        until(server._answers, "the S3 server to answer")
        yield server
    finally:
        # Asked to, it ends after ten seconds.
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, nor on those 10,000 above them, which the server takes as well."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            low = held.enter_context(socket.socket())
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1]
            high = held.enter_context(socket.socket())
            try:
                high.bind(("127.0.0.1", port + 10000))
            except (OSError, OverflowError):
                continue
            found.append(port)
    return found
