"""Sockets that the daemon listens on: its own, or those that systemd made for it."""

import errno
import logging
import os
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from fusevol.errors import BackendError, InvalidArgument, VolumeBusy

__all__ = ["inherited", "listen_tcp", "listen_unix", "notify"]

log = logging.getLogger(__name__)

#: systemd's first file descriptor; see sd_listen_fds(3).
_FIRST = 3
_BACKLOG = 128


def inherited(environment: MutableMapping[str, str] | None = None) -> dict[str, socket.socket]:
    """Listening sockets that this process was started with, by the names that the unit gives them.

    As sd_listen_fds_with_names(3): they are for this process alone, so the variables are removed.
    """
    environment = os.environ if environment is None else environment
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found = {}
    for index in range(int(count)):
        os.set_inheritable(_FIRST + index, False)
        found[names[index] if index < len(names) else str(index)] = socket.socket(fileno=_FIRST + index)
    return found


def listen_unix(path: Path, *, mode: int = 0o600) -> socket.socket:
    """Listen on a unix socket, in place of one that nobody listens on any more; make its directory, if need be.

    Raises VolumeBusy where somebody listens there, BackendError.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    with _closed_on_error(listener, str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        # Nobody gets in between the making of the socket and the setting of its mode.
        before = os.umask(0o777 & ~mode)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(_BACKLOG)
    return listener


@contextmanager
def _closed_on_error(listener: socket.socket, address: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise BackendError(f"{address}: {reason[:1].lower() + reason[1:]}") from error
        raise


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETIMEDOUT):
                raise
    raise VolumeBusy(f"somebody listens on {path} already", hint="is another fusevol serve at work?")


def listen_tcp(address: str) -> socket.socket:
    """Listen on `HOST:PORT` or `[HOST]:PORT`. Raises InvalidArgument, BackendError."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not int(port) <= 65535:
        raise InvalidArgument(f"{address!r} is not of the form HOST:PORT")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidArgument(f"{address}: {error.strerror}") from error
    listener = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
    with _closed_on_error(listener, address):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
    return listener


def notify(state: str) -> None:
    """Tell systemd how it stands, as sd_notify(3); nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.connect("\0" + address[1:] if address.startswith("@") else address)
            sender.sendall(state.encode())
        except OSError as error:
            log.warning("systemd was not told %s: %s", state, error)
