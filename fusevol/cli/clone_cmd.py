"""fusevol clone."""

from typing import Annotated

import typer

from fusevol.cli.create_cmd import create
from fusevol.cli.options import JsonOption, LabelOption, SizeOption, complete_volume

__all__ = ["clone"]


def clone(
    source: Annotated[str, typer.Argument(metavar="VOL[@SNAP]", help="What to clone.", autocompletion=complete_volume)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Name of the new volume.")],
    size: SizeOption = None,
    label: LabelOption = None,
    json: JsonOption = False,
) -> None:
    """Make a writable copy of a volume or snapshot.

    It shares all blocks with that until they are overwritten, so it takes no time, whatever the size. The same as
    `fusevol create NEW --from VOL[@SNAP]`.

    Example:

    \b
      fusevol clone web@before web-test
    """
    create(new, size=size, pool=None, source=source, label=label, sticky=False, exist_ok=False, json=json)
