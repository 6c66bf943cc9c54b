"""fusevol restore."""

from fusevol.cli.options import JsonOption, RefArgument
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["restore"]


def restore(ref: RefArgument, json: JsonOption = False) -> None:
    """Turn a volume to one of its snapshots, in place and at once.

    What was there before is kept as a snapshot of its own, which the command names; restore that to undo it. Only where
    that was an unfinished copy of another volume, nothing is kept of it.

    Example:

    \b
      fusevol restore web@before
    """
    from fusevol.cli.refs import parse_snapshot_ref
    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import SnapshotObject, snapshot_object

    volume_name, name = parse_snapshot_ref(ref)

    async def work(driver: LocalDriver) -> tuple[str, SnapshotObject | None]:
        volume = await driver.resolve(volume_name)
        snapshot = await driver.snapshots.find(volume, name)
        kept = await driver.restore_keeping(volume.id, snapshot.id)
        return volume.locator.name, snapshot_object(volume, kept) if kept else None

    found, kept = drive(work)
    if json:
        print_json({"volume": found, "restored": name, "kept": kept})
    else:
        before = f'what was there before is "{found}@{kept.name}"' if kept else "the unfinished copy is given up"
        print(f'volume "{found}" is as it was at "{name}"; {before}')
