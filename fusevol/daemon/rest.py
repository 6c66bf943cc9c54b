"""The REST API: volumes and snapshots over HTTP, with the JSON objects of the command line.

Documented in docs/daemon.md. Fields only ever get more.
"""

import hmac
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fusevol.api import LocatorUpdate, SpecUpdate, Stats, Volume, VolumeLocator
from fusevol.api.codec import to_json
from fusevol.daemon.http import error_handlers, json_response, read_json
from fusevol.daemon.metrics import CONTENT_TYPE, metrics
from fusevol.daemon.work import Call, Work
from fusevol.driver import LocalDriver
from fusevol.driver.attachment import believed
from fusevol.errors import InvalidArgument, SnapshotNotFound
from fusevol.forms.objects import SnapshotObject, VolumeObject, snapshot_object, volume_object
from fusevol.forms.options import parse_create_options
from fusevol.sizes import parse_size

__all__ = ["Guarded", "make_app"]


class _NewSnapshot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    labels: dict[str, str] = {}


class _Restore(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    snapshot: str


class _Mount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    options: dict[str, str] = {}


class _Unmount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str = ""


def make_app(driver: LocalDriver, work: Work) -> Starlette:
    """The application behind the API socket."""
    api = _Api(driver, work)
    volume, snapshots = "/v1/volumes/{name}", "/v1/volumes/{name}/snapshots"
    routes = [
        Route("/healthz", api.health, methods=["GET"]),
        Route("/metrics", api.metrics, methods=["GET"]),
        Route("/v1/status", api.status, methods=["GET"]),
        Route("/v1/requests", api.requests, methods=["GET"]),
        Route("/v1/volumes", api.volumes, methods=["GET"]),
        Route("/v1/volumes", api.create, methods=["POST"]),
        Route(volume, api.volume, methods=["GET"]),
        Route(volume, api.change, methods=["PATCH"]),
        Route(volume, api.delete, methods=["DELETE"]),
        Route(volume + "/stats", api.stats, methods=["GET"]),
        Route(volume + "/mount", api.mount, methods=["POST"]),
        Route(volume + "/unmount", api.unmount, methods=["POST"]),
        Route(volume + "/restore", api.restore, methods=["POST"]),
        Route(snapshots, api.snapshots, methods=["GET"]),
        Route(snapshots, api.snapshot, methods=["POST"]),
        Route(snapshots + "/{snapshot}", api.delete_snapshot, methods=["DELETE"]),
    ]
    return Starlette(routes=routes, exception_handlers=dict(error_handlers(lambda message: {"error": message})))


class _Api:
    """The endpoints. What touches a volume's data is bounded in time (`Work`)."""

    def __init__(self, driver: LocalDriver, work: Work) -> None:
        self._driver = driver
        self._work = work

    async def health(self, _: Request) -> Response:
        await self._driver.store.open()
        return json_response({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        return Response(await metrics(self._driver), media_type=CONTENT_TYPE)

    async def status(self, _: Request) -> Response:
        found = await self._work.on("", "looking at everything", lambda _: self._driver.upkeep.overview())
        return json_response(found)

    async def requests(self, _: Request) -> Response:
        found = await self._work.on("", "asking all mounts", lambda _: self._driver.get_active_requests())
        return json_response(found)

    # -- volumes ----------------------------------------------------------------------------------

    async def _volume(self, request: Request) -> Volume:
        """The volume, not a snapshot, that a path names."""
        return await self._driver.resolve(_plain(request.path_params["name"]))

    async def _object(self, volume_id: str) -> VolumeObject:
        return await volume_object(self._driver, await self._driver.resolve(volume_id))

    async def volumes(self, _: Request) -> Response:
        found = [
            await volume_object(self._driver, believed(volume), count)
            for volume, count in await self._driver.store.volumes()
        ]
        return json_response({"volumes": sorted(found, key=lambda volume: volume.name)})

    async def volume(self, request: Request) -> Response:
        return json_response(await volume_object(self._driver, await self._volume(request)))

    async def create(self, request: Request) -> Response:
        asked = await read_json(request, dict[str, Any])
        name, labels = asked.pop("name", None), asked.pop("labels", {})
        if not isinstance(name, str):
            raise InvalidArgument('"name" is missing, or not a text')
        options = parse_create_options([f"{key}={_word(key, asked[key])}" for key in asked])
        options = options._replace(labels=_convert(labels, dict[str, str], "labels"))

        async def make(_: Call[str]) -> str:
            return await self._driver.create(*await options.request(self._driver, name), exist_ok=False)

        return json_response(await self._object(await self._work.on(name, "creating it", make)), 201)

    async def change(self, request: Request) -> Response:
        asked = await read_json(request, dict[str, Any])
        volume = await self._volume(request)
        locator: dict[str, Any] = {"name": asked.pop("name")} if "name" in asked else {}
        if isinstance(asked.get("size"), str):
            asked["size"] = _size(asked["size"])
        if "labels" in asked:
            locator["volume_labels"] = asked.pop("labels")
        changes = _convert(locator, LocatorUpdate, "the change"), _convert(asked, SpecUpdate, "the change")

        async def change(_: Call[None]) -> None:
            await self._driver.set(volume.id, *changes)

        await self._work.on(volume.locator.name, "changing it", change)
        return json_response(await self._object(volume.id))

    async def delete(self, request: Request) -> Response:
        volume = await self._volume(request)

        async def delete(_: Call[None]) -> None:
            await self._driver.delete(volume.id)

        await self._work.on(volume.locator.name, "deleting it", delete)
        return Response(status_code=204)

    async def stats(self, request: Request) -> Response:
        volume = await self._volume(request)

        async def ask(_: Call[Stats]) -> Stats:
            return await self._driver.stats(volume.id, cumulative=True)

        found = await self._work.on(volume.locator.name, "saying its numbers", ask)
        return Response(to_json(found), media_type="application/json")

    async def mount(self, request: Request) -> Response:
        asked = await read_json(request, _Mount)
        volume = await self._volume(request)

        async def mount(_: Call[None]) -> None:
            await self._driver.mounting.mount(volume.id, asked.path, asked.options, again=True)

        await self._work.on(volume.locator.name, "mounting it", mount)
        return json_response(await self._object(volume.id))

    async def unmount(self, request: Request) -> Response:
        asked = await read_json(request, _Unmount)
        volume = await self._volume(request)

        async def unmount(_: Call[None]) -> None:
            await self._driver.mounting.unmount(volume.id, asked.path)

        await self._work.on(volume.locator.name, "unmounting it", unmount)
        return json_response(await self._object(volume.id))

    # -- snapshots --------------------------------------------------------------------------------

    async def snapshots(self, request: Request) -> Response:
        volume = await self._volume(request)

        async def look(_: Call[list[SnapshotObject]]) -> list[SnapshotObject]:
            return [snapshot_object(volume, snapshot) for snapshot in await self._driver.snapshots.of(volume)]

        found = await self._work.on(volume.locator.name, "listing its snapshots", look)
        return json_response({"snapshots": found})

    async def snapshot(self, request: Request) -> Response:
        asked = await read_json(request, _NewSnapshot)
        volume = await self._volume(request)
        locator = VolumeLocator(name=asked.name, volume_labels=asked.labels)

        async def take(_: Call[SnapshotObject]) -> SnapshotObject:
            made = await self._driver.snapshot(volume.id, readonly=True, locator=locator)
            return snapshot_object(volume, await self._driver.snapshots.find(volume, made))

        made = await self._work.on(volume.locator.name, "taking a snapshot of it", take)
        return json_response(made, 201)

    async def delete_snapshot(self, request: Request) -> Response:
        volume = await self._volume(request)
        name = _plain(request.path_params["snapshot"])

        async def delete(_: Call[None]) -> None:
            await self._driver.delete((await self._driver.snapshots.find(volume, name)).id)

        await self._work.on(volume.locator.name, "deleting a snapshot of it", delete)
        return Response(status_code=204)

    async def restore(self, request: Request) -> Response:
        asked = await read_json(request, _Restore)
        volume = await self._volume(request)

        async def restore(_: Call[SnapshotObject | None]) -> SnapshotObject | None:
            snapshot = await self._driver.snapshots.find(volume, _plain(asked.snapshot))
            kept = await self._driver.restore_keeping(volume.id, snapshot.id)
            return snapshot_object(volume, kept) if kept else None

        kept = await self._work.on(volume.locator.name, "restoring it", restore)
        return json_response({"volume": volume.locator.name, "restored": asked.snapshot, "kept": kept})


def _plain(name: str) -> str:
    """A name that is not of the form volume@snapshot."""
    if "@" in name:
        raise SnapshotNotFound(f"{name[:140]!r}: snapshots are under /v1/volumes/NAME/snapshots")
    return name


def _convert(value: object, kind: Any, what: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{what}: {error}") from None


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise InvalidArgument(str(error)) from None


def _word(key: str, value: object) -> str:
    """The value of an option as the command line has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise InvalidArgument(f"option {key[:140]!r}: it must be a text, a whole number, true or false")


class Guarded:
    """An application for those who know the token (`Authorization: Bearer TOKEN`); 401 for all others."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; an ASGI application."""
        if scope["type"] == "http":
            said = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(said, self._expected):
                answer = json_response({"error": "the token is missing or wrong"}, 401)
                answer.headers["WWW-Authenticate"] = "Bearer"
                await answer(scope, receive, send)
                return
        elif scope["type"] != "lifespan":
            return
        await self._app(scope, receive, send)
