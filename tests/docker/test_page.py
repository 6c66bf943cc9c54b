"""docs/docker.md shows what really happens. `FUSEVOL_UPDATE_DOCS=1` writes that into the page."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tests.docker.daemon import Daemon
from tests.e2e.harness import until

_PAGE = Path(__file__).parents[2] / "docs" / "docker.md"
_BLOCK = re.compile(r"(?<=```console\n)(.*?)(?=```\n)", re.DOTALL)
#: What differs from run to run, and how the page has it.
_VARYING = [
    (re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "6f0a4f1e-2b7c-4f39-8d53-9c1e5a7b2d40"),
    (re.compile(r"\b[0-9a-f]{64}\b"), "1d2c3b4a" * 8),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), "2030-01-02T03:04:05Z"),
    (re.compile(r"process \d+ "), "process 4711 "),
    # The page has a table of them.
    (re.compile(r"(known: size, pool, from), .*"), r"\1, ..."),
    # How often the log marks that it is idle is a matter of time.
    (re.compile(r'"used": \d+'), '"used": 57344'),
]


def _run(daemon: Daemon, block: str) -> str:
    shown = ""
    for line in block.splitlines():
        if line.startswith("$ "):
            result = daemon.machine.call("bash", "-c", line[2:])
            shown += f"{line}\n{result.out}{result.err}"
            if line.startswith("$ kill"):
                # Who reads on is not that fast.
                until(lambda: "mounted again" in daemon.status("web")["error"], "the volume to be mounted again")
    for pattern, text in _VARYING:
        shown = pattern.sub(text, shown)
    return shown


def test_the_page_shows_what_the_commands_print(daemon: Daemon) -> None:
    page = _PAGE.read_text()
    true = _BLOCK.sub(lambda match: _run(daemon, match[1]), page)
    if os.environ.get("FUSEVOL_UPDATE_DOCS"):
        _PAGE.write_text(true)
    assert true == _PAGE.read_text()
