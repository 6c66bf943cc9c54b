"""What the Docker engine knows of its containers, asked on its socket."""

import logging
from pathlib import Path

import msgspec

__all__ = ["Engine"]

log = logging.getLogger(__name__)

#: Seconds for an answer. The engine may be asking us something meanwhile.
_PATIENCE = 5.0
#: States in which a container has its volumes mounted.
_RUNNING = frozenset({"running", "paused", "restarting", "removing"})


class _Mount(msgspec.Struct, frozen=True):
    type: str = msgspec.field(default="", name="Type")
    name: str = msgspec.field(default="", name="Name")


class _Container(msgspec.Struct, frozen=True):
    names: list[str] | None = msgspec.field(default=None, name="Names")
    state: str = msgspec.field(default="", name="State")
    mounts: list[_Mount] | None = msgspec.field(default=None, name="Mounts")


class Engine:
    """The engine behind a unix socket. socket: None asks nobody, ever."""

    def __init__(self, socket: Path | None) -> None:
        self._socket = socket

    async def volumes_in_use(self) -> dict[str, list[str]] | None:
        """Names of the volumes that running containers have, and the names of those; None where it does not say."""
        if self._socket is None:
            return None
        import httpx

        transport = httpx.AsyncHTTPTransport(uds=str(self._socket))
        try:
            async with httpx.AsyncClient(transport=transport, timeout=_PATIENCE) as client:
                answer = await client.get("http://docker/containers/json", params={"all": "1"})
            answer.raise_for_status()
            containers = msgspec.json.decode(answer.content, type=list[_Container])
        except (httpx.HTTPError, OSError, msgspec.MsgspecError) as error:
            log.debug("the engine on %s does not say who uses which volume: %s", self._socket, error)
            return None
        found: dict[str, list[str]] = {}
        for container in containers:
            if container.state in _RUNNING:
                for mount in container.mounts or ():
                    if mount.type == "volume" and mount.name:
                        found.setdefault(mount.name, []).extend(name.strip("/") for name in container.names or ())
        return found
