"""What tests write to devices and volumes, and how they look at it."""

import os
import random
from pathlib import Path

from fusevol.backends.device import DeviceBackend
from fusevol.errors import (
    NoSpace,
)
from tests.device.tables import BLOCK


def noise(blocks: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(blocks * BLOCK)


def poke(device: Path, offset: int, data: bytes) -> None:
    with open(device, "r+b") as file:
        file.seek(offset)
        file.write(data)


def peek(device: Path, offset: int, size: int) -> bytes:
    with open(device, "rb") as file:
        file.seek(offset)
        return file.read(size)


def flip(device: Path, offset: int) -> None:
    poke(device, offset, bytes([peek(device, offset, 1)[0] ^ 4]))


async def fill(backend: DeviceBackend, name: str) -> int:
    """Write to a volume until the device is full; return how many bytes."""
    written = 0
    while True:
        try:
            written += await backend.write(name, noise(64), written)
        except NoSpace as error:
            assert "is full" in str(error)  # noqa: PT017
            return written


async def with_volume(device: Path, data: bytes = b"") -> None:
    backend = DeviceBackend(device)
    await backend.create("v")
    await backend.write("v", data, 0)
    await backend.aclose()


def poke_direct(device: Path, offset: int, data: bytes) -> None:
    import mmap

    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
    os.pwritev(fd, [buffer], offset)
    os.close(fd)
