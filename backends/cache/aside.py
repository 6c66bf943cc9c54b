"""Reading a store without a loop: in a thread that has one of its own, with a backend of its own."""

import queue
import threading
from collections.abc import Callable

import trio

from fusevol.api.io import Buffer
from fusevol.backends.base import Backend
from fusevol.errors import BackendError

__all__ = ["Aside"]


class Aside:
    """Reads for whoever cannot wait on a loop, such as SQLite. The thread starts with the first of them.

    open_backend: opens the store once more. Nothing is written through that.
    """

    def __init__(self, open_backend: Callable[[], Backend]) -> None:
        self._open = open_backend
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._thread: threading.Thread | None = None

    def read_around(self, volume_id: str, size: int, offset: int, most: int) -> tuple[int, Buffer]:
        """As `Backend.read_around`. Blocks the thread."""
        answers: queue.SimpleQueue[tuple[int, Buffer] | BaseException] = queue.SimpleQueue()
        if self._thread is None:
            self._start()
        assert self._token is not None

        async def read() -> None:
            try:
                answers.put(await self._backend.read_around(volume_id, size, offset, most))
            except BaseException as error:
                answers.put(error)
                if not isinstance(error, Exception):
                    raise

        def begin() -> None:
            assert self._nursery is not None
            self._nursery.start_soon(read)

        self._token.run_sync_soon(begin)
        answer = answers.get()
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, BaseException):
            raise BackendError(f"{size} bytes at {offset} of volume {volume_id!r} were not read: the store is closed")
        return answer

    def _start(self) -> None:
        ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        async def main() -> None:
            self._backend = self._open()
            try:
                async with trio.open_nursery() as nursery:
                    self._token, self._nursery = trio.lowlevel.current_trio_token(), nursery
                    ready.put(None)
                    await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await self._backend.aclose()

        def run() -> None:
            try:
                trio.run(main)
            except BaseException as error:  # noqa: BLE001  told to whoever waits, if this is the beginning
                ready.put(error)

        self._thread = threading.Thread(target=run, name="reads aside", daemon=True)
        self._thread.start()
        if (error := ready.get()) is not None:
            self._thread = None
            raise error

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None and self._token is not None and self._nursery is not None:
            self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
            self._thread.join()
            self._thread = None
