"""fusevol provision."""

from typing import TYPE_CHECKING, Annotated

import typer

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

if TYPE_CHECKING:
    from fusevol.driver import LocalDriver
    from fusevol.storage import Provisioned

__all__ = ["provision"]


def provision(
    storage: Annotated[
        list[str], typer.Argument(metavar="NAME=DIRECTIVE...", help="What is wanted, and of what it is to be.")
    ],
    at: Annotated[
        str, typer.Option("--at", metavar="DIR", help="Mount each on the directory of its name in DIR.")
    ] = "",
    read_only: Annotated[bool, typer.Option("--read-only", help="Mount them read-only.")] = False,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take volumes of these names that were made in another way.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make the volumes that storage directives ask for.

    A directive is POOL, COUNT and SIZE in any order, joined by commas, as far as they are said: the pool is otherwise
    default, the count 1, and the size without a limit. SIZE is a number and M, G, T, P, E, Z or Y, of powers of 1024.
    The volumes of data are called data-0, data-1 and so on. One that is there already grows if it is smaller than that,
    and is otherwise left as it is, so the same command can be run at every start of a machine. Where some cannot be
    made or mounted, the others are, and the exit status is 1.

    Example:

    \b
      fusevol provision data=2,10G logs=far,500M --at /srv
    """
    if read_only and not at:
        raise typer.BadParameter("--read-only needs --at")

    from fusevol.storage import parse_directives_map
    from fusevol.storage import provision as provision_all

    async def work(driver: "LocalDriver") -> "list[Provisioned]":
        directives = parse_directives_map(storage, must_have_directives=True)
        return await provision_all(driver, directives, directory=at, read_only=read_only, adopt=adopt)

    found = drive(work)
    if json:
        print_json([_as_json(item) for item in found])
    else:
        rows = [
            (
                item.tag.id,
                item.name,
                item.pool,
                format_size(item.filesystem.size << 20) if item.filesystem and item.filesystem.size else "-",
                item.path or "-",
                "; ".join(filter(None, (str(item.error), item.error.hint))) if item.error else "-",
            )
            for item in found
        ]
        print_table(("STORAGE", "VOLUME", "POOL", "SIZE", "MOUNTED ON", "ERROR"), rows, right=("SIZE",))
    if any(item.error for item in found):
        raise typer.Exit(1)


def _as_json(item: "Provisioned") -> dict[str, object]:
    return {
        "storage": item.tag.id,
        "name": item.name,
        "id": item.filesystem.filesystem_id if item.filesystem else None,
        "pool": item.pool,
        "size": item.filesystem.size << 20 if item.filesystem else None,
        "path": item.path or None,
        "error": str(item.error) if item.error else None,
    }
