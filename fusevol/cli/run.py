"""The frame of every command: what goes wrong becomes one line on stderr and an exit status, never a traceback."""

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["DEBUG_VARIABLE", "Failure", "failure_of", "hoist_home", "main"]

#: Set it to anything, and errors come with their traceback.
DEBUG_VARIABLE = "FUSEVOL_DEBUG"

_USAGE, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


class Failure(NamedTuple):
    """How a command that failed ends. An empty message stays unsaid."""

    status: int
    message: str = ""
    hint: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit status."""
    from fusevol.cli.app import make_app

    arguments = hoist_home(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        result = make_app()(args=arguments, prog_name="fusevol", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except BaseException as error:  # noqa: BLE001  the last resort, of which users see one line
        failure = failure_of(error)
        if os.environ.get(DEBUG_VARIABLE) and failure.message:
            import traceback

            traceback.print_exception(error)
        _say(failure)
        return failure.status


def _say(failure: Failure) -> None:
    try:
        if failure.message:
            print(f"fusevol: {failure.message}", file=sys.stderr)
        if failure.hint:
            print(f"hint: {failure.hint}", file=sys.stderr)
        sys.stdout.flush()
    except (OSError, ValueError):
        # Nobody listens. What is left in the buffer must not be tried again on the way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def failure_of(error: BaseException) -> Failure:
    """How a command ends that raised `error`. Of a group of errors the first one that says something counts."""
    from fusevol.errors import FusevolError, exit_code_of

    leaves = _leaves(error)
    for leaf in leaves:
        if isinstance(leaf, KeyboardInterrupt):
            return Failure(_INTERRUPTED)
    error = next((leaf for leaf in leaves if isinstance(leaf, FusevolError)), leaves[0])
    if isinstance(error, FusevolError):
        return Failure(exit_code_of(error), _one_line(str(error)), error.hint and _one_line(error.hint))
    if isinstance(error, SystemExit):
        return Failure(error.code if isinstance(error.code, int) else 1)
    if isinstance(error, MemoryError):
        return Failure(1, "out of memory")
    if isinstance(error, BrokenPipeError):
        return Failure(_BROKEN_PIPE)
    if isinstance(error, OSError) and error.strerror:
        about = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return Failure(1, about + error.strerror[:1].lower() + error.strerror[1:])
    # Typer's errors of usage. Their class is not public in all its versions, but this is.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _usage(error)
    if type(error).__name__ == "Abort":
        return Failure(_INTERRUPTED)
    return Failure(
        1, _one_line(f"internal error: {type(error).__name__}: {error}"), f"{DEBUG_VARIABLE}=1 shows where it happened"
    )


def _usage(error: BaseException) -> Failure:
    text = _one_line(error.format_message())  # type: ignore[attr-defined]
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "fusevol"
    return Failure(_USAGE, text[:1].lower() + text[1:].removesuffix("."), f"{command} --help")


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def hoist_home(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--home` in front of the command, wherever it was given."""
    home: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--home":
            home = [word, *(value for value in [next(words, None)] if value is not None)]
        elif word.startswith("--home="):
            home = [word]
        else:
            rest.append(word)
    # Without its value it stands alone, so that this is what is complained of.
    return home if home == ["--home"] else [*home, *rest]
