"""A pool whose store can be made to hang: a backend of a package of its own, as third parties install one.

While the file that `stuck` names is there, no call on the backend returns.
"""

from __future__ import annotations

from pathlib import Path

from tests.docker.machine import Machine

__all__ = ["POOL", "hang", "install", "let_go"]

POOL = "slow"

_CODE = """
import time
from pathlib import Path

import trio

from fusevol.backends.file import FileBackend


class StuckBackend(FileBackend):
    def __init__(self, path: str, stuck: str) -> None:
        super().__init__(path)
        self._stuck = Path(stuck)

    def read_nowait(self, volume_id, size, offset):
        return None if self._stuck.exists() else super().read_nowait(volume_id, size, offset)

    def read_blocking(self, volume_id, size, offset):
        while self._stuck.exists():
            time.sleep(0.02)
        return super().read_blocking(volume_id, size, offset)


def _stuck(name):
    inner = getattr(FileBackend, name)

    async def call(self, *args, **named):
        while self._stuck.exists():
            await trio.sleep(0.02)
        return await inner(self, *args, **named)

    return call


for name in "create delete list used_size read write flush discard get_manifest put_manifest".split():
    setattr(StuckBackend, name, _stuck(name))
"""


def install(machine: Machine) -> None:
    """Give a machine that pool, for all programs that are started from now on."""
    packages = machine.disk / "packages"
    info = packages / "fusevol_stuck-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fusevol-stuck\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[fusevol.backends]\nstuck = fusevol_stuck:StuckBackend\n")
    (packages / "fusevol_stuck.py").write_text(_CODE)
    machine.environment["PYTHONPATH"] = str(packages)
    config = machine.disk / "fusevol" / "config.toml"
    config.write_text(
        f'[pools.{POOL}]\nbackend = "stuck"\npath = "/var/lib/fusevol/slow"\nstuck = "{_flag(machine)}"\n'
    )


def hang(machine: Machine) -> None:
    """Let the store of that pool hang."""
    _flag(machine).touch()


def let_go(machine: Machine) -> None:
    """Let it go on."""
    _flag(machine).unlink()


def _flag(machine: Machine) -> Path:
    return machine.disk / "stuck"
