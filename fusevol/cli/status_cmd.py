"""fusevol status."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_fields, print_json
from fusevol.cli.settings import drive

__all__ = ["status"]


def status(
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 where there are problems.")] = False,
    json: JsonOption = False,
) -> None:
    """Show how everything is, and what is wrong.

    Volumes, pools, what is in use, and problems that somebody should look at. The records are verified.

    Example:

    \b
      fusevol status
      fusevol status --check --json
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.overview import Overview, PoolState

    def line(pool: PoolState) -> str:
        return f"{pool.name} ({pool.backend}{', encrypted' if pool.encrypted else ''}): {pool.volumes} volumes"

    async def work(driver: LocalDriver) -> Overview:
        await driver.store.verify()
        return await driver.upkeep.overview()

    found = drive(work)
    if json:
        print_json(found)
    else:
        print_fields(
            [
                ("version", found.version),
                ("home", found.home),
                ("volumes", str(found.volumes)),
                ("snapshots", str(found.snapshots)),
                ("mounted", str(found.mounted)),
                ("in use", "\n".join(found.in_use) or "-"),
                ("pools", "\n".join(map(line, found.pools))),
                ("problems", "\n".join(found.problems) or "none"),
            ]
        )
    if check and found.problems:
        raise typer.Exit(1)
