"""Processes as others can recognise them later, so that what a dead one left behind is not taken for alive.

A pid alone comes back; together with the boot and the time the process started at it does not.
"""

import os
import sys
from pathlib import Path

import msgspec

__all__ = ["Process", "boot_id"]

_ZOMBIE = b"Z"


class Process(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process of this host.

    start: clock ticks from boot to its start. boot: id of the boot. namespace: of its pid, as the kernel names it.
    command: what it is doing, for people.
    """

    pid: int
    start: int
    boot: str
    namespace: str = ""
    command: str = ""

    @classmethod
    def current(cls, command: str = "") -> "Process":
        """This process. `command` defaults to the name of its program."""
        pid = os.getpid()
        started = _started(pid)
        return cls(
            pid=pid,
            start=started or 0,
            boot=boot_id(),
            namespace=_namespace(),
            command=command or os.path.basename(sys.argv[0] or "python"),
        )

    @property
    def alive(self) -> bool:
        """Whether it still runs. One in another pid namespace cannot be seen from here, and is taken to."""
        if self.boot != boot_id():
            return False
        if self.namespace != _namespace():
            return True
        return _started(self.pid) == self.start

    def __str__(self) -> str:
        """What an error calls it."""
        return f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"


def boot_id() -> str:
    """Id of the boot this host is in."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid")


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is none, or only its exit status."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name of the program is in parentheses, and may hold anything, parentheses included.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] == _ZOMBIE else int(fields[19])
