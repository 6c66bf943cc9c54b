"""What the HTTP services of the daemon share: connections, bodies of bounded size, JSON in and out, errors as JSON."""

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import wrap_app
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp

from fusevol.errors import (
    AlreadyExists,
    BackendError,
    DriverNotFound,
    FusevolError,
    InvalidArgument,
    NoSpace,
    NotSupported,
    ReadOnly,
    VolumeBusy,
    VolumeDetached,
    VolumeHasSnapshots,
    VolumeNotFound,
)

__all__ = ["Endpoint", "error_handlers", "json_response", "read_json", "serve_app", "status_of", "text_of"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

#: Bytes that a request may have.
_BODY_MAX = 1 << 20

#: Characters of an error; what somebody sent may be in it.
_TEXT_MAX = 500

#: The first that fits counts.
_STATUS: tuple[tuple[type[FusevolError], int], ...] = (
    (VolumeNotFound, 404),
    (DriverNotFound, 404),
    (InvalidArgument, 400),
    (NotSupported, 422),
    (AlreadyExists, 409),
    (VolumeBusy, 409),
    (VolumeDetached, 409),
    (VolumeHasSnapshots, 409),
    (ReadOnly, 409),
    (NoSpace, 507),
    (BackendError, 502),
)


class _Server(TCPServer):
    """hypercorn's connection. It ends when the client does, and may be sent to while it is being closed, too."""

    async def _read_data(self) -> None:
        await super()._read_data()
        # Else it is kept, with its descriptor, for as long as a client that is there may say nothing.
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        try:
            await super().protocol_send(event)
        except trio.BusyResourceError:
            await self.protocol.handle(Closed())


async def serve_app(
    app: ASGIApp, listener: socket.socket, *, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
) -> None:
    """Answer everybody who connects to a listening socket, until cancelled.

    Connections are hypercorn's, but not its loop over them: there what goes wrong with one, such as a client that is
    gone in the middle of its request, would end all of them.
    """
    config = Config()
    config.include_server_header = False
    config.loglevel = "WARNING"
    wrapped, context = wrap_app(app, config.wsgi_max_body_size, "asgi"), WorkerContext(None)  # type: ignore[arg-type]

    async def connection(stream: trio.SocketStream) -> None:
        try:
            await _Server(wrapped, config, context, {}, stream)  # type: ignore[arg-type]
        except Exception as error:  # noqa: BLE001  whatever it is, it is this connection's
            log.debug("a connection ended: %r", error)

    listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
    await trio.serve_listeners(connection, [listening], task_status=task_status)


def status_of(error: FusevolError) -> int:
    """The HTTP status of an error."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def text_of(error: FusevolError) -> str:
    """An error and its hint in one line."""
    text = f"{error} ({error.hint})" if error.hint else str(error)
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


async def read_json(request: Request, kind: type[T]) -> T:
    """The body of a request; an empty one is an empty object. Raises HTTPException for what is not of that kind."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_MAX:
            raise HTTPException(413, f"the request has more than {_BODY_MAX} bytes")
    try:
        return msgspec.json.decode(bytes(body) or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise HTTPException(400, f"the request makes no sense: {error}") from None


def json_response(answer: object, status: int = 200, *, media_type: str = "application/json") -> Response:
    """An answer as JSON."""
    return Response(msgspec.json.encode(answer), status, media_type=media_type)


def error_handlers(
    shape: Callable[[str], object], status: Callable[[FusevolError], int] = status_of
) -> Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]:
    """Handlers that answer with `shape(message)`, for errors of ours, of HTTP and all others."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, FusevolError)
        log.info("%s %s: %s", request.method, request.url.path, text_of(error))
        return json_response(shape(text_of(error)), status(error))

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return json_response(shape(error.detail), error.status_code)

    async def gone(_: Request, error: Exception) -> Response:
        # Nobody will read it.
        return json_response(shape(f"the request was not finished: {error!r}"), 400)

    async def other(request: Request, error: Exception) -> Response:
        log.error("%s %s: unexpected", request.method, request.url.path, exc_info=error)
        return json_response(shape(f"internal error: {type(error).__name__}; the log has more"), 500)

    return {FusevolError: ours, HTTPException: http, ClientDisconnect: gone, Exception: other}
