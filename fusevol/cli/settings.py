"""What was said before the command, and how a command gets its driver."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fusevol.driver import LocalDriver
    from fusevol.home import Home

__all__ = ["choose_home", "drive", "home"]

T = TypeVar("T")

_COMMAND_MAX = 80

_chosen: Path | None = None


def choose_home(path: Path | None) -> None:
    """Use that state directory; None for the usual one."""
    global _chosen
    _chosen = path


def home() -> "Home":
    """The state directory in use."""
    from fusevol.home import Home

    return Home(_chosen)


def drive(work: Callable[["LocalDriver"], Awaitable[T]]) -> T:
    """Run `work` with a driver, and let go of everything afterwards."""
    import logging

    import trio

    from fusevol.driver import LocalDriver

    async def run() -> T:
        async with LocalDriver(home(), command=_command()) as driver:
            return await work(driver)

    # What is worth a line in the log of a mount is, for a command, either its error or nothing to bother anybody with.
    logger, nobody = logging.getLogger("fusevol"), logging.NullHandler()
    logger.addHandler(nobody)
    try:
        return trio.run(run)
    finally:
        logger.removeHandler(nobody)


def _command() -> str:
    """What this process does, for those who have to wait for it."""
    words = " ".join(["fusevol", *sys.argv[1:]])
    return words if len(words) <= _COMMAND_MAX else words[:_COMMAND_MAX] + "..."
