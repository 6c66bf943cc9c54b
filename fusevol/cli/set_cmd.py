"""fusevol set."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, LabelOption, NameArgument, SizeOption, parse_labels
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive
from fusevol.errors import InvalidArgument

__all__ = ["set_"]


def set_(
    name: NameArgument,
    size: SizeOption = None,
    label: LabelOption = None,
    sticky: Annotated[bool | None, typer.Option("--sticky/--no-sticky", help="Whether deleting it is refused.")] = None,
    json: JsonOption = False,
) -> None:
    """Change a volume's size, labels or stickiness.

    Labels are added to those it has; KEY= removes one. A volume can grow at any time, and shrink to what it holds.

    Example:

    \b
      fusevol set web --size 20G --label tier=gold --label old=
      fusevol set web --no-sticky
    """
    labels = parse_labels(label, empty=True)
    if size is None and not labels and sticky is None:
        raise InvalidArgument("there is nothing to change", hint="give --size, --label, --sticky or --no-sticky")

    from fusevol.api import UNSET, LocatorUpdate, SpecUpdate
    from fusevol.cli.objects import VolumeObject, volume_object
    from fusevol.driver import LocalDriver

    async def work(driver: LocalDriver) -> VolumeObject:
        volume = await driver.resolve(name)
        spec = SpecUpdate(size=UNSET if size is None else size, sticky=UNSET if sticky is None else sticky)
        await driver.set(volume.id, LocatorUpdate(volume_labels=labels), spec)
        return await volume_object(driver, await driver.resolve(volume.id))

    changed = drive(work)
    if json:
        print_json(changed)
    else:
        print(f'volume "{changed.name}" is changed')
