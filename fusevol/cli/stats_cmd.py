"""fusevol stats."""

from typing import Any

from fusevol.cli.options import JsonOption, NameArgument
from fusevol.cli.output import print_fields, print_json
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

__all__ = ["stats"]

_BYTES = ("read_bytes", "write_bytes", "bytes_used")


def stats(name: NameArgument, json: JsonOption = False) -> None:
    """Show what a mounted volume has done so far.

    The counters begin with the mount, and are in the manner of /proc/diskstats.

    The same numbers are in the mount: cat .fusevol/stats, or getfattr -n user.fusevol.stats.

    Example:

    \b
      fusevol stats web
    """
    from fusevol.driver import LocalDriver

    async def work(driver: LocalDriver) -> dict[str, Any]:
        return await (await driver.mounting.control(await driver.resolve(name))).read_json("stats")

    found = drive(work)
    if json:
        print_json(found)
        return
    shown = {key: value for key, value in found.items() if isinstance(value, int)}
    print_fields(
        [(key.replace("_", " "), format_size(value) if key in _BYTES else str(value)) for key, value in shown.items()]
    )
