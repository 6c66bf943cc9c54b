"""fusevol completion."""

import os
from enum import StrEnum
from typing import Annotated

import typer

__all__ = ["COMPLETION_VARIABLE", "Shell", "completion"]

#: Set by the shell's script when it asks for completions, as Typer has it.
COMPLETION_VARIABLE = "_FUSEVOL_COMPLETE"


class Shell(StrEnum):
    """Shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="Your shell.")] = Shell.BASH) -> None:
    """Print the script for completion in your shell.

    It completes commands, options and the names of volumes.

    Example:

    \b
      fusevol completion bash > /etc/bash_completion.d/fusevol
      source <(fusevol completion bash)
    """
    from fusevol.cli.app import make_app

    os.environ[COMPLETION_VARIABLE] = f"source_{shell.value}"
    make_app()(args=[], prog_name="fusevol", standalone_mode=False)
