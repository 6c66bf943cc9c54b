"""fusevol umount."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive
from fusevol.errors import VolumeDetached

__all__ = ["umount"]


def umount(
    target: Annotated[
        str, typer.Argument(metavar="NAME[@SNAP]|PATH", help="The volume or snapshot, or where it is mounted.")
    ],
    json: JsonOption = False,
) -> None:
    """Unmount a volume. When this returns without an error, everything written to it is durable.

    Example:

    \b
      fusevol umount web
      fusevol umount /mnt/web
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.mounting import resolved
    from fusevol.driver.mounts import is_ours, mount_at
    from fusevol.forms.objects import display_name, kind_of

    async def work(driver: LocalDriver) -> dict[str, str]:
        if "/" in target or target in (".", ".."):
            volume_id, path = await driver.mounting.mounted_at(target), target
            if not volume_id:
                if is_ours(mount_at(await resolved(target))):
                    raise VolumeDetached(f"what is mounted on {target} has no record here", hint=f"umount {target}")
                raise VolumeDetached(f"no volume is mounted on {target}")
        else:
            volume_id, path = (await driver.resolve(target)).id, ""
        volume = await driver.store.get_vol(volume_id)
        await driver.mounting.unmount(volume_id, path)
        return {"id": volume_id, "name": await display_name(driver, volume)}

    done = drive(work)
    if json:
        print_json(done)
    else:
        print(f'{kind_of(done["name"])} "{done["name"]}" is unmounted')
