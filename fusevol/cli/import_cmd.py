"""fusevol import."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fusevol.cli.options import JsonOption, complete_pool
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive
from fusevol.errors import FusevolError
from fusevol.sizes import format_size

if TYPE_CHECKING:
    from fusevol.driver import LocalDriver
    from fusevol.driver.importing import Importable

__all__ = ["import_"]


def import_(
    volume: Annotated[
        str | None, typer.Argument(metavar="[VOLUME]", help="Its id, or what it was called; otherwise they are listed.")
    ] = None,
    new: Annotated[str | None, typer.Argument(metavar="[NEW]", help="What it is to be called here.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every volume that has no problem.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also from a process that cannot be seen; if it has ended for sure.")
    ] = False,
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="Look into this pool alone.", autocompletion=complete_pool)
    ] = "",
    json: JsonOption = False,
) -> None:
    """Make records of volumes in pools that have none here.

    Without arguments they are listed. So volumes come back when the state directory was lost, or come to another host
    that has the same pool. Their data is not touched, and their snapshots are there again. Name, labels and settings
    are as they were. One that another host has open can be imported, but not mounted until it is unmounted there. One
    with a problem can be imported by its id, with a new name. With --all, those that cannot be imported do not keep the
    others from it; the exit status is 1 then.

    Example:

    \b
      fusevol import
      fusevol import web
      fusevol import 6f0a4f1e-2b7c-4f39-8d53-9c1e5a7b2d40 shop
      fusevol import --all
    """
    if everything and volume is not None:
        raise typer.BadParameter("--all goes without a volume")
    if force and not everything and volume is None:
        raise typer.BadParameter("--force needs a volume, or --all")

    from fusevol.forms.objects import ImportObject, import_object

    async def work(driver: "LocalDriver") -> list[ImportObject]:
        found = await driver.importing.found(pool)
        if volume is None and not everything:
            return [import_object(item) for item in found]
        wanted = found if volume is None else [_the_one(found, volume)]
        done = []
        for item in wanted:
            if everything and item.problem:
                done.append(import_object(item))
                continue
            try:
                record = await driver.importing.import_volume(item, new or "", force=force)
                done.append(import_object(item, imported=record.locator.name))
            except FusevolError as error:
                if not everything:
                    raise
                done.append(import_object(item, failed=str(error)))
        return done

    found = drive(work)
    if json:
        print_json(found)
    elif volume is None and not everything:
        rows = [
            (
                item.id,
                item.name or "-",
                item.pool,
                format_size(item.size) if item.size else "-",
                item.created or "-",
                item.held_by or "-",
                item.problem or "-",
            )
            for item in found
        ]
        print_table(("ID", "NAME", "POOL", "SIZE", "CREATED", "IN USE BY", "PROBLEM"), rows, right=("SIZE",))
    else:
        for item in found:
            if item.problem:
                print(f'fusevol: volume "{item.name or item.id}" is not imported: {item.problem}', file=sys.stderr)
            else:
                print(f'volume "{item.name}" is imported from pool "{item.pool}"')
    if everything and any(item.problem for item in found):
        raise typer.Exit(1)


def _the_one(found: "list[Importable]", volume: str) -> "Importable":
    from fusevol.errors import InvalidArgument, VolumeNotFound

    matching = [item for item in found if item.id == volume] or [item for item in found if item.name == volume]
    if not matching:
        raise VolumeNotFound(
            f'no pool has a volume "{volume}" without a record here', hint="to see those: fusevol import"
        )
    if len(matching) > 1:
        which = "say its --pool" if len({item.id for item in matching}) == 1 else "say the id of one"
        raise InvalidArgument(
            f'there are {len(matching)} volumes "{volume}" without a record',
            hint=f"{which}, as fusevol import lists it",
        )
    return matching[0]
