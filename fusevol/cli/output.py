"""Printing: JSON, tables, and progress. Plain text where nobody looks at a terminal."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

__all__ = ["Progress", "print_fields", "print_json", "print_table", "progress"]

_DELAY = 1.0


def print_json(value: object) -> None:
    """Print a value of plain containers and records as indented JSON."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Print rows under headings; the columns named in `right` are aligned to the right."""
    if sys.stdout.isatty():
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column in right else "left", no_wrap=column == columns[0])
        for row in rows:
            table.add_row(*(_escape(cell) for cell in row))
        Console().print(table)
        return
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _escape(cell: str) -> str:
    from rich.markup import escape

    return escape(cell)


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Print names and values, one pair a line. A value may have several lines."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        first, *more = value.splitlines() or [""]
        print(f"{name + ':':{width + 1}} {first}".rstrip())
        for line in more:
            print(f"{'':{width + 1}} {line}")


class Progress:
    """A bar on a terminal for work that has taken a second; nothing elsewhere."""

    def __init__(self, what: str, unit: str) -> None:
        self._what = what
        self._unit = unit
        self._began = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __call__(self, done: int, total: int) -> None:
        """Say how much is done, of about how much."""
        if self._bar is None:
            if not sys.stderr.isatty() or time.monotonic() - self._began < _DELAY:
                return
            self._start()
        assert self._bar is not None
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=max(total, done))

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        counted: list[Any] = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
        if self._unit != "bytes":
            counted = [MofNCompleteColumn(), TextColumn(self._unit)]
        columns = [TextColumn("{task.description}"), BarColumn(), *counted, TimeRemainingColumn()]
        self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(_escape(self._what))
        self._bar.start()

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextmanager
def progress(what: str, *, unit: str = "bytes") -> Iterator[Progress]:
    """Show progress while inside. unit: what is counted, where it is not bytes."""
    with Progress(what, unit) as bar:
        yield bar
