"""fusevol snapshot."""

from fusevol.cli.options import JsonOption, LabelOption, RefArgument, parse_labels
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["snapshot"]


def snapshot(ref: RefArgument, label: LabelOption = None, json: JsonOption = False) -> None:
    """Take a snapshot of a volume. It takes no time and no space, whatever the volume's size.

    It holds everything written before the command, also on a mounted volume that is in use.

    Example:

    \b
      fusevol snapshot web@before --label why=upgrade
    """
    labels = parse_labels(label)

    from fusevol.api import VolumeLocator
    from fusevol.cli.objects import SnapshotObject, snapshot_object
    from fusevol.cli.refs import parse_snapshot_ref
    from fusevol.driver import LocalDriver

    volume_name, name = parse_snapshot_ref(ref)

    async def work(driver: LocalDriver) -> SnapshotObject:
        volume = await driver.resolve(volume_name)
        made = await driver.snapshot(volume.id, readonly=True, locator=VolumeLocator(name=name, volume_labels=labels))
        return snapshot_object(volume, await driver.snapshots.find(volume, made))

    made = drive(work)
    if json:
        print_json(made)
    else:
        print(f'snapshot "{made.volume}@{made.name}" is taken')
