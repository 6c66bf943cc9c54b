"""fusevol top."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fusevol.cli.options import JsonOption, complete_volume
from fusevol.cli.output import print_json, print_table
from fusevol.cli.settings import drive
from fusevol.errors import InvalidArgument
from fusevol.sizes import format_size

if TYPE_CHECKING:
    from fusevol.driver.activity import Activity

__all__ = ["top"]

_COLUMNS = ("NAME", "IOPS", "READ/S", "WRITE/S", "LATENCY", "USED", "ACTIVE", "UNFLUSHED", "ERROR")
_RIGHT = _COLUMNS[1:-1]
_SHORTEST, _LONGEST = 0.1, 3600.0
_PATIENCE = 5.0
_CLEAR = "\x1b[H\x1b[J"


def top(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="Volumes; otherwise all that are mounted.", autocompletion=complete_volume
        ),
    ] = None,
    interval: Annotated[float, typer.Option(metavar="SECONDS", help="How long to count for each table.")] = 2.0,
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="End after N tables; otherwise never on a terminal, else after one."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what mounted volumes are doing, again and again.

    On a terminal the table is renewed until it is interrupted. Elsewhere, and with --json, there is one table, or as
    many as --count says. IOPS, throughput and latency are those of requests that reach the volume: what the
    kernel answers from its cache is not among them. UNFLUSHED is what a power cut would cost now, and the age of
    the oldest of it.

    Example:

    \b
      fusevol top
      fusevol top web --interval 10 --count 6 --json
    """
    if not _SHORTEST <= interval <= _LONGEST:
        raise InvalidArgument(f"--interval {interval:g} is not between {_SHORTEST:g} and {_LONGEST:g} seconds")
    if count is not None and count < 1:
        raise InvalidArgument(f"--count {count} is less than 1")

    import trio

    from fusevol.driver import LocalDriver
    from fusevol.driver.activity import sample

    live = sys.stdout.isatty() and not json
    left = count if count is not None else (None if live else 1)

    async def work(driver: LocalDriver) -> None:
        # Where the first interval begins.
        await sample(driver, names or [], patience=_PATIENCE)
        shown = 0
        while left is None or shown < left:
            await trio.sleep(interval)
            found = await sample(driver, names or [], patience=_PATIENCE)
            if json:
                print_json(found)
            else:
                if live:
                    sys.stdout.write(_CLEAR)
                print_table(_COLUMNS, [_row(activity) for activity in found], right=_RIGHT)
            sys.stdout.flush()
            shown += 1

    try:
        drive(work)
    except KeyboardInterrupt:
        # The usual end of a table that would go on for ever; of one that was to end, an interruption.
        if left is not None:
            raise


def _row(activity: "Activity") -> tuple[str, ...]:
    if activity.error:
        return (activity.name, *("-" for _ in _RIGHT), activity.error)
    unflushed = "-"
    if activity.unflushed_bytes:
        unflushed = f"{format_size(activity.unflushed_bytes)}, {activity.unflushed_seconds:.1f} s"
    return (
        activity.name,
        str(activity.iops),
        format_size(activity.read_bytes_per_second),
        format_size(activity.write_bytes_per_second),
        _time(activity.latency_us) if activity.iops else "-",
        format_size(activity.bytes_used),
        str(activity.active),
        unflushed,
        "-",
    )


def _time(microseconds: int) -> str:
    return f"{microseconds} us" if microseconds < 1000 else f"{microseconds / 1000:.1f} ms"
