"""fusevol snapshot."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption, LabelOption, complete_volume
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive
from fusevol.forms.labels import parse_labels

__all__ = ["snapshot"]


def snapshot(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="VOL@SNAP",
            help="A volume, and the snapshot's name; with --group the name alone.",
            autocompletion=complete_volume,
        ),
    ],
    label: LabelOption = None,
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Take one of each volume in this group, as one cut.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Take a snapshot of a volume. It takes no time and no space, whatever the volume's size.

    It holds everything written before the command, also on a mounted volume that is in use.

    With --group, the snapshots of all its volumes are of one moment, and all are taken or none: changes are held back
    on those that are mounted until the last is taken. What was synced on one volume before something was written to
    another is there if that is.

    Example:

    \b
      fusevol snapshot web@before --label why=upgrade
      fusevol snapshot --group shop nightly
    """
    labels = parse_labels(label or ())

    from fusevol.api import VolumeLocator
    from fusevol.cli.refs import parse_snapshot_ref
    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import SnapshotObject, snapshot_object

    async def one(driver: LocalDriver) -> list[SnapshotObject]:
        volume_name, name = parse_snapshot_ref(ref)
        volume = await driver.resolve(volume_name)
        made = await driver.snapshot(volume.id, readonly=True, locator=VolumeLocator(name=name, volume_labels=labels))
        return [snapshot_object(volume, await driver.snapshots.find(volume, made))]

    async def each(driver: LocalDriver) -> list[SnapshotObject]:
        made = await driver.snapshot_group(VolumeLocator(name=ref, volume_labels=labels), group=group or "")
        volumes, taken = await driver.inspect([*made]), await driver.inspect([*made.values()])
        of = {snapshot.source.parent: snapshot for snapshot in taken}
        found = [snapshot_object(volume, of[volume.id]) for volume in volumes if volume.id in of]
        return sorted(found, key=lambda snapshot: snapshot.volume)

    made = drive(one if group is None else each)
    if json:
        print_json(made[0] if group is None else made)
        return
    for snapshot in made:
        print(f'snapshot "{snapshot.volume}@{snapshot.name}" is taken')
