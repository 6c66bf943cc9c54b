"""fusevol create."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, LabelOption, SizeOption, complete_pool
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
from fusevol.forms.labels import parse_labels, with_labels
from fusevol.forms.options import option_texts, parse_create_options, throttle_texts

__all__ = ["create"]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new volume.")],
    size: SizeOption = None,
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="POOL", help="Pool to make it in; otherwise the one called default.", autocompletion=complete_pool
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="VOL[@SNAP]", help="Make it a clone of this volume or snapshot."),
    ] = None,
    label: LabelOption = None,
    option: OptOption = None,
    snap_interval: SnapIntervalOption = None,
    snap_schedule: SnapScheduleOption = None,
    throttle: ThrottleOption = None,
    readahead: ReadaheadOption = None,
    group: GroupOption = None,
    sticky: Annotated[bool, typer.Option("--sticky", help="Refuse to delete it until that is taken back.")] = False,
    ephemeral: Annotated[
        bool, typer.Option("--ephemeral", help="What it holds goes with its mount: it is empty when mounted again.")
    ] = False,
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

    Options (--opt) say the same in one form, for programs; and two of them how the volume is mounted where the mount
    itself does not say: control=rw|ro|off, mount=noatime,nosuid.

    Snapshots are taken by schedule while the volume is mounted: parts joined by ';', each with how many to keep.

    Example:

    \b
      fusevol create web --size 10G --label app=shop
      fusevol create web --opt size=10G --opt control=ro
      fusevol create web --snap-schedule 'daily=03:00,7;weekly=Sunday@04:00' --throttle write_bw_mbytes=50
      fusevol create web-test --from web@before
    """
    flags = {
        "size": size, "pool": pool, "from": source, "sticky": sticky or None, "ephemeral": ephemeral or None,
        "group": group, "readahead": readahead, "snap_interval": snap_interval, "snap_schedule": snap_schedule,
    }  # fmt: skip
    options = parse_create_options([*option_texts(option, flags), *throttle_texts(throttle)])
    options = options._replace(labels=with_labels(parse_labels(label or ()), options.labels))

    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import VolumeObject, volume_object

    async def work(driver: LocalDriver) -> VolumeObject:
        volume_id = await driver.create(*await options.request(driver, name), exist_ok=exist_ok)
        return await volume_object(driver, await driver.resolve(volume_id))

    made = drive(work)
    if json:
        print_json(made)
    else:
        print(f'volume "{made.name}" is ready')
