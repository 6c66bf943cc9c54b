"""fusevol gc."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, complete_volume
from fusevol.cli.output import print_json, print_table, progress
from fusevol.cli.settings import drive
from fusevol.errors import FusevolError
from fusevol.sizes import format_size

__all__ = ["gc"]


def gc(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Volumes; otherwise all of them.", autocompletion=complete_volume),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Give back dead space, and remove leftovers.

    Volumes give space back by themselves as they are written; this does it to the last block, now; of
    mounted volumes through their mount. Leftovers are what an interrupted command made and did not finish, and,
    without names, mounts whose process is gone. A volume that cannot be reached does not keep the others from it; the
    exit status is 1 then.

    Example:

    \b
      fusevol gc
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.reconciliation import reconcile, sweep
    from fusevol.driver.upkeep import REMOVED, Reclaimed

    async def work(driver: LocalDriver) -> tuple[list[Reclaimed], bool]:
        done, failed = [], False
        if names:
            volumes = [await driver.resolve(name) for name in names]
        else:
            found = await reconcile(driver.context, driver.snapshots)
            done += [Reclaimed(name=name, note=REMOVED) for name in found.removed]
            done += [Reclaimed(name=path, note="unmounted: its process was gone") for path in found.unmounted]
            volumes = [volume for volume, _ in await driver.store.volumes()]
        with progress("gc", unit="volumes") as tell:
            for number, volume in enumerate(volumes):
                tell(number, len(volumes))
                try:
                    done.append(await driver.upkeep.gc(volume))
                except FusevolError as error:
                    if names:
                        raise
                    done.append(Reclaimed(name=volume.locator.name, note=f"failed: {error}"))
                    failed = True
        if not names:
            # Last: of what was given back the stores tell their disks.
            await sweep(driver.context)
        return done, failed

    done, failed = drive(work)
    if json:
        print_json(done)
    else:
        rows = [(item.name, format_size(item.freed), item.note or "-") for item in done]
        print_table(("NAME", "FREED", "NOTE"), rows, right=("FREED",))
    if failed:
        raise typer.Exit(1)
