"""Keeping a virtual machine's processors awake while requests come one after the other.

A program that waits for an answer of the mount leaves its processor idle, and in a virtual machine an idle
processor is handed back to the host: to have it back takes longer than all the work of a request (a program that
creates files is held up 2.4 times as long). Linux lets a process ask for processors that wake up without delay, for as
long as it holds /dev/cpu_dma_latency open (Documentation/power/pm_qos_interface.rst): they then wait in a loop. That
is their owner's time and power, so it is asked for only

- where it helps: in virtual machines whose guest decides (cpuidle driver haltpoll), and, unless the mount was told
  to, with few processors, for it keeps all of them awake;
- while requests come at `RATE`, and for `SPELL` after that. An idle mount never does.

The kernel takes the request back when this process ends, however it ends.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import trio

__all__ = ["Wakefulness", "worthwhile"]

#: Requests a second from which it is worth it.
RATE = 300
#: How often that is looked at, in seconds.
SPELL = 10e-3
_DEVICE = Path("/dev/cpu_dma_latency")
_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_FEW = 8


def worthwhile() -> bool:
    """Whether to do this where nobody says: in a virtual machine that hands over idle processors, if it has few."""
    try:
        driver = _DRIVER.read_text().strip()
    except OSError:
        return False
    return driver == "haltpoll" and (os.cpu_count() or _FEW + 1) <= _FEW and os.access(_DEVICE, os.W_OK)


class Wakefulness:
    """Whether the processors are kept awake; None of the methods waits or raises."""

    def __init__(self, device: Path = _DEVICE) -> None:
        self._device = device
        self._fd = -1
        self._since = 0.0
        self._seen = 0
        #: Requests so far; whoever serves them counts.
        self.served = 0

    @property
    def awake(self) -> bool:
        """Whether they are now."""
        return self._fd >= 0

    def notice(self, now: float) -> None:
        """Look at the rate, in a task of the loop; `now` as of time.perf_counter."""
        if self._fd >= 0 or now - self._since < SPELL:
            return
        if self._busy(now):
            try:
                self._fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
                os.write(self._fd, struct.pack("i", 0))
            except OSError:
                self.release()
            else:
                trio.lowlevel.spawn_system_task(self._doze)

    def release(self) -> None:
        """Let them sleep."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _busy(self, now: float) -> bool:
        served, elapsed = self.served - self._seen, now - self._since
        self._since, self._seen = now, self.served
        return served >= RATE * elapsed

    async def _doze(self) -> None:
        """Let them sleep as soon as the requests are over."""
        try:
            while self._fd >= 0:
                await trio.sleep(SPELL)
                if not self._busy(time.perf_counter()):
                    break
        finally:
            self.release()
