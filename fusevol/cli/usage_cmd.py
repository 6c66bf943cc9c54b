"""fusevol usage."""

from fusevol.cli.options import JsonOption, NameArgument
from fusevol.cli.output import print_fields, print_json, print_table
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

__all__ = ["usage"]


def usage(name: NameArgument, json: JsonOption = False) -> None:
    """Show what a volume and its snapshots take up, exact to 4 KiB.

    \b
      live          what its contents are
      inherited     of these, what it still shares with what it was cloned from
      data          what it holds itself: its contents and those of its snapshots
      in snapshots  of these, what only snapshots hold
      metadata      maps and records
      reclaimable   dead, to be given back; fusevol gc does it now
      total         data, metadata and reclaimable

    For a snapshot: all that it refers to, and what deleting it would give back.

    Example:

    \b
      fusevol usage web
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.upkeep import VolumeUsage

    async def work(driver: LocalDriver) -> VolumeUsage:
        return await driver.upkeep.usage(await driver.resolve(name), with_snapshots=True)

    used = drive(work)
    if json:
        print_json(used)
        return
    fields = ("live", "inherited", "data", "in_snapshots", "metadata", "reclaimable", "total")
    print_fields([(field.replace("_", " "), format_size(getattr(used, field))) for field in fields])
    if used.snapshots:
        print()
        rows = [(size.name, format_size(size.referenced), format_size(size.exclusive)) for size in used.snapshots]
        print_table(("SNAPSHOT", "REFERENCED", "EXCLUSIVE"), rows, right=("REFERENCED", "EXCLUSIVE"))
