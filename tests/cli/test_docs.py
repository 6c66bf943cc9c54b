"""docs/cli.md shows what the commands really print. `FUSEVOL_UPDATE_DOCS=1` writes that into the page."""

import os
import re
import shlex
from pathlib import Path

from fusevol.cli.app import _COMMANDS
from tests.cli.command import Fusevol

_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_BLOCK = re.compile(r"(?<=```console\n)(.*?)(?=```\n)", re.DOTALL)
#: What differs from run to run, and how the page has it.
_VARYING = [
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "6f0a4f1e-2b7c-4f39-8d53-9c1e5a7b2d40"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "2030-01-02T03:04:05Z"),
    # What is left on the disk.
    (re.compile(r"^(default +file +\d+ +)\d+(\.\d)? [KMGT]iB", re.MULTILINE), r"\g<1>77 GiB"),
    # How often the log marks that it is idle is a matter of time.
    (re.compile(r"^(metadata: +).*", re.MULTILINE), r"\g<1>12 KiB"),
    (re.compile(r"^(reclaimable: +).*", re.MULTILINE), r"\g<1>68 KiB"),
    (re.compile(r"^(total: +).*", re.MULTILINE), r"\g<1>80 KiB"),
]


def _run(fusevol: Fusevol, block: str) -> str:
    shown = ""
    for line in block.splitlines():
        if line.startswith("$ fusevol "):
            result = fusevol.call(*shlex.split(line)[2:])
            shown += f"{line}\n{result.out}{result.err}"
    shown = shown.replace(str(fusevol.home), "/var/lib/fusevol")
    for pattern, text in _VARYING:
        shown = pattern.sub(text, shown)
    return shown


def test_the_page_shows_what_the_commands_print(fusevol: Fusevol) -> None:
    page = _PAGE.read_text()
    true = _BLOCK.sub(lambda match: _run(fusevol, match[1]), page)
    if os.environ.get("FUSEVOL_UPDATE_DOCS"):
        _PAGE.write_text(true)
    # How wide a column is depends on the path of the state directory, which is another one here.
    assert re.sub(" +", " ", true) == re.sub(" +", " ", _PAGE.read_text())


def test_the_page_has_every_command() -> None:
    page = _PAGE.read_text()
    assert [name for name in _COMMANDS if not re.search(rf"`(fusevol )?{name}\b|fusevol {name}\b", page)] == []
