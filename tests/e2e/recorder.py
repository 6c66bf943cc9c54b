"""Writers that keep a record elsewhere of what fsync acknowledged, and the check of a volume against those records.

    python -m tests.e2e.recorder KIND DIRECTORY ACKNOWLEDGED SEED

Writes below DIRECTORY until a system call fails, and adds a line to the file ACKNOWLEDGED, which is on another
filesystem, after each step that was made durable. Content follows from the seed and the step, so that `verify` can
tell what must be there. Exits with status 3 on an error of a system call: that of a crash.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

from tests.mount.worlds import fallocate

__all__ = ["KINDS", "verify"]

BLOCK = 4096
SLOTS = 64
KEEP_SIZE, PUNCH, ZERO_RANGE = 1, 3, 16


def content(seed: int, step: int, most: int) -> bytes:
    rng = random.Random(seed << 32 | step)
    return b"%010d" % step + rng.randbytes(rng.randrange(1, most))


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


# -- one function for each kind: yields nothing, calls `acknowledge` -------------------------------------------

Acknowledge = Callable[[int], None]


def append(directory: Path, seed: int, acknowledge: Acknowledge) -> None:
    """Records at the end of one file, an fsync each."""
    fd = os.open(directory / "append", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for step in range(1 << 30):
        data = content(seed, step, 20000)
        assert os.write(fd, data) == len(data)
        os.fsync(fd)
        acknowledge(step)


def create(directory: Path, seed: int, acknowledge: Acknowledge) -> None:
    """New files, synced with their directory; every third is deleted again."""
    for step in range(1 << 30):
        write_file(directory / f"file-{step}", content(seed, step, 9000))
        if step % 3 == 2:
            os.unlink(directory / f"file-{step}")
        sync_directory(directory)
        acknowledge(step)


def replace(directory: Path, seed: int, acknowledge: Acknowledge) -> None:
    """One file that is replaced by a new one again and again, as editors do."""
    for step in range(1 << 30):
        write_file(directory / "replace.new", content(seed, step, 40000))
        os.rename(directory / "replace.new", directory / "replace")
        sync_directory(directory)
        acknowledge(step)


def overwrite(directory: Path, seed: int, acknowledge: Acknowledge) -> None:
    """Blocks of one file, overwritten in place as databases do."""
    fd = os.open(directory / "slots", os.O_RDWR | os.O_CREAT, 0o644)
    for step in range(1 << 30):
        data = content(seed, step, 2).ljust(BLOCK - 10, b".") + b"%010d" % step
        assert os.pwrite(fd, data, BLOCK * slot(seed, step)) == BLOCK
        os.fdatasync(fd)
        acknowledge(step)


def allocate(directory: Path, seed: int, acknowledge: Acknowledge) -> None:
    """Ranges of one file that are written, set aside, zeroed, and punched out."""
    fd = os.open(directory / "ranges", os.O_RDWR | os.O_CREAT, 0o644)
    for step in range(1 << 30):
        mode, first, count = piece(seed, step)
        if mode is None:
            assert os.pwrite(fd, block(step) * count, BLOCK * first) == BLOCK * count
        else:
            fallocate(fd, mode, BLOCK * first, BLOCK * count)
        os.fdatasync(fd)
        acknowledge(step)


def snapshot(directory: Path, seed: int, acknowledge: Acknowledge) -> None:
    """A file that is not synced, and a snapshot that must have it; older snapshots are deleted."""
    control = next(path for path in directory.parents if (path / ".fusevol").is_dir()) / ".fusevol"
    for step in range(1 << 30):
        with open(directory / "marker", "wb") as file:
            file.write(content(seed, step, 5000))
        _command(control / "snapshot", name(seed, step))
        if step >= 3:
            _command(control / "delete-snapshot", name(seed, step - 3))
        acknowledge(step)


def _command(file: Path, text: str) -> None:
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def slot(seed: int, step: int) -> int:
    return random.Random(seed << 33 | step).randrange(SLOTS)


def piece(seed: int, step: int) -> tuple[int | None, int, int]:
    """What a step does to a range of blocks: a mode of fallocate(2), None for a write; the first of them, how many."""
    rng = random.Random(seed << 34 | step)
    return rng.choice((None, None, None, 0, KEEP_SIZE, ZERO_RANGE, PUNCH)), rng.randrange(SLOTS), rng.randrange(1, 12)


def block(step: int) -> bytes:
    return (b"%010d" % step).ljust(BLOCK, b"+")


def name(seed: int, step: int) -> str:
    return f"s-{seed}-{step}"


KINDS = {function.__name__: function for function in (append, create, replace, overwrite, allocate, snapshot)}


# -- verification -----------------------------------------------------------------------------------------------


def acknowledged(file: Path) -> int:
    """The last step that was acknowledged; -1 if none was."""
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return int(lines[-1]) if lines else -1


def verify(kind: str, directory: Path, seed: int, last: int) -> list[str]:
    """What of the steps up to `last` is not there, or not as it was written; nothing if all is well."""
    try:
        return _VERIFY[kind](directory, seed, last) if last >= 0 else []
    except OSError as error:
        return [f"{kind}: {error}"]


def _verify_append(directory: Path, seed: int, last: int) -> list[str]:
    found = (directory / "append").read_bytes()
    at = 0
    for step in range(last + 1):
        wanted = content(seed, step, 20000)
        if found[at : at + len(wanted)] != wanted:
            zeros = " as zeros" if not any(found[at : at + len(wanted)]) else ""
            return [f"append: record {step} of {last} acknowledged ones is not there{zeros} ({at} of {len(found)})"]
        at += len(wanted)
    # What was not acknowledged may be missing, but nothing else may be in its place.
    wanted = content(seed, last + 1, 20000)
    rest = found[at:]
    if any(byte not in (0, wanted[i] if i < len(wanted) else 0) for i, byte in enumerate(rest)):
        return ["append: behind the acknowledged records is what nobody wrote"]
    return []


def _verify_create(directory: Path, seed: int, last: int) -> list[str]:
    problems = []
    for step in range(last + 1):
        file = directory / f"file-{step}"
        if step % 3 == 2:
            if file.exists():
                problems.append(f"create: {file.name} is back, though its deletion was synced")
        elif not file.exists():
            problems.append(f"create: {file.name} is gone")
        elif file.read_bytes() != content(seed, step, 9000):
            problems.append(f"create: {file.name} is not what was written")
    return problems


def _verify_replace(directory: Path, seed: int, last: int) -> list[str]:
    found = (directory / "replace").read_bytes()
    if any(found == content(seed, step, 40000) for step in (last, last + 1)):
        return []
    return [f"replace: it begins with {found[:10]!r}, is {len(found)} bytes, and is neither {last} nor {last + 1}"]


def _verify_overwrite(directory: Path, seed: int, last: int) -> list[str]:
    found = (directory / "slots").read_bytes()
    newest = {slot(seed, step): step for step in range(last + 1)}
    problems = []
    for number, step in newest.items():
        block = found[number * BLOCK : (number + 1) * BLOCK]
        if block[:10] == b"%010d" % (last + 1) and slot(seed, last + 1) == number:
            step = last + 1  # written, and not acknowledged in time
        if block != content(seed, step, 2).ljust(BLOCK - 10, b".") + b"%010d" % step:
            problems.append(f"overwrite: block {number} begins with {block[:10]!r}, not with step {step}")
    return problems


def _verify_allocate(directory: Path, seed: int, last: int) -> list[str]:
    found = (directory / "ranges").read_bytes()
    newest: dict[int, int] = {}
    doubtful: dict[int, int] = {}
    for step in range(last + 2):
        mode, first, count = piece(seed, step)
        if mode not in (0, KEEP_SIZE):  # which change no content
            (newest if step <= last else doubtful).update(dict.fromkeys(range(first, first + count), step))
    problems = []
    for number in range(SLOTS + 12):
        there = found[number * BLOCK : (number + 1) * BLOCK].ljust(BLOCK, b"\0")
        steps = {newest.get(number), doubtful.get(number, newest.get(number))}
        if not any(
            there == (bytes(BLOCK) if step is None or piece(seed, step)[0] is not None else block(step))
            for step in steps
        ):
            problems.append(f"allocate: block {number} begins with {there[:10]!r}, and is of none of the steps {steps}")
    return problems


def _verify_snapshot(directory: Path, seed: int, last: int) -> list[str]:
    root = next(path for path in directory.parents if (path / ".fusevol").is_dir())
    problems = []
    for step in range(max(0, last - 1), last + 1):
        inside = root / ".fusevol" / "snapshots" / name(seed, step) / directory.relative_to(root) / "marker"
        if not inside.exists():
            problems.append(f"snapshot: {name(seed, step)} is not there, or not whole")
        elif inside.read_bytes() != content(seed, step, 5000):
            problems.append(f"snapshot: {name(seed, step)} does not have what was written before it")
    return problems


_VERIFY: dict[str, Callable[[Path, int, int], list[str]]] = {
    "append": _verify_append,
    "create": _verify_create,
    "replace": _verify_replace,
    "overwrite": _verify_overwrite,
    "allocate": _verify_allocate,
    "snapshot": _verify_snapshot,
}


def main(kind: str, directory: str, file: str, seed: str) -> int:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def acknowledge(step: int) -> None:
        os.write(fd, b"%d\n" % step)

    try:
        KINDS[kind](Path(directory), int(seed), acknowledge)
    except OSError as error:
        print(f"{kind}: {error}")
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
