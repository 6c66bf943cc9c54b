"""The daemon as a whole: sockets, applications, supervision; what `fusevol serve` runs."""

import fcntl
import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import trio

from fusevol.daemon.http import serve_app
from fusevol.daemon.known import Known
from fusevol.daemon.listen import inherited, listen_tcp, listen_unix, notify
from fusevol.daemon.rest import Guarded, make_app
from fusevol.daemon.supervisor import Supervisor
from fusevol.daemon.work import Work
from fusevol.docker import app as docker_app
from fusevol.docker.counts import Counts
from fusevol.docker.engine import Engine
from fusevol.docker.volumes import DockerVolumes
from fusevol.driver import LocalDriver
from fusevol.errors import BackendError, FusevolError, InvalidArgument, VolumeBusy
from fusevol.home import Home

__all__ = ["Settings", "serve"]

log = logging.getLogger(__name__)

#: Threads in all: hung volumes must leave some for the others.
_THREADS = 400


class Settings(NamedTuple):
    """Where the daemon listens, and how patient it is.

    docker_socket: of the engine that is asked who uses which volume; None asks nobody. listen: HOST:PORT for the REST
    API on TCP, "" for none; token_file: with the token that those need. mounts: where volumes are mounted for
    containers. patience: seconds that a caller waits for a volume. stale_after: seconds after which the engine is
    believed when it says that nobody has a volume.
    """

    plugin_socket: Path
    api_socket: Path
    mounts: Path
    docker_socket: Path | None = None
    listen: str = ""
    token_file: Path | None = None
    patience: float = 30.0
    stale_after: float = 60.0


async def serve(home: Home, settings: Settings, ready: Callable[[], None]) -> None:
    """Serve until cancelled. ready: called once all sockets answer. Mounts stay when it ends.

    Raises InvalidArgument for settings, VolumeBusy where another daemon is at work on the state directory or a socket,
    BackendError.
    """
    trio.to_thread.current_default_thread_limiter().total_tokens = _THREADS
    token = _token(settings)
    with ExitStack() as closing:
        closing.enter_context(_only_one(home))
        given = inherited()
        plugin = given.get("plugin") or listen_unix(settings.plugin_socket)
        api = given.get("api") or listen_unix(settings.api_socket)
        tcp = listen_tcp(settings.listen) if settings.listen else None
        for path, name in ((settings.plugin_socket, "plugin"), (settings.api_socket, "api")):
            if name not in given:
                # So that dockerd is told at once that nobody is there.
                closing.callback(path.unlink, missing_ok=True)
        async with LocalDriver(home, command="fusevol serve") as driver, trio.open_nursery() as nursery:
            work, known = Work(nursery, patience=settings.patience), Known(driver, nursery)
            volumes = DockerVolumes(driver, work, known, Engine(settings.docker_socket), settings.mounts)
            rest = make_app(driver, work)
            for app, listener in ((docker_app.make_app(volumes), plugin), (rest, api)):
                await nursery.start(serve_app, app, listener)
            if tcp is not None:
                await nursery.start(serve_app, Guarded(rest, token), tcp)
            # Not before the sockets answer: it waits for stores, of which one may hang.
            nursery.start_soon(_look_after, volumes, settings)
            log.info(
                "volumes of %s for Docker on %s, API on %s", home.path, settings.plugin_socket, settings.api_socket
            )
            ready()
            notify("READY=1")
            try:
                await trio.sleep_forever()
            finally:
                notify("STOPPING=1")


async def _look_after(volumes: DockerVolumes, settings: Settings) -> None:
    """Put in order what was left by crashes and reboots, and then watch over mounts and counts for ever."""
    async with trio.open_nursery() as nursery:
        done = trio.Event()
        nursery.start_soon(_reconcile, volumes.driver, done)
        # What died before is detached first, so that it is not taken for something that died just now.
        with trio.move_on_after(settings.patience):
            await done.wait()
        nursery.start_soon(Supervisor(volumes.driver, volumes.work, volumes.known).run)
        nursery.start_soon(Counts(volumes, stale_after=settings.stale_after).run)


async def _reconcile(driver: LocalDriver, done: trio.Event) -> None:
    try:
        for line in (await driver.reconcile()).lines:
            log.info("%s", line)
    except FusevolError as error:
        log.error("what crashes left could not be put in order: %s", error)
    except Exception:
        log.exception("what crashes left could not be put in order")
    finally:
        done.set()


def _only_one(home: Home) -> IO[bytes]:
    """Hold the state directory's lock for daemons. Raises VolumeBusy, BackendError."""
    try:
        home.path.mkdir(parents=True, exist_ok=True)
        lock = open(home.path / "serve.lock", "ab")  # noqa: SIM115  held for as long as the daemon lives
    except OSError as error:
        raise BackendError(f"{home.path / 'serve.lock'} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise VolumeBusy(f"another fusevol serve is at work on {home.path}", hint="end that first") from None
    return lock


def _token(settings: Settings) -> str:
    """The token for TCP; "" where none is needed."""
    if bool(settings.listen) != bool(settings.token_file):
        raise InvalidArgument(
            "--listen and --token-file are only given together", hint="without --listen: a unix socket"
        )
    if settings.token_file is None:
        return ""
    try:
        token = settings.token_file.read_text().strip()
        mode = settings.token_file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{settings.token_file}: {getattr(error, 'strerror', None) or 'not a text'}") from error
    if mode & 0o077:
        raise InvalidArgument(f"{settings.token_file} is open to others", hint=f"chmod 600 {settings.token_file}")
    if len(token) < 16 or not token.isascii() or not token.isprintable():
        raise InvalidArgument(
            f"{settings.token_file}: a token has at least 16 letters, digits and signs",
            hint="make one: openssl rand -hex 32",
        )
    return token
