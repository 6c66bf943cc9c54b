"""fusevol mount."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["mount"]


def mount(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The volume: its name or id.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory to mount it on.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="OPTIONS",
            help="Mount options, by commas: ro, noatime, nosuid, nodev, noexec, control=rw|ro|off.",
        ),
    ] = None,
    foreground: Annotated[bool, typer.Option("--foreground", help="Serve in this process, until unmounted.")] = False,
    json: JsonOption = False,
) -> None:
    """Mount a volume; the first mount makes its filesystem.

    A process in the background serves the mount; its log is in the state directory, under log/. In the mount,
    the directory .fusevol has files to snapshot, restore and look at the volume with; it is not listed.

    Example:

    \b
      fusevol mount web /mnt/web
      echo before-upgrade > /mnt/web/.fusevol/snapshot
      fusevol mount web /mnt/web -o ro,noatime
    """
    options = _parse(option or [])

    from fusevol.driver import LocalDriver
    from fusevol.driver.mounting import absolute

    if foreground:
        _serve(name, absolute(path), options)
        return

    async def work(driver: LocalDriver) -> dict[str, str]:
        volume = await driver.resolve(name)
        mounted = await driver.mounting.mount(volume.id, path, options)
        return {"id": mounted.id, "name": mounted.locator.name, "path": mounted.attach_path[0]}

    done = drive(work)
    if json:
        print_json(done)
    else:
        print(f'volume "{done["name"]}" is mounted on {done["path"]}')


def _parse(words: list[str]) -> dict[str, str]:
    pairs = (word.partition("=") for text in words for word in text.split(",") if word)
    return {key: value for key, _, value in pairs}


def _serve(name: str, path: str, options: dict[str, str]) -> None:
    """Serve in this process. Its own start holds the volume's lock only while it looks the volume up."""
    from fusevol.driver import LocalDriver
    from fusevol.driver.server import serve_mount
    from fusevol.mount.process import run

    async def arguments(driver: LocalDriver) -> dict[str, object]:
        volume = await driver.resolve(name)
        async with driver.context.hold(volume.id) as held:
            driver.context.refuse_if_mounted(held, "mounted twice")
            return driver.mounting.arguments(held, path, options)

    run(serve_mount, drive(arguments), ready=lambda: print(f'volume "{name}" is mounted on {path}', flush=True))
