"""fusevol serve."""

from pathlib import Path
from typing import Annotated

import typer

from fusevol.cli.settings import home
from fusevol.errors import InvalidArgument

__all__ = ["PLUGIN_SOCKET", "serve"]

#: dockerd takes the name of the driver from that of the socket.
PLUGIN_SOCKET = Path("/run/docker/plugins/fusevol.sock")

_SHORTEST, _LONGEST = 0.5, 3600.0


def serve(
    plugin_socket: Annotated[Path, typer.Option(metavar="PATH", help="Where dockerd finds the volume plugin.")] = Path(
        "/run/docker/plugins/fusevol.sock"
    ),
    api_socket: Annotated[Path, typer.Option(metavar="PATH", help="Where the REST API and the metrics are.")] = Path(
        "/run/fusevol/api.sock"
    ),
    listen: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="Have the REST API and the metrics on TCP as well; with --token-file."),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The token that those on TCP must know, for nobody else to read."),
    ] = None,
    mounts: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where volumes are mounted; otherwise mounts/ in the state directory."),
    ] = None,
    docker_socket: Annotated[
        str, typer.Option(metavar="PATH", help="The engine to ask which containers run; '' for none.")
    ] = "/var/run/docker.sock",
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long a caller waits for a volume that does not answer.")
    ] = 30.0,
    stale_after: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="When to believe the engine that no container uses a volume any more."),
    ] = 60.0,
) -> None:
    """Serve volumes to Docker, a REST API, and metrics.

    `docker volume create -d fusevol` makes volumes here, those made otherwise can be used by containers too. Its
    options (-o KEY=VALUE) are those of fusevol create --opt: size, pool, from (a volume, or VOL@SNAP), labels, group,
    sticky, secure, ephemeral, ro, control, mount, readahead, snapshot_schedule, snapshot_interval, read_iops,
    write_iops, read_bw_mbytes, write_bw_mbytes. Any other is an error, and so is a value that makes no sense.

    Ending it, in whatever way, leaves mounts and containers as they are; a new one goes on where it ended. A mount
    whose process was killed is mounted again. It runs in the foreground, logs to stderr, and tells systemd when it is
    ready; fusevol service installs it there.

    Example:

    \b
      fusevol serve
      docker volume create -d fusevol -o size=10G web
      docker run -v web:/data debian
      curl --unix-socket /run/fusevol/api.sock http://localhost/v1/volumes
    """
    for option, seconds in (("--patience", patience), ("--stale-after", stale_after)):
        if not _SHORTEST <= seconds <= _LONGEST:
            raise InvalidArgument(f"{option} {seconds:g} is not between {_SHORTEST:g} and {_LONGEST:g} seconds")

    import logging

    from fusevol.daemon.serve import Settings
    from fusevol.daemon.serve import serve as run_daemon
    from fusevol.mount.process import run

    settings = Settings(
        plugin_socket=plugin_socket.absolute(),
        api_socket=api_socket.absolute(),
        mounts=(mounts or home().path / "mounts").absolute(),
        docker_socket=Path(docker_socket) if docker_socket else None,
        listen=listen,
        token_file=token_file,
        patience=patience,
        stale_after=stale_after,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # The error that ends it is said by the command, as with all others.
    logging.getLogger("fusevol.process").addFilter(
        lambda record: bool(record.exc_info) or record.levelno < logging.ERROR
    )
    run(lambda _, ready: run_daemon(home(), settings, ready), {})
