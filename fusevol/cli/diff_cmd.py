"""fusevol diff."""

from typing import TYPE_CHECKING, Annotated

import typer

from fusevol.cli.options import JsonOption, complete_volume
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive

if TYPE_CHECKING:
    from fusevol.driver.contents import FileChange

__all__ = ["diff"]

_SIGNS = {"added": "+", "removed": "-", "renamed": "R", "changed": "M"}


def diff(
    old: Annotated[
        str, typer.Argument(metavar="VOL@A", help="A snapshot, or a volume.", autocompletion=complete_volume)
    ],
    new: Annotated[
        str | None,
        typer.Argument(
            metavar="[VOL@B]", help="Another one of it; otherwise the volume as it is now.",
            autocompletion=complete_volume,
        ),
    ] = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Show what files differ between two snapshots.

    \b
      +  there is a new name      M  the file is another: content, mode, owner, group, device, mtime, xattrs
      -  a name is gone           R  a name has become another one

    No file is read: what differs is in the metadata, and in the checksums of blocks. So it takes as long as there are
    changes, whatever the size of the volume, and works on mounted volumes. Times of access are not compared, and a
    time of change is not shown where the content, or the names in a directory, are others. What is in a directory
    that was renamed is not shown for that alone. Of names, a backslash is shown as two, and what cannot be printed as
    \\xNN.

    Example:

    \b
      fusevol diff web@before web@after
      fusevol diff web@before
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.contents import FileChange

    async def work(driver: LocalDriver) -> list[FileChange]:
        before = await driver.resolve(old)
        other = new if new is not None else before.source.parent if before.is_snapshot else before.id
        return await driver.contents.diff(before, await driver.resolve(other))

    found = drive(work)
    if json:
        print_json(found)
    elif found:
        print_table(("", "KIND", "PATH", "CHANGED"), [_row(change) for change in found])


def _row(change: "FileChange") -> tuple[str, ...]:
    path = change.path if change.old_path is None else f"{change.old_path} -> {change.path}"
    words = (["content"] if change.content else []) + list(change.attributes)
    return (_SIGNS[change.change], change.kind, path, ", ".join(words) or "-")
