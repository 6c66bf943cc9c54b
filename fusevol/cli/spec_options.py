"""Options of `create` and `set` that say what a volume is to be like."""

from typing import Annotated

import typer

__all__ = [
    "GroupOption",
    "OptOption",
    "ReadaheadOption",
    "SnapIntervalOption",
    "SnapScheduleOption",
    "ThrottleOption",
]

OptOption = Annotated[
    list[str] | None,
    typer.Option(
        "--opt", metavar="KEY=VALUE", help="An option, as docs/cli.md lists them; may be given several times."
    ),
]
SnapIntervalOption = Annotated[
    int | None,
    typer.Option("--snap-interval", metavar="MINUTES", help="Take a snapshot every so many minutes; 0 for none."),
]
SnapScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--snap-schedule",
        metavar="SCHEDULE",
        help="Take snapshots then: 'daily=03:00,7;weekly=Sunday@04:00;monthly=1@05:00;periodic=60,24'.",
    ),
]
ThrottleOption = Annotated[
    str | None,
    typer.Option(
        "--throttle",
        metavar="BOUNDS",
        help="At most so much per second: read_iops=N,write_iops=N,read_bw_mbytes=N,write_bw_mbytes=N; or none.",
    ),
]
ReadaheadOption = Annotated[
    bool | None, typer.Option("--readahead/--no-readahead", help="Whether the kernel reads ahead; it does.")
]
GroupOption = Annotated[
    str | None, typer.Option("--group", metavar="GROUP", help="Volumes that snapshots are taken of together.")
]
