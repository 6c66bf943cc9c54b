"""All commands. A new one is a module `<name>_cmd`, and a line here."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from fusevol.cli import (
    check_cmd,
    clone_cmd,
    completion_cmd,
    copy_cmd,
    create_cmd,
    diff_cmd,
    driver_cmd,
    du_cmd,
    gc_cmd,
    import_cmd,
    inspect_cmd,
    ls_cmd,
    mount_cmd,
    pool_cmd,
    provision_cmd,
    rename_cmd,
    requests_cmd,
    restore_cmd,
    rm_cmd,
    scrub_cmd,
    serve_cmd,
    service_cmd,
    set_cmd,
    snapshot_cmd,
    snapshots_cmd,
    stats_cmd,
    status_cmd,
    top_cmd,
    umount_cmd,
    usage_cmd,
)
from fusevol.cli.completion_cmd import COMPLETION_VARIABLE
from fusevol.cli.settings import choose_home

__all__ = ["check_arguments", "make_app"]

_COMMANDS: dict[str, Callable[..., None]] = {
    "create": create_cmd.create,
    "ls": ls_cmd.ls,
    "inspect": inspect_cmd.inspect,
    "import": import_cmd.import_,
    "provision": provision_cmd.provision,
    "rename": rename_cmd.rename,
    "set": set_cmd.set_,
    "rm": rm_cmd.rm,
    "mount": mount_cmd.mount,
    "umount": umount_cmd.umount,
    "snapshot": snapshot_cmd.snapshot,
    "snapshots": snapshots_cmd.snapshots,
    "restore": restore_cmd.restore,
    "clone": clone_cmd.clone,
    "copy": copy_cmd.copy,
    "diff": diff_cmd.diff,
    "du": du_cmd.du,
    "usage": usage_cmd.usage,
    "stats": stats_cmd.stats,
    "requests": requests_cmd.requests,
    "top": top_cmd.top,
    "check": check_cmd.check,
    "scrub": scrub_cmd.scrub,
    "gc": gc_cmd.gc,
    "status": status_cmd.status,
    "serve": serve_cmd.serve,
    "completion": completion_cmd.completion,
}


def make_app() -> typer.Typer:
    """The command line interface, with all its commands."""
    context = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(
        # Answering the shell is switched on only when it asks; the options for it are a command of ours.
        add_completion=COMPLETION_VARIABLE in os.environ,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=context,
    )
    app.callback()(_fusevol)
    for name, function in _COMMANDS.items():
        app.command(name, context_settings=context)(function)
    app.add_typer(pool_cmd.make_app(context), name="pool")
    app.add_typer(driver_cmd.make_app(context), name="driver")
    app.add_typer(service_cmd.make_app(context), name="service")
    return app


def check_arguments(command: str, arguments: list[str]) -> None:
    """Raise the error of usage that a command would, with these arguments, without running it."""
    # Of click's, which is a part of newer versions of typer.
    group: Any = typer.main.get_command(make_app())
    with group.commands[command].make_context(f"fusevol {command}", list(arguments)):
        pass


def _version(wanted: bool) -> None:
    if wanted:
        from fusevol import __version__

        print(f"fusevol {__version__}")
        raise typer.Exit


def _fusevol(
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="State directory. Otherwise $FUSEVOL_HOME; /var/lib/fusevol for root; "
            "$XDG_STATE_HOME/fusevol (~/.local/state/fusevol) for others.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Volumes with instant snapshots, clones and restore, on dumb storage.

    VOL@SNAP names a snapshot wherever a volume or snapshot can be named. Volumes are named by name or id. What a
    command prints is a table for people, or with --json an object for programs. Errors are one line on stderr, and
    a hint where there is one thing to do next; the exit status is then 1, or 2 where the command line is at fault.

    Example:

    \b
      fusevol create web --size 10G
      fusevol snapshot web@before
      fusevol restore web@before
    """
    choose_home(home)
