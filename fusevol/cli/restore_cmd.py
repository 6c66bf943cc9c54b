"""fusevol restore."""

from fusevol.cli.options import JsonOption, RefArgument
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["restore"]


def restore(ref: RefArgument, json: JsonOption = False) -> None:
    """Turn a volume to one of its snapshots, in place and at once.

    What was there before is kept as a snapshot of its own, which the command names; restore that to undo it.

    Example:

    \b
      fusevol restore web@before
    """
    from fusevol.cli.refs import parse_snapshot_ref
    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import SnapshotObject, snapshot_object

    volume_name, name = parse_snapshot_ref(ref)

    async def work(driver: LocalDriver) -> SnapshotObject:
        volume = await driver.resolve(volume_name)
        snapshot = await driver.snapshots.find(volume, name)
        return snapshot_object(volume, await driver.restore_keeping(volume.id, snapshot.id))

    kept = drive(work)
    if json:
        print_json({"volume": kept.volume, "restored": name, "kept": kept})
    else:
        print(f'volume "{kept.volume}" is as it was at "{name}"; what was there before is "{kept.volume}@{kept.name}"')
