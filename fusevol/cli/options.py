"""Options and arguments that several commands take."""

import contextlib
from typing import Annotated

import typer

from fusevol.sizes import parse_size

__all__ = ["JsonOption", "LabelOption", "NameArgument", "RefArgument", "SizeOption", "complete_pool", "complete_volume"]


def complete_volume(incomplete: str) -> list[str]:
    """Names of volumes, for the shell's completion. Whatever goes wrong, it is not said there."""
    import trio

    from fusevol.cli.settings import home
    from fusevol.errors import FusevolError
    from fusevol.store import SqliteStore

    async def names() -> list[str]:
        store = SqliteStore(home().database, wait=0.5)
        try:
            return [volume.locator.name for volume, _ in await store.volumes()]
        finally:
            await store.aclose()

    with contextlib.suppress(FusevolError, OSError):
        if home().database.exists():
            return [name for name in trio.run(names) if name.startswith(incomplete)]
    return []


def complete_pool(incomplete: str) -> list[str]:
    """Names of pools, likewise."""
    from fusevol.cli.settings import home
    from fusevol.errors import FusevolError

    with contextlib.suppress(FusevolError):
        return [name for name in home().config.pools if name.startswith(incomplete)]
    return []


def _parse_size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, as docs/cli.md describes it.")]
NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="Name or id of a volume.", autocompletion=complete_volume)
]
RefArgument = Annotated[
    str, typer.Argument(metavar="VOL@SNAP", help="A volume, and a snapshot of it.", autocompletion=complete_volume)
]
SizeOption = Annotated[
    int | None,
    typer.Option(
        "--size",
        metavar="SIZE",
        parser=_parse_size,
        help="How much it may hold: 10G, 512MiB, or a number of bytes; 0 for no limit.",
    ),
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="A label; may be given several times.")
]
