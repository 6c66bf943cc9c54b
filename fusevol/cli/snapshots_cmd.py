"""fusevol snapshots."""

from fusevol.cli.options import JsonOption, NameArgument
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive

__all__ = ["snapshots"]


def snapshots(name: NameArgument, json: JsonOption = False) -> None:
    """List the snapshots of a volume, oldest first.

    Automatic ones are taken by a restore, of what was there before, by schedule, and for a clone or a copy of the live
    volume.

    Example:

    \b
      fusevol snapshots web
    """
    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import SnapshotObject, snapshot_object

    async def work(driver: LocalDriver) -> list[SnapshotObject]:
        volume = await driver.resolve(name)
        return [snapshot_object(volume, snapshot) for snapshot in await driver.snapshots.of(volume)]

    found = drive(work)
    if json:
        print_json(found)
        return
    rows = [
        (
            f"{snapshot.volume}@{snapshot.name}",
            snapshot.created,
            "yes" if snapshot.automatic else "no",
            ", ".join(f"{key}={value}" for key, value in sorted(snapshot.labels.items())) or "-",
            ", ".join(snapshot.mounted_on) or "-",
        )
        for snapshot in found
    ]
    print_table(("NAME", "CREATED", "AUTOMATIC", "LABELS", "MOUNTED ON"), rows)
