"""The volume plugin as an HTTP application. What went wrong is in `Err`, as dockerd wants it."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fusevol.daemon.http import Endpoint, error_handlers, json_response, read_json
from fusevol.docker.protocol import CreateRequest, Empty, MountRequest, NameRequest
from fusevol.docker.volumes import DockerVolumes

__all__ = ["make_app"]

T = TypeVar("T")

_MEDIA_TYPE = "application/vnd.docker.plugins.v1.2+json"


def _answer(kind: type[T], function: Callable[[T], Awaitable[object]]) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        asked = await read_json(request, kind)
        return json_response(await function(asked), media_type=_MEDIA_TYPE)

    return endpoint


def make_app(volumes: DockerVolumes) -> Starlette:
    """The application that dockerd talks to."""

    async def activate(_: Empty) -> object:
        return {"Implements": ["VolumeDriver"]}

    async def capabilities(_: Empty) -> object:
        return {"Capabilities": {"Scope": "local"}}

    async def create(asked: CreateRequest) -> object:
        await volumes.create(asked.name, asked.opts)
        return {"Err": ""}

    async def get(asked: NameRequest) -> object:
        return {"Volume": await volumes.get(asked.name), "Err": ""}

    async def list_(_: Empty) -> object:
        return {"Volumes": await volumes.list(), "Err": ""}

    async def path(asked: NameRequest) -> object:
        return {"Mountpoint": await volumes.path(asked.name), "Err": ""}

    async def mount(asked: MountRequest) -> object:
        return {"Mountpoint": await volumes.mount(asked.name, asked.id), "Err": ""}

    async def unmount(asked: MountRequest) -> object:
        await volumes.unmount(asked.name, asked.id)
        return {"Err": ""}

    async def remove(asked: NameRequest) -> object:
        await volumes.remove(asked.name)
        return {"Err": ""}

    endpoints: dict[str, Endpoint] = {
        "/Plugin.Activate": _answer(Empty, activate),
        "/VolumeDriver.Capabilities": _answer(Empty, capabilities),
        "/VolumeDriver.Create": _answer(CreateRequest, create),
        "/VolumeDriver.Get": _answer(NameRequest, get),
        "/VolumeDriver.List": _answer(Empty, list_),
        "/VolumeDriver.Path": _answer(NameRequest, path),
        "/VolumeDriver.Mount": _answer(MountRequest, mount),
        "/VolumeDriver.Unmount": _answer(MountRequest, unmount),
        "/VolumeDriver.Remove": _answer(NameRequest, remove),
    }
    routes = [Route(path, endpoint, methods=["POST"]) for path, endpoint in endpoints.items()]
    # dockerd shows an error of an answer with status 200 as it is, others with the name of the call before it.
    handlers = error_handlers(lambda message: {"Err": message}, lambda _: 200)
    return Starlette(routes=routes, exception_handlers=dict(handlers))
