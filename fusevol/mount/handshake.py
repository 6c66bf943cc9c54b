"""INIT done here instead of by libfuse, which then serves a connection it believes to have set up.

    1. the kernel's INIT request is read from the real /dev/fuse;
    2. pyfuse3 is started on one end of a socket pair, named to libfuse as the mountpoint `/dev/fd/N`
       (fuse_session_mount(3) takes that as an open connection that somebody else has mounted);
    3. it gets an INIT request with the kernel's flags through the socket, and its answer is read: now libfuse
       knows the protocol version and its buffer size, and we know its limits;
    4. dup2 puts the real /dev/fuse in the socket's place, number N;
    5. the kernel gets our answer, which is the first moment at which the mount answers anybody.

Nothing private is needed for this. The same steps, with a /dev/fuse that another process hands over and
without 1 and 5, would let a new process take over a live mount.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

import pyfuse3
import trio

from fusevol.errors import BackendError, NotSupported
from fusevol.mount.extra import ExtraHandlers
from fusevol.mount.options import MountOptions
from fusevol.mount.protocol import InitReply, InitRequest, negotiate

__all__ = ["shake_hands"]

log = logging.getLogger(__name__)

#: libfuse answers INIT at once; this is for a library that reads the socket differently than expected.
ANSWER_TIMEOUT = 10.0


async def shake_hands(handlers: ExtraHandlers, device: int, options: MountOptions) -> tuple[int, InitReply]:
    """Set up pyfuse3 on the freshly mounted connection `device`, an open /dev/fuse, which is consumed.

    Returns the number under which pyfuse3 has the connection now, and what was agreed with the kernel.
    `pyfuse3.main` is to be called next, `pyfuse3.close` at the end. On an error nothing is left open.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, device)
        request = InitRequest.parse(os.read(device, options.max_request + 4096))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        undo.callback(ours.close)
        number = theirs.detach()
        try:
            handlers.init(f"/dev/fd/{number}", set())
        except RuntimeError as error:
            os.close(number)
            raise NotSupported(f"libfuse does not take an open connection: {error}") from error
        try:
            library = await _library_reply(ours, number, request)
            reply = negotiate(
                request,
                library,
                max_request=options.max_request,
                max_readahead=options.read_ahead_kb << 10,
                max_background=options.max_background,
                congestion_threshold=options.congestion_threshold,
                dont_mask=getattr(handlers.operations, "applies_umask", False),
            )
            os.dup2(device, number, inheritable=False)
            try:
                os.write(number, reply.pack(request.unique))
            except OSError as error:
                raise BackendError(f"the kernel refuses the answer to INIT: {error.strerror}") from error
        except BaseException:
            pyfuse3.close(unmount=False)
            raise
    log.debug("kernel offers FUSE 7.%d %r; agreed on %r", request.minor, request.flags, reply)
    return number, reply


async def _library_reply(ours: socket.socket, number: int, request: InitRequest) -> InitReply:
    """Let pyfuse3 serve one request, the given INIT, and return its answer."""
    ours.setblocking(False)
    ours.send(request.pack())
    answer = b""
    with trio.move_on_after(ANSWER_TIMEOUT), _ending(number):
        async with trio.open_nursery() as nursery:
            served = trio.Event()

            async def serve() -> None:
                await pyfuse3.main(1, 1)
                served.set()

            nursery.start_soon(serve)
            await trio.lowlevel.wait_readable(ours)
            answer = ours.recv(4096)
            # The loop now waits for its next request, or is about to. It ends when told that its
            # descriptor is about to be closed, and may be started again.
            while not served.is_set():
                trio.lowlevel.notify_closing(number)
                await trio.lowlevel.checkpoint()
    if not answer:
        raise NotSupported("libfuse does not answer an INIT request passed through a socket")
    return InitReply.parse(answer)


@contextlib.contextmanager
def _ending(number: int) -> Iterator[None]:
    """Take what the loop raises for what it means here: this libfuse cannot be handed a connection."""
    try:
        yield
    except* OSError as errors:
        raise NotSupported(f"libfuse cannot read an INIT request from a socket: {errors.exceptions[0]}") from errors
    finally:
        trio.lowlevel.notify_closing(number)
