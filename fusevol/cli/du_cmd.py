"""fusevol du."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from fusevol.cli.options import JsonOption, complete_volume
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive
from fusevol.errors import InvalidArgument
from fusevol.sizes import format_size

if TYPE_CHECKING:
    from fusevol.driver.contents import DirectoryShare

__all__ = ["Order", "du"]


class Order(StrEnum):
    """What directories that are next to each other are sorted by; numbers from the largest on."""

    USED = "used"
    SIZE = "size"
    INODES = "inodes"
    NAME = "name"


def du(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME[@SNAP]", help="A volume, or a snapshot of one.", autocompletion=complete_volume),
    ],
    path: Annotated[str, typer.Argument(metavar="[PATH]", help="A directory or file in it.")] = "/",
    depth: Annotated[int, typer.Option(metavar="N", help="Show directories down to this many levels below.")] = 1,
    sort: Annotated[Order, typer.Option(help="What directories next to each other are sorted by.")] = Order.USED,
    json: JsonOption = False,
) -> None:
    """Show what the directories in a volume hold.

    Each with all that is below it: USED is what its files take up, as du(1) says it in a mount, and SIZE how long they
    are, holes included. A file with several names counts once. What the volume takes up with its snapshots is in
    `fusevol usage`. No mount is needed, and no file is read.

    Example:

    \b
      fusevol du web
      fusevol du web@before /var --depth 3 --sort inodes
    """
    if depth < 0:
        raise InvalidArgument(f"--depth {depth} is less than 0")

    from fusevol.driver import LocalDriver
    from fusevol.driver.contents import DirectoryShare

    async def work(driver: LocalDriver) -> list[DirectoryShare]:
        return await driver.contents.shares(await driver.resolve(name), path, depth=depth)

    found = _sorted(drive(work), sort)
    if json:
        print_json(found)
        return
    rows = [(format_size(share.used), format_size(share.size), str(share.inodes), share.path) for share in found]
    print_table(("USED", "SIZE", "INODES", "PATH"), rows, right=("USED", "SIZE", "INODES"))


def _sorted(shares: "list[DirectoryShare]", order: Order) -> "list[DirectoryShare]":
    """Those in one directory sorted among each other, each followed by what is in it."""
    keys: dict[str, tuple[tuple[int, str], ...]] = {}
    for share in shares:
        own = 0 if order is Order.NAME else -int(getattr(share, order.value))
        above = keys.get(share.path.rpartition("/")[0] or "/", ())
        keys[share.path] = (*above, (own, share.path))
    return sorted(shares, key=lambda share: keys[share.path])
