"""Keeping a log small while the same goes wrong again and again."""

import logging

__all__ = ["Flood"]


class Flood(logging.Filter):
    """Lets so many records of a logger and level pass in so many seconds; the next one says how many did not."""

    def __init__(self, most: int = 100, seconds: float = 60.0) -> None:
        super().__init__()
        self._most = most
        self._seconds = seconds
        #: By logger and level: when the time began, and how many there were since.
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is to be written."""
        began, count = self._seen.get((record.name, record.levelno), (record.created, 0))
        if record.created - began >= self._seconds:
            if count > self._most:
                record.msg = f"{record.getMessage()} ({count - self._most} like it before this were left out)"
                record.args = ()
            began, count = record.created, 0
        self._seen[record.name, record.levelno] = began, count + 1
        return count < self._most
