"""fusevol copy."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, complete_pool, complete_volume
from fusevol.cli.output import print_json, progress
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

__all__ = ["copy"]


def copy(
    source: Annotated[str, typer.Argument(metavar="VOL[@SNAP]", help="What to copy.", autocompletion=complete_volume)],
    target: Annotated[
        str,
        typer.Argument(metavar="COPY", help="The copy; it is made if there is none.", autocompletion=complete_volume),
    ],
    pool: Annotated[
        str,
        typer.Option(
            metavar="POOL", help="Pool to make it in; otherwise the one called default.", autocompletion=complete_pool
        ),
    ] = "",
    only: Annotated[bool, typer.Option("--only", help="Without the snapshots before it.")] = False,
    json: JsonOption = False,
) -> None:
    """Copy a volume, or bring a copy of it up to date.

    A copy has the volume's snapshots, and can be in another pool, as a backup. All data is read, verified and written
    again, so it depends on nothing, unlike a clone. The next time only what was written since then is copied. Of a
    volume, which may be mounted and in use, a snapshot is taken for this, which stays until the next copy. Snapshots
    that the copy has stay there when they are deleted in the source; it has no schedule of its own.

    A copy that was interrupted goes on with the same command; until then it cannot be mounted, but its snapshots
    can. To give it up, restore it to one of them. One that was written to since is refused.

    Example:

    \b
      fusevol copy web web-backup --pool far
      fusevol copy web-backup@daily-20261121-0300 web-old
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.copying import Copied

    async def work(driver: LocalDriver) -> Copied:
        found = await driver.resolve(source)
        with progress(f"copy {source}") as tell:
            return await driver.copying.copy(found, target, pool=pool, only=only, tell=tell)

    done = drive(work)
    name = done.volume.locator.name
    if json:
        print_json({"volume": name, "source": str(done.source), "copied": done.copied, "written": done.written})
        return
    count = len(done.copied)
    what = f"{count} snapshot{'s' if count > 1 else ''}, {format_size(done.written)}" if count else "nothing was new"
    print(f'volume "{name}" is a copy of "{done.source}": {what}')
