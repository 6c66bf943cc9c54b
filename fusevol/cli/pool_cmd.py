"""fusevol pool ls."""

from typing import Any

import typer

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

__all__ = ["make_app", "pool_ls"]


def make_app(context: dict[str, Any]) -> typer.Typer:
    """The group `pool`, with its commands."""
    app = typer.Typer(rich_markup_mode=None, help=_pool.__doc__, context_settings=context)
    app.callback()(_pool)
    app.command("ls", context_settings=context)(pool_ls)
    return app


def _pool() -> None:
    """Pools: where volumes are made.

    A pool is a backend and its parameters, under a name. The pool default keeps volumes in files, in the state
    directory; others are described in config.toml there.

    Example:

    \b
      [pools.fast]
      backend = "file"
      path = "/mnt/nvme/volumes"
    """


def pool_ls(json: JsonOption = False) -> None:
    """List the pools, and what is left on the disks under them.

    Example:

    \b
      fusevol pool ls
    """
    from fusevol.driver import LocalDriver
    from fusevol.driver.overview import PoolState

    async def work(driver: LocalDriver) -> list[PoolState]:
        return await driver.upkeep.pools()

    found = drive(work)
    if json:
        print_json(found)
        return
    rows = [
        (
            pool.name,
            pool.backend,
            str(pool.volumes),
            "-" if pool.free is None else format_size(pool.free),
            ", ".join(f"{key}={value}" for key, value in pool.attributes.items()) or "-",
            pool.error or "-",
        )
        for pool in found
    ]
    print_table(("NAME", "BACKEND", "VOLUMES", "FREE", "PARAMETERS", "ERROR"), rows, right=("VOLUMES", "FREE"))
