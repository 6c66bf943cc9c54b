"""fusevol ls."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, LabelOption
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive
from fusevol.forms.labels import parse_labels
from fusevol.sizes import format_size

__all__ = ["ls"]


def ls(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Only names that match this, with * and ? as in a shell.")
    ] = None,
    label: LabelOption = None,
    json: JsonOption = False,
) -> None:
    """List the volumes.

    With --label, those that have all of these labels. The number of snapshots does not count those that were taken
    through a mount since another command last looked.

    Example:

    \b
      fusevol ls
      fusevol ls 'web-*' --label app=shop --json
    """
    labels = parse_labels(label or ())

    from fnmatch import fnmatchcase

    from fusevol.driver import LocalDriver
    from fusevol.driver.attachment import believed
    from fusevol.forms.objects import VolumeObject, volume_object

    async def work(driver: LocalDriver) -> list[VolumeObject]:
        return [
            await volume_object(driver, believed(volume), count)
            for volume, count in await driver.store.volumes()
            if (pattern is None or fnmatchcase(volume.locator.name, pattern))
            and labels.items() <= volume.locator.volume_labels.items()
        ]

    found = drive(work)
    if json:
        print_json(found)
        return
    rows = [
        (
            volume.name,
            format_size(volume.size) if volume.size else "-",
            volume.state,
            ", ".join(volume.mounted_on) or "-",
            str(volume.snapshots),
            volume.pool,
            volume.created,
        )
        for volume in found
    ]
    columns = ("NAME", "SIZE", "STATE", "MOUNTED ON", "SNAPSHOTS", "POOL", "CREATED")
    print_table(columns, rows, right=("SIZE", "SNAPSHOTS"))
