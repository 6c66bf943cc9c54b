"""fusevol rm."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, complete_volume
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["rm"]


def rm(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME[@SNAP]...", help="Volumes and snapshots to delete.", autocompletion=complete_volume
        ),
    ],
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Delete a volume together with its snapshots.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Delete volumes or snapshots, and all they hold. There is no way back.

    A volume that has snapshots is deleted only with --snapshots; one that is mounted, sticky or has clones is not
    deleted at all. Several are deleted in the order given, up to the first that cannot be.

    Example:

    \b
      fusevol rm web@before
      fusevol rm --snapshots web web-test
    """
    from fusevol.api import parse_volume_ref
    from fusevol.driver import LocalDriver

    refs = [parse_volume_ref(name) for name in names]

    async def work(driver: LocalDriver) -> None:
        for ref in refs:
            found = await driver.resolve(ref)
            await driver.delete(found.id, with_snapshots=snapshots)
            if not json:
                print(f'{"snapshot" if ref.snapshot else "volume"} "{ref}" is deleted', flush=True)

    drive(work)
    if json:
        print_json({"deleted": [str(ref) for ref in refs]})
