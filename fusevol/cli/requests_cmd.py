"""fusevol requests."""

from typing import Any

from fusevol.cli.options import JsonOption, NameArgument
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive

__all__ = ["requests"]


def requests(name: NameArgument, json: JsonOption = False) -> None:
    """Show the requests a mounted volume is serving.

    The oldest comes first; one that gets old says what a program waits for. The same is in the mount:
    cat .fusevol/requests.

    Example:

    \b
      fusevol requests web
    """
    from fusevol.driver import LocalDriver

    async def work(driver: LocalDriver) -> list[dict[str, Any]]:
        return await (await driver.mounting.control(await driver.resolve(name))).requests()

    found = drive(work)
    if json:
        print_json(found)
        return
    rows = [(str(item["number"]), item["operation"], str(item["inode"]), f"{item['age']:.3f}") for item in found]
    print_table(("NUMBER", "OPERATION", "INODE", "SECONDS"), rows, right=("NUMBER", "INODE", "SECONDS"))
