"""What all handlers of a mounted volume have in common: they are counted, may have to wait, and fail as they should."""

import errno
import functools
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar, cast

import pyfuse3
from pyfuse3 import FUSEError

from fusevol.errors import FusevolError, VolumeNotFound, errno_of
from fusevol.fs import Absent, Fetches
from fusevol.mount.control import Control
from fusevol.mount.nodes import Nodes
from fusevol.mount.quiesce import Quiesce
from fusevol.mount.requests import Requests

__all__ = ["Handling", "change", "handler"]

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


class Handling(pyfuse3.Operations):
    """What a class of handlers is to be, so that they can be decorated with `handler` and `change`."""

    def __init__(
        self, nodes: Nodes, control: Control, requests: Requests, quiesce: Quiesce, report: Callable[[str], None]
    ) -> None:
        super().__init__()
        self.nodes = nodes
        self.quiesce = quiesce
        self.control = control
        self.requests = requests
        self.report = report

    async def allowed(self) -> None:
        """Wait until the live tree is there to be changed, and may be."""
        while True:
            await self.quiesce.allowed()
            await self.nodes.settled()
            if not self.quiesce.held:
                return

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """What `change` does, for a part of a request."""
        await self.allowed()
        self.quiesce.enter()
        try:
            yield
        finally:
            self.quiesce.leave()


def handler(function: F) -> F:
    """Count the request, and let nothing but FUSEError out."""
    return _counted(function, changes=False)


def change(function: F) -> F:
    """As `handler`, for a request that changes the live tree: it waits while changes are held back."""
    return _counted(function, changes=True)


async def _again(error: Exception, generation: int, function: F, self: Handling, node: int, *args: Any) -> Any:
    """Call a handler anew that failed with `error`, if there is reason to; else raise it."""
    nodes = self.nodes
    try:
        with Fetches() as fetches:
            while True:
                try:
                    if isinstance(error, Absent):
                        await fetches.fetch(error)
                        await nodes.settled()
                    else:
                        await nodes.settled()
                        nodes.find(node)  # if it went meanwhile, this says so
                        if nodes.generation == generation:
                            raise error
                    # What was missing is there; or a restore took the tree away, and the new one has to say.
                    generation = nodes.generation
                    return await function(self, node, *args)
                except (FusevolError, ValueError) as another:
                    if another is error:
                        raise
                    error = another
    finally:
        del error  # whose traceback has this frame


def _counted(function: F, *, changes: bool) -> F:
    name = function.__name__.removeprefix("_")

    @functools.wraps(function)
    async def counted(self: Handling, node: int, *args: Any) -> Any:
        requests, nodes = self.requests, self.nodes
        number = requests.begin(name, node)
        try:
            if self.control.owns(node):
                return await function(self, node, *args)
            if changes:
                if self.quiesce.held or nodes.replacing is not None:
                    await self.allowed()
                self.quiesce.enter()
            elif nodes.replacing is not None:
                await nodes.settled()
            generation = nodes.generation
            try:
                return await function(self, node, *args)
            except (FusevolError, ValueError) as error:
                return await _again(error, generation, function, self, node, *args)
            finally:
                if changes:
                    self.quiesce.leave()
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from error
        except (FusevolError, MemoryError) as error:
            self.report(f"{name} of {node}: {error}")
            # That the volume is gone is no answer to whether there is a file.
            raise FUSEError(errno.EIO if type(error) is VolumeNotFound else errno_of(error)) from error
        except Exception as error:
            # A mistake of this program: an error for one request, not the end of the mount.
            self.report("".join(traceback.format_exception(error)))
            raise FUSEError(errno.EIO) from error
        finally:
            requests.end(number)

    return cast(F, counted)
