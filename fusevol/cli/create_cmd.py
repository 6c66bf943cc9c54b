"""fusevol create."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, LabelOption, SizeOption, parse_labels
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["create"]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new volume.")],
    size: SizeOption = None,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Pool to make it in; otherwise the one called default.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="VOL[@SNAP]", help="Make it a clone of this volume or snapshot."),
    ] = None,
    label: LabelOption = None,
    sticky: Annotated[bool, typer.Option("--sticky", help="Refuse to delete it until that is taken back.")] = False,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="A volume of that name, size and parent that exists is fine.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a volume.

    It takes up next to nothing at first, whatever its size; its filesystem is made when it is first mounted. Names
    have 1 to 128 letters, digits, '_', '.' and '-'.

    A clone (--from) shares all blocks with what it was made from until they are overwritten, so making one takes
    no time, whatever its size. It has the size and the labels of that, unless others are given.

    Example:

    \b
      fusevol create web --size 10G --label app=shop
      fusevol create web-test --from web@before
    """
    labels = parse_labels(label)

    from fusevol.api import Source, VolumeLocator, VolumeSpec
    from fusevol.cli.objects import VolumeObject, volume_object
    from fusevol.driver import LocalDriver
    from fusevol.driver.context import POOL_LABEL

    if pool is not None:
        labels[POOL_LABEL] = pool

    async def work(driver: LocalDriver) -> VolumeObject:
        parent = Source(parent=(await driver.resolve(source)).id) if source is not None else None
        locator = VolumeLocator(name=name, volume_labels=labels)
        volume_id = await driver.create(locator, parent, VolumeSpec(size=size or 0, sticky=sticky), exist_ok=exist_ok)
        return await volume_object(driver, await driver.resolve(volume_id))

    made = drive(work)
    if json:
        print_json(made)
    else:
        print(f'volume "{made.name}" is ready')
