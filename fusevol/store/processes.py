"""Processes as others can recognise them later, so that what a dead one left behind is not taken for alive.

A pid alone comes back; together with the boot and the time the process started at it does not. Whether a process of
another host, or of another pid namespace (a container's), still runs cannot be seen from here: nothing that it holds
is taken from it unless somebody says so.
"""

import enum
import os
import socket
import sys
from pathlib import Path

import msgspec

__all__ = ["Life", "Process", "boot_id", "this_node"]

_ZOMBIE = b"Z"


class Life(enum.Enum):
    """Whether a process still runs, as far as that can be proved."""

    RUNS = "runs"
    GONE = "gone"
    UNKNOWN = "unknown"


class Process(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One process.

    start: clock ticks from boot to its start. boot: id of the boot. namespace: of its pid, as the kernel names it.
    command: what it is doing, for people. node: the name of its host. machine: the id of its host, where it has one.
    """

    pid: int
    start: int
    boot: str
    namespace: str = ""
    command: str = ""
    node: str = ""
    machine: str = ""

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
            node=this_node(),
            machine=_machine(),
        )

    @property
    def life(self) -> Life:
        """Whether it still runs."""
        if self.boot != boot_id():
            # No two boots have one id, whatever their hosts are called; but an earlier boot of this host is over.
            return Life.GONE if self._is_of_this_host() else Life.UNKNOWN
        if self.namespace != _namespace():
            return Life.UNKNOWN
        return Life.RUNS if _started(self.pid) == self.start else Life.GONE

    @property
    def alive(self) -> bool:
        """Whether it is to be taken for running: it does, or cannot be seen from here."""
        return self.life is not Life.GONE

    def _is_of_this_host(self) -> bool:
        machine = _machine()
        # Hosts that were cloned may share either; those that have no machine id are told apart by name alone.
        return self.node in ("", this_node()) and (not self.machine or not machine or self.machine == machine)

    def __str__(self) -> str:
        """What an error calls it."""
        text = f"process {self.pid} ({self.command})" if self.command else f"process {self.pid}"
        return text if self.node in ("", this_node()) else f"{text} on {self.node}"


def this_node() -> str:
    """The name of this host."""
    return socket.gethostname()


def boot_id() -> str:
    """Id of the boot this host is in."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _machine() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""


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
