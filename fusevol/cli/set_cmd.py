"""fusevol set."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, LabelOption, NameArgument, SizeOption
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive
from fusevol.cli.spec_options import (
    GroupOption,
    OptOption,
    ReadaheadOption,
    SnapIntervalOption,
    SnapScheduleOption,
    ThrottleOption,
)
from fusevol.errors import InvalidArgument
from fusevol.forms.labels import parse_labels, with_labels
from fusevol.forms.options import option_texts, parse_create_options, throttle_texts

__all__ = ["set_"]


def set_(
    name: NameArgument,
    size: SizeOption = None,
    label: LabelOption = None,
    sticky: Annotated[bool | None, typer.Option("--sticky/--no-sticky", help="Whether deleting it is refused.")] = None,
    snap_interval: SnapIntervalOption = None,
    snap_schedule: SnapScheduleOption = None,
    throttle: ThrottleOption = None,
    readahead: ReadaheadOption = None,
    group: GroupOption = None,
    keep: Annotated[
        bool, typer.Option("--no-ephemeral", help="Keep what an ephemeral volume holds, from now on.")
    ] = False,
    option: OptOption = None,
    json: JsonOption = False,
) -> None:
    """Change what a volume is to be like.

    Labels are added to those it has; KEY= removes one. A volume can grow at any time, and shrink to what it holds.
    Schedules and bounds hold at once, also where it is mounted; mount options with the next mount. An empty schedule
    or group is none.

    Example:

    \b
      fusevol set web --size 20G --label tier=gold --label old=
      fusevol set web --no-sticky
      fusevol set web --snap-schedule 'daily=03:00,7' --throttle read_iops=500,write_bw_mbytes=50
    """
    labels = parse_labels(label or (), empty=True)
    flags = {
        "size": size, "sticky": sticky, "group": group, "readahead": readahead, "snap_interval": snap_interval,
        "snap_schedule": snap_schedule, "ephemeral": False if keep else None,
    }  # fmt: skip
    texts = [*option_texts(option, flags), *throttle_texts(throttle)]
    if not texts and not labels:
        raise InvalidArgument("there is nothing to change", hint="fusevol set --help lists what can be")
    options = parse_create_options(texts, empty=True)
    for key, value in (("pool", options.pool), ("from", options.source)):
        if value is not None:
            raise InvalidArgument(f"option {key!r} can only be given when a volume is made")
    labels = with_labels(labels, options.labels)

    from fusevol.api import LocatorUpdate, SpecUpdate
    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import VolumeObject, volume_object

    async def work(driver: LocalDriver) -> VolumeObject:
        volume = await driver.resolve(name)
        wanted = options.applied_to(volume.spec)
        changes = {
            field: getattr(wanted, field)
            for field in SpecUpdate.__struct_fields__
            if getattr(wanted, field) != getattr(volume.spec, field)
        }
        await driver.set(volume.id, LocatorUpdate(volume_labels=labels), SpecUpdate(**changes))
        return await volume_object(driver, await driver.resolve(volume.id))

    changed = drive(work)
    if json:
        print_json(changed)
    else:
        print(f'volume "{changed.name}" is changed')
