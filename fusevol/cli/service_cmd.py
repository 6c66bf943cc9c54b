"""fusevol service."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fusevol.cli.serve_cmd import PLUGIN_SOCKET
from fusevol.cli.settings import home

__all__ = ["make_app"]

_Arguments = Annotated[
    list[str] | None,
    typer.Argument(metavar="[-- OPTION...]", help="Options of fusevol serve.", show_default=False),
]
_Root = Annotated[
    Path, typer.Option(metavar="DIR", help="Put the units under this directory, for a package; nothing is started.")
]
_Socket = Annotated[Path, typer.Option(metavar="PATH", help="Where dockerd finds the volume plugin.")]
_Dry = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def make_app(context: Mapping[str, Any]) -> typer.Typer:
    """`fusevol service` and what is under it."""
    app = typer.Typer(rich_markup_mode=None, context_settings=dict(context), help="Have systemd run fusevol serve.")
    for name, function in (("show", _show), ("install", _install), ("remove", _remove)):
        app.command(name, context_settings=dict(context))(function)
    return app


def _units(plugin_socket: Path, arguments: list[str] | None) -> dict[str, str]:
    from fusevol.cli.app import check_arguments
    from fusevol.daemon.service import units

    check_arguments("serve", arguments or [])
    program = Path(sys.executable).with_name("fusevol")
    return units(program, home().path, plugin_socket.absolute(), arguments or [])


def _show(arguments: _Arguments = None, plugin_socket: _Socket = PLUGIN_SOCKET) -> None:
    """Print the units.

    Example:

    \b
      fusevol service show
    """
    for name, text in _units(plugin_socket, arguments).items():
        print(f"# {name}\n{text}")


def _install(
    arguments: _Arguments = None,
    plugin_socket: _Socket = PLUGIN_SOCKET,
    root: _Root = Path("/"),
    dry_run: _Dry = False,
) -> None:
    """Install fusevol serve as a service that starts before Docker, and start it.

    Each step is printed before it is taken; where one fails, those before it are undone. Doing it again changes the
    settings. The service uses the state directory that this command does.

    Example:

    \b
      fusevol service install --dry-run
      fusevol service install -- --listen 127.0.0.1:7070 --token-file /etc/fusevol.token
    """
    from fusevol.daemon.service import Installer

    Installer(print, root=root.absolute(), dry=dry_run).install(_units(plugin_socket, arguments))


def _remove(root: _Root = Path("/"), dry_run: _Dry = False) -> None:
    """Stop the service and remove it. Mounts and data stay.

    Example:

    \b
      fusevol service remove
    """
    from fusevol.daemon.service import Installer

    if not Installer(print, root=root.absolute(), dry=dry_run).remove():
        print("nothing is installed")
