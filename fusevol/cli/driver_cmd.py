"""fusevol driver ls."""

from typing import Any

import typer

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_json, print_table

__all__ = ["driver_ls", "make_app"]


def make_app(context: dict[str, Any]) -> typer.Typer:
    """The group `driver`, with its commands."""
    app = typer.Typer(rich_markup_mode=None, help=_driver.__doc__, context_settings=context)
    app.callback()(_driver)
    app.command("ls", context_settings=context)(driver_ls)
    return app


def _driver() -> None:
    """Drivers: what programs can take volumes from.

    Packages bring volume drivers along (docs/driver.md); config.toml in the state directory has the parameters
    that programs are given them with. The commands of fusevol itself are those of the driver local.

    Example:

    \b
      [drivers.shelf]
      url = "http://shelf:9000"
    """


def driver_ls(json: JsonOption = False) -> None:
    """List the volume drivers that are installed or configured.

    Those that are configured are tried, so that mistakes show here.

    Example:

    \b
      fusevol driver ls
    """
    import trio

    from fusevol.cli.settings import home
    from fusevol.driver.installed import driver_states

    found = trio.run(driver_states, home())
    if json:
        print_json(found)
        return
    rows = [
        (
            state.name,
            ", ".join(state.packages) or "-",
            "yes" if state.configured else "no",
            str(state.volumes) if state.type else "-",
            ", ".join(f"{key}={value}" for key, value in state.parameters.items()) or "-",
            state.error or "-",
        )
        for state in found
    ]
    print_table(("NAME", "PACKAGE", "CONFIGURED", "VOLUMES", "PARAMETERS", "ERROR"), rows, right=("VOLUMES",))
