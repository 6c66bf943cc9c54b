"""fusevol status."""

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_fields, print_json
from fusevol.cli.settings import drive

__all__ = ["status"]


def status(json: JsonOption = False) -> None:
    """Show how everything is, and what is wrong.

    Volumes, pools, what is in use, and problems that somebody should look at. The records are verified. The exit
    status is 0 also where there are problems.

    Example:

    \b
      fusevol status
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.overview import Overview

    async def work(driver: LocalDriver) -> Overview:
        await driver.store.verify()
        return await driver.upkeep.overview()

    found = drive(work)
    if json:
        print_json(found)
        return
    print_fields(
        [
            ("version", found.version),
            ("home", found.home),
            ("volumes", str(found.volumes)),
            ("snapshots", str(found.snapshots)),
            ("mounted", str(found.mounted)),
            ("in use", "\n".join(found.in_use) or "-"),
            ("pools", "\n".join(f"{pool.name} ({pool.backend}): {pool.volumes} volumes" for pool in found.pools)),
            ("problems", "\n".join(found.problems) or "none"),
        ]
    )
