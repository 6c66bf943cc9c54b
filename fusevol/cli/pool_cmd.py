"""fusevol pool ls, add, rm and key."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusevol.cli.options import JsonOption, complete_pool
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive
from fusevol.sizes import format_size

if TYPE_CHECKING:
    from fusevol.driver import LocalDriver
    from fusevol.storage import Config

__all__ = ["make_app", "pool_add", "pool_key", "pool_ls", "pool_rm"]


def make_app(context: dict[str, Any]) -> typer.Typer:
    """The group `pool`, with its commands."""
    app = typer.Typer(rich_markup_mode=None, help=_pool.__doc__, context_settings=context)
    app.callback()(_pool)
    app.command("ls", context_settings=context)(pool_ls)
    app.command("add", context_settings=context)(pool_add)
    app.command("rm", context_settings=context)(pool_rm)
    app.command("key", context_settings=context)(pool_key)
    return app


def _pool() -> None:
    """Pools: where volumes are made.

    A pool is a backend and its parameters, under a name. The pool default keeps volumes in files, in the state
    directory; others are described in config.toml there, which pool add and pool rm change.

    Example:

    \b
      fusevol pool add fast file path=/mnt/nvme/volumes
    """


def pool_ls(json: JsonOption = False) -> None:
    """List the pools, and what is left on the disks under them.

    Example:

    \b
      fusevol pool ls
    """
    from fusevol.driver.overview import PoolState

    async def work(driver: "LocalDriver") -> list[PoolState]:
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
            ", ".join(_texts(pool.attributes)) or "-",
            pool.error or "-",
        )
        for pool in found
    ]
    print_table(("NAME", "BACKEND", "VOLUMES", "FREE", "PARAMETERS", "ERROR"), rows, right=("VOLUMES", "FREE"))


def pool_add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits and hyphens; a letter comes first.")],
    backend: Annotated[
        str, typer.Argument(metavar="BACKEND", help="file, device, object, or another one that is installed.")
    ],
    parameters: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE...]", help="Its parameters; TABLE.KEY=VALUE in a table.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Describe a new pool in config.toml, once it answers.

    Values are as in TOML (10, true, "20G"), and everything else is a text. What is secret is better in the environment,
    or written into the file with an editor: others may see the command line. A pool that has a key_file, which pool key
    makes, encrypts all that it stores.

    Example:

    \b
      fusevol pool add fast file path=/mnt/nvme/volumes
      fusevol pool add far object url=s3://bucket/folder config.region=eu-central-1 cache_size=20G
      fusevol pool add vault object url=s3://bucket/vault key_file=/etc/fusevol/vault.key
    """
    attributes = _attributes(parameters or [])

    from fusevol.storage import PoolManager, local_provider_registry

    async def work(driver: "LocalDriver") -> "Config":
        return await PoolManager(driver, local_provider_registry(driver)).create(name, backend, attributes)

    made = drive(work)
    if json:
        print_json({"name": made.name, "backend": made.provider})
    else:
        print(f'pool "{made.name}" is ready')


def pool_rm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A pool without volumes.", autocompletion=complete_pool)],
    json: JsonOption = False,
) -> None:
    """Take a pool out of config.toml. What may be there stays.

    Example:

    \b
      fusevol pool rm fast
    """
    from fusevol.storage import PoolManager, local_provider_registry

    async def work(driver: "LocalDriver") -> None:
        await PoolManager(driver, local_provider_registry(driver)).delete(name)

    drive(work)
    if json:
        print_json({"deleted": [name]})
    else:
        print(f'pool "{name}" is removed')


def pool_key(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it; there must be nothing yet.")],
    json: JsonOption = False,
) -> None:
    """Make a key for a pool that encrypts.

    It is random, and in this file alone: without it, what is in the pool can be read by nobody. Keep a copy elsewhere.
    The directory is made where it is missing.

    Example:

    \b
      fusevol pool key /etc/fusevol/vault.key
      fusevol pool add vault object url=s3://bucket/vault key_file=/etc/fusevol/vault.key
    """
    from fusevol.backends.encryption import make_key_file

    # As config.toml is to have it.
    path = path.absolute()
    make_key_file(path)
    if json:
        print_json({"key_file": str(path)})
    else:
        print(f'key "{path}" is ready; keep a copy of it elsewhere, without it nothing in its pool can be read')


def _texts(attributes: Mapping[str, object], table: str = "") -> list[str]:
    """Parameters as `pool add` takes them."""
    texts = []
    for key, value in attributes.items():
        texts += _texts(value, f"{key}.") if isinstance(value, Mapping) else [f"{table}{key}={value}"]
    return texts


def _attributes(texts: list[str]) -> dict[str, Any]:
    from fusevol.errors import InvalidArgument

    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        table, dot, inner = key.partition(".")
        if not (table and equals and value) or (dot and not inner):
            raise InvalidArgument(f"{text!r} is not of the form KEY=VALUE")
        into = found.setdefault(table, {}) if dot else found
        if not isinstance(into, dict) or (inner or table) in into:
            raise InvalidArgument(f"{key!r} is given twice")
        into[inner or table] = _value(value)
    return found


def _value(text: str) -> object:
    import tomllib

    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = found.pop("value")
    # It may have gone on behind its line; and what is no number in JSON is meant to be a text.
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if not found and (number or isinstance(value, str)) else text
