"""Root's calls in a directory that they cannot leave; run as a program: confined.py DIRECTORY WHAT [ARGUMENT...].

    calls SEED STEPS    random calls, and the tree now and then and in the end
    tree                the tree, with all times
    probe PATH...       what becomes of calls on paths, and through symbolic links to them

The process is confined before it makes any call: chroot(2) into the directory, with nothing open that is outside but
its output. Each call is a line there, with its result; lines of two directories can be compared.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.mount.randomcalls import DEEP, LONG, RandomCalls
from tests.mount.worlds import World, outcome

__all__ = ["LONG_AGO"]

#: Times that are set explicitly are before this one, all others behind it (2001, in nanoseconds).
LONG_AGO = 1_000_000_000 * 10**9
#: So many steps from one look at the whole tree to the next.
_EVERY = 150


def confine(directory: str) -> None:
    """Let this process see nothing but the directory, for good."""
    inside, outside = identity(directory), identity("/")
    os.chdir(directory)
    os.chroot(".")
    os.chdir("/")
    if inside == outside or any(identity(path) != inside for path in ("/", "/..", ".", "..", "../..")):
        raise SystemExit("not confined")
    for entry in range(3, 256):
        if outcome(lambda: os.fstat(entry)) != "EBADF":  # noqa: B023 -- called at once
            raise SystemExit(f"{entry} is open, and may lead out")


def identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def shown(value: Any) -> str:
    """A value in a line; long content by its hash."""
    if isinstance(value, bytes) and len(value) > 64:
        return f"{len(value)} bytes {hashlib.blake2b(value, digest_size=8).hexdigest()}"
    return repr(value)


def calls(seed: int, steps: int) -> Iterator[str]:
    world, random = World(Path("/")), RandomCalls(seed)
    os.umask(0)
    for directory in (DEEP, b"a/a", b"b/c"):
        os.makedirs(world.at(directory))
    for number in range(steps):
        step = random.step()
        yield f"{number}: {step.text}: {shown(step.do(world))}"
        if number % _EVERY == _EVERY - 1:
            yield from tree(world)
    world.close()
    yield from tree(world)


def tree(world: World, *, all_times: bool = False) -> Iterator[str]:
    """All there is: a line for each fact of each file."""
    for path, facts in world.tree().items():
        atime, mtime, ctime = world.times(path)
        if all_times:
            facts["times"] = atime, mtime, ctime
        else:
            facts |= {name: time for name, time in (("atime", atime), ("mtime", mtime)) if time < LONG_AGO}
        for fact, value in facts.items():
            yield f"{path!r} {fact} {shown(value)}"


def probe(paths: list[str]) -> Iterator[str]:
    """For each path, and a link to it: whether it is the root, or with what calls that change something fail."""
    ways: dict[str, Callable[[str], object]] = {
        "chmod": lambda path: os.chmod(path, 0o700),
        "chown": lambda path: os.chown(path, 1000, 1000),
        "utime": lambda path: os.utime(path, (1, 1)),
        "truncate": lambda path: os.truncate(path, 0),
        "unlink": os.unlink,
        "list": os.listdir,
    }
    root = identity("/")
    for number, path in enumerate(paths):
        link = f"/link {number}"
        os.symlink(path, link)
        for way in (path, link):
            found = outcome(lambda: identity(way))  # noqa: B023 -- called at once
            yield f"{way}: {'the root' if found == root else found}"
            if found != root:
                for title, call in ways.items():
                    if title != "unlink" or way == path:
                        yield f"{title} {way}: {outcome(lambda: call(way))}"  # noqa: B023


def main() -> None:
    directory, what, *arguments = sys.argv[1:]
    confine(directory)
    match what:
        case "calls":
            lines = calls(*map(int, arguments))
        case "tree":
            lines = tree(World(Path("/")), all_times=True)
        case _:
            lines = probe(arguments)
    for line in lines:
        # At once: of a call that does not come back, the one before it is known.
        sys.stdout.write(line.replace(DEEP.decode(), "DEEP").replace(LONG.decode(), "LONG") + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
