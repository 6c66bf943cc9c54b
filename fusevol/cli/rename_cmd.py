"""fusevol rename."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, NameArgument
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["rename"]


def rename(
    name: NameArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    json: JsonOption = False,
) -> None:
    """Give a volume another name. Its id, snapshots and clones stay; it may be mounted.

    Example:

    \b
      fusevol rename web shop
    """
    from fusevol.api import LocatorUpdate
    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import VolumeObject, volume_object

    async def work(driver: LocalDriver) -> VolumeObject:
        volume = await driver.resolve(name)
        await driver.set(volume.id, LocatorUpdate(name=new), None)
        return await volume_object(driver, await driver.resolve(volume.id))

    changed = drive(work)
    if json:
        print_json(changed)
    else:
        print(f'volume "{name}" is called "{changed.name}" now')
