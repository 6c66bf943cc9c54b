"""fusevol scrub."""

from fusevol.cli.check_cmd import report_problems
from fusevol.cli.options import JsonOption, NameArgument

__all__ = ["scrub"]


def scrub(name: NameArgument, json: JsonOption = False) -> None:
    """Verify the checksums of everything that a volume holds.

    It reads the volume and its snapshots, and finds what the storage has damaged since it was written, before
    anybody needs it. The exit status is 1 where
    there is damage. A mounted volume can be scrubbed while it is in use.

    Example:

    \b
      fusevol scrub web
    """
    report_problems(name, json=json, full=False)
