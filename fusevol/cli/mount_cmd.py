"""fusevol mount."""

from typing import Annotated

import typer

from fusevol.cli.options import JsonOption
from fusevol.cli.output import print_json
from fusevol.cli.settings import drive

__all__ = ["mount"]


def mount(
    name: Annotated[str, typer.Argument(metavar="NAME[@SNAP]", help="The volume, or a snapshot of one.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="A directory to mount it on.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            metavar="OPTIONS",
            help="Mount options, by commas: ro, noatime, nosuid, nodev, noexec, nowakeful, control=rw|ro|off.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Take it from a process on another host, or in a container, that is sure to have ended."
        ),
    ] = False,
    foreground: Annotated[bool, typer.Option("--foreground", help="Serve in this process, until unmounted.")] = False,
    json: JsonOption = False,
) -> None:
    """Mount a volume; the first mount makes its filesystem.

    A process in the background serves the mount; its log is in the state directory, under log/. In the mount,
    the directory .fusevol has files to snapshot, restore and look at the volume with; it is not listed.

    A snapshot is mounted by itself, read-only, on as many paths as you like, whether its volume is mounted or not.

    A volume is attached by one process at a time. When that has ended on this host, the volume is free again. Of one on
    another host or in a container that cannot be seen; --force takes the volume from it, and should it still run,
    it can write nothing more.

    Example:

    \b
      fusevol mount web /mnt/web
      echo before-upgrade > /mnt/web/.fusevol/snapshot
      fusevol mount web /mnt/web -o ro,noatime
      fusevol mount web@before-upgrade /mnt/old
    """
    options = _parse(option or [])

    from fusevol.driver import LocalDriver
    from fusevol.driver.mounting import absolute
    from fusevol.forms.objects import display_name, kind_of

    if foreground:
        _serve(name, absolute(path), options, force=force)
        return

    async def work(driver: LocalDriver) -> dict[str, str]:
        volume = await driver.resolve(name)
        mounted = await driver.mounting.mount(volume.id, path, options, force=force)
        return {"id": mounted.id, "name": await display_name(driver, mounted), "path": absolute(path)}

    done = drive(work)
    if json:
        print_json(done)
    else:
        print(f'{kind_of(done["name"])} "{done["name"]}" is mounted on {done["path"]}')


def _parse(words: list[str]) -> dict[str, str]:
    pairs = (word.partition("=") for text in words for word in text.split(",") if word)
    return {key: value for key, _, value in pairs}


def _serve(name: str, path: str, options: dict[str, str], *, force: bool) -> None:
    """Serve in this process. Its own start holds the volume's lock only while it looks the volume up."""
    from fusevol.driver import LocalDriver
    from fusevol.driver.server import serve_mount, serve_snapshot_mount
    from fusevol.forms.objects import kind_of
    from fusevol.mount.process import Entry, run

    entry: Entry = serve_mount

    async def arguments(driver: LocalDriver) -> dict[str, object]:
        nonlocal entry
        volume = await driver.resolve(name)
        if volume.is_snapshot:
            entry = serve_snapshot_mount
            async with driver.mounting.hold_snapshot(volume.id, options, force=force) as (_, snapshot):
                return driver.mounting.arguments(snapshot, path, options)
        async with driver.context.hold(volume.id, force=force) as held:
            driver.context.refuse_if_mounted(held, "mounted twice")
            return driver.mounting.arguments(held, path, options, force=force)

    found = drive(arguments)
    run(entry, found, ready=lambda: print(f'{kind_of(name)} "{name}" is mounted on {path}', flush=True))
