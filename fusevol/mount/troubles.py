"""What is wrong with a mounted volume: logged, and in its record, for who asks there and not the mount."""

import logging

import trio

from fusevol.api.names import by_name
from fusevol.errors import FusevolError
from fusevol.mount.settings import Outside

__all__ = ["Troubles"]

log = logging.getLogger(__name__)


class Troubles:
    """The troubles of one mount, each by what it is with."""

    def __init__(self, outside: Outside, volume_id: str, name: str) -> None:
        self._outside = outside
        self._volume_id = volume_id
        self._name = name
        self._current: dict[str, str] = {}
        self._told = ""
        self._telling = trio.Lock()

    async def note(self, what: str, failure: str) -> None:
        """Say in one line what is wrong with something, or "" that nothing is.

        Where the record cannot be written, that is made up for with the next note.
        """
        failure = by_name(failure, self._volume_id, self._name)
        if failure and failure != self._current.get(what):
            log.error("%s", failure)
        self._current[what] = failure
        async with self._telling:
            now = "; ".join(text for _, text in sorted(self._current.items()) if text)
            if now == self._told:
                return
            try:
                await self._outside.note(now)
                self._told = now
            except FusevolError as error:
                log.warning("the record of the volume could not be brought up to date: %s", error)
