"""fusevol inspect."""

from typing import TYPE_CHECKING, Annotated

import typer

from fusevol.cli.options import JsonOption, complete_volume
from fusevol.cli.output import print_fields, print_json
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

if TYPE_CHECKING:
    from fusevol.forms.objects import VolumeObject

__all__ = ["inspect"]


def inspect(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME[@SNAP]", help="A volume, or a snapshot of one.", autocompletion=complete_volume),
    ],
    json: JsonOption = False,
) -> None:
    """Show all there is to know of a volume or snapshot.

    Example:

    \b
      fusevol inspect web
      fusevol inspect web@before --json
    """
    from fusevol.api import parse_volume_ref
    from fusevol.driver import LocalDriver
    from fusevol.forms.objects import SnapshotObject, VolumeObject, snapshot_object, volume_object

    async def work(driver: LocalDriver) -> VolumeObject | SnapshotObject:
        found = await driver.resolve(parse_volume_ref(name))
        if found.is_snapshot:
            return snapshot_object(await driver.resolve(found.source.parent), found)
        return await volume_object(driver, found)

    found = drive(work)
    if json:
        print_json(found)
        return
    labels = "\n".join(f"{key}={value}" for key, value in sorted(found.labels.items())) or "-"
    if isinstance(found, SnapshotObject):
        fields = [
            ("name", found.name), ("id", found.id), ("volume", found.volume), ("created", found.created),
            ("automatic", "yes" if found.automatic else "no"), ("labels", labels),
            ("mounted on", "\n".join(found.mounted_on) or "-"),
        ]  # fmt: skip
    else:
        fields = [
            ("name", found.name), ("id", found.id), ("kind", found.kind), ("parent", found.parent or "-"),
            ("state", found.state), ("size", format_size(found.size) if found.size else "no limit"),
            ("pool", found.pool), ("labels", labels), ("sticky", "yes" if found.sticky else "no"),
            ("created", found.created), ("mounted on", "\n".join(found.mounted_on) or "-"),
            ("snapshots", str(found.snapshots)),
        ]  # fmt: skip
        if found.lease:
            unseen = "" if found.lease.life == "runs" else "; whether it still runs cannot be seen from here"
            fields.append(
                ("attached by", f"{found.lease.holder} of {found.lease.node}, since {found.lease.since}{unseen}")
            )
        fields += _extras(found)
        if found.mount_options:
            words = [f"{key}={value}" if value else key for key, value in found.mount_options.items()]
            fields.append(("mount options", ",".join(words)))
        if found.error:
            fields.append(("error", found.error))
    print_fields(fields)


def _extras(found: "VolumeObject") -> list[tuple[str, str]]:
    """What most volumes do not have."""
    fields = []
    if found.copied:
        fields.append(("copied as of", found.copied))
    if found.encrypted:
        fields.append(("encrypted", "yes"))
    if found.ephemeral:
        fields.append(("ephemeral", "yes"))
    if found.group:
        fields.append(("group", found.group))
    if found.snapshot_interval:
        fields.append(("snapshot interval", f"{found.snapshot_interval} min"))
    if found.snapshot_schedule:
        fields.append(("snapshot schedule", found.snapshot_schedule))
    if found.snapshot_interval or found.snapshot_schedule:
        fields.append(("next snapshot", found.next_snapshot or "when it is mounted"))
    if found.io_throttle:
        bounds = [f"{key}={value}" for key, value in found.io_throttle.items() if value]
        fields.append(("throttle", ",".join(bounds) or "-"))
    if not found.readahead:
        fields.append(("readahead", "no"))
    return fields
