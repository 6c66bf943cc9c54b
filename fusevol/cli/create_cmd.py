"""fusevol create."""

from typing import Annotated

import typer

from fusevol.cli.create_options import parse_create_options
from fusevol.cli.options import JsonOption, LabelOption, SizeOption, parse_labels
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive
from fusevol.errors import InvalidArgument

__all__ = ["create"]


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new volume.")],
    size: SizeOption = None,
    pool: Annotated[
        str | None, typer.Option(metavar="POOL", help="Pool to make it in; otherwise the one called default.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="VOL[@SNAP]", help="Make it a clone of this volume or snapshot."),
    ] = None,
    label: LabelOption = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--opt",
            metavar="KEY=VALUE",
            help="An option; may be given several times: size, pool, from, sticky, control, mount.",
        ),
    ] = None,
    sticky: Annotated[bool, typer.Option("--sticky", help="Refuse to delete it until that is taken back.")] = False,
    exist_ok: Annotated[
        bool, typer.Option("--exist-ok", help="A volume of that name, size and parent that exists is fine.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a volume.

    It takes up next to nothing at first, whatever its size; its filesystem is made when it is first mounted. Names
    have 1 to 128 letters, digits, '_', '.' and '-'.

    A clone (--from) shares all blocks with what it was made from until they are overwritten, so making one takes
    no time, whatever its size. It has the size and the labels of that, unless others are given.

    Options (--opt) say the same in one form, for programs; and two of them how the volume is mounted where the mount
    itself does not say: control=rw|ro|off, mount=noatime,nosuid.

    Example:

    \b
      fusevol create web --size 10G --label app=shop
      fusevol create web --opt size=10G --opt control=ro
      fusevol create web-test --from web@before
    """
    labels = parse_labels(label)
    options = parse_create_options(option or [])
    for what, one, other in (
        ("size", size, options.size), ("pool", pool, options.pool), ("from", source, options.source),
    ):  # fmt: skip
        if one is not None and other is not None:
            raise InvalidArgument(f"--{what} and --opt {what}= are both given")
    size, pool = options.size if size is None else size, options.pool if pool is None else pool
    source = options.source if source is None else source
    if sticky and options.sticky is False:
        raise InvalidArgument("--sticky and --opt sticky=false are both given")

    from fusevol.api import Source, VolumeLocator, VolumeSpec
    from fusevol.cli.objects import VolumeObject, volume_object
    from fusevol.driver import LocalDriver
    from fusevol.driver.context import POOL_LABEL

    if pool is not None:
        labels[POOL_LABEL] = pool

    async def work(driver: LocalDriver) -> VolumeObject:
        parent = Source(parent=(await driver.resolve(source)).id) if source is not None else None
        locator = VolumeLocator(name=name, volume_labels=labels)
        spec = VolumeSpec(size=size or 0, sticky=sticky or bool(options.sticky), mount_options=options.mount or {})
        volume_id = await driver.create(locator, parent, spec, exist_ok=exist_ok)
        return await volume_object(driver, await driver.resolve(volume_id))

    made = drive(work)
    if json:
        print_json(made)
    else:
        print(f'volume "{made.name}" is ready')
