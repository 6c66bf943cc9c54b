"""The command, run as users run it, on a state directory of its own."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fusevol.cli import main

__all__ = ["FUSEVOL", "Fusevol", "Result"]

FUSEVOL = Path(sys.executable).parent / "fusevol"


class Result(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str


class Fusevol:
    """The command on one state directory. Calls run it in this process, which is faster, unless it is `real`."""

    def __init__(self, home: Path, *, real: bool = False) -> None:
        self.home = home
        self.real = real

    @property
    def environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FUSEVOL", "_FUSEVOL", "COMP_"))}
        return kept | {"FUSEVOL_HOME": str(self.home), "COLUMNS": "100"}

    def start(self, *arguments: str, **named: Any) -> "subprocess.Popen[str]":
        """Start a command, and do not wait for it."""
        named.setdefault("env", self.environment)
        return subprocess.Popen(
            [FUSEVOL, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **named
        )

    def run(self, *arguments: str, **named: Any) -> Result:
        """Run a command to its end, in a process of its own."""
        process = self.start(*arguments, **named)
        out, err = process.communicate(timeout=60)
        return Result(process.returncode, out, err)

    def call(self, *arguments: str) -> Result:
        """Run a command to its end."""
        if self.real:
            return self.run(*arguments)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["--home", str(self.home), *arguments])
        return Result(status, out.getvalue(), err.getvalue())

    def __call__(self, *arguments: str) -> str:
        """What a command prints that must succeed, and must not complain."""
        result = self.call(*arguments)
        assert (result.status, result.err) == (0, ""), (arguments, result)
        return result.out

    def json(self, *arguments: str) -> Any:
        """What a command prints that must succeed, with --json."""
        return json.loads(self(*arguments, "--json"))

    def fails(self, *arguments: str, status: int = 1) -> str:
        """What a command says that must fail: one line, or a hint on a second one; nothing on stdout."""
        result = self.call(*arguments)
        assert (result.status, result.out) == (status, ""), (arguments, result)
        first, *more = result.err.splitlines()
        assert first.startswith("fusevol: "), result.err
        assert len(more) <= 1, result.err
        assert all(line.startswith("hint: ") for line in more), result.err
        return result.err
