"""Tables of cases for every rule of POSIX on files: who may, what fails how, what changes which times and bits."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial

from tests.mount.calls import (
    ACCESS_ACL,
    DEFAULT_ACL,
    KINDS,
    MEMBER,
    OTHER,
    OWNER,
    Call,
    make_in,
    on_file,
    on_path,
    one_of_each,
    opened,
    own,
    spares,
)
from tests.mount.worlds import EXCHANGE, ROOT_USER, WHITEOUT, Case, User, World

__all__ = ["AREAS"]


def kinds() -> Iterator[Case]:
    """Every call on every kind of file, as root."""
    for kind in ("file", "dir", "fifo", "char", "link", "empty", "tofile", "todir", "nothing"):
        for title, call in on_path(kind.encode()):
            if not (kind in ("char", "block") and title.startswith("open") and "path" not in title):
                yield Case(f"{title} of {kind}", one_of_each, call)


def owners() -> Iterator[Case]:
    """Every call on files of one's own, of one's group, of others."""
    for user, who in ((OWNER, "the owner"), (MEMBER, "the group"), (OTHER, "others")):
        for kind in ("file", "dir", "link"):

            def setup(world: World, kind: str = kind) -> None:
                one_of_each(world)
                own(world, kind.encode(), OWNER, None if kind == "link" else 0o774)

            for title, call in on_path(kind.encode()):
                yield Case(f"{title} of {kind} by {who}", setup, call, user)


def paths() -> Iterator[Case]:
    """Every call with paths that are wrong, or odd."""
    odd = {
        "through a file": b"file/x",
        "through a fifo": b"fifo/x",
        "through nothing": b"nothing/x",
        "through a loop": b"loop/x",
        "a loop": b"loop",
        "dangling": b"dangling",
        "255 bytes": b"n" * 255,
        "256 bytes": b"n" * 256,
        "below 256 bytes": b"n" * 256 + b"/x",
        "a path too long": b"dir/" + b"../dir/" * 600,
        "nothing with a slash": b"nothing/",
        "a file with a slash": b"file/",
        "a directory with a slash": b"empty/",
        "a link to a directory with a slash": b"todir/",
        "a link to a file with a slash": b"tofile/",
        "dot": b"empty/.",
        "dot dot": b"empty/..",
        "no UTF-8 and a newline": b"\xff\xfe\n\t\\\x01'\"",
    }
    for what, path in odd.items():
        for title, call in on_path(path):
            if "xattr " not in title or title == "setxattr user.a":
                yield Case(f"{title}: {what}", one_of_each, call)


def permissions() -> Iterator[Case]:
    """Every call in a directory with each of the eight permissions, as owner, group, and others."""
    for user, shift, who in ((OWNER, 6, "owner"), (MEMBER, 3, "group"), (OTHER, 0, "other")):
        for bits in range(8) if user is OWNER else (1, 3, 7):

            def setup(world: World, user: User = user, mode: int = bits << shift) -> None:
                spares(world)
                os.mkdir(world.at(b"d"))
                world.create(b"d/f", 0o666, b"data")
                own(world, b"d/f", user)
                own(world, b"d", OWNER, mode)

            for path in (b"d/f", b"d/new"):
                for title, call in on_path(path):
                    if "xattr" not in title and "mknod" not in title and "utime of" not in title:
                        yield Case(f"{title}: {path!r} where {who} may {bits:o}", setup, call, user)


def sticky() -> Iterator[Case]:
    """Who may remove and rename in a directory with the sticky bit: the owner of either, and root."""
    calls: dict[str, Call] = {
        "unlink": lambda w: os.unlink(w.at(b"d/x")),
        "rmdir": lambda w: os.rmdir(w.at(b"d/x")),
        "rename away": lambda w: w.rename(b"d/x", b"own/x"),
        "rename within": lambda w: w.rename(b"d/x", b"d/y"),
        "rename onto": lambda w: w.rename(b"own/file", b"d/x"),
        "rename a directory onto": lambda w: w.rename(b"own/dir", b"d/x"),
        "exchange": lambda w: w.rename(b"own/file", b"d/x", EXCHANGE),
        "exchange back": lambda w: w.rename(b"d/x", b"own/file", EXCHANGE),
        "link": lambda w: w.link(b"d/x", b"own/link"),
    }
    for mode in (0o777, 0o1777, 0o1770):
        for above in (ROOT_USER, OWNER, OTHER):
            for owner in (ROOT_USER, OWNER, OTHER):
                for kind in ("file", "dir", "link"):

                    def setup(
                        world: World, mode: int = mode, above: User = above, owner: User = owner, kind: str = kind
                    ) -> None:
                        for name in (b"own", b"d"):
                            os.mkdir(world.at(name))
                        for made in ("file", "dir"):
                            world.make(made, b"own/" + made.encode())
                            own(world, b"own/" + made.encode(), OWNER)
                        own(world, b"own", OWNER)
                        world.make(kind, b"d/x")
                        own(world, b"d/x", owner)
                        own(world, b"d", above, mode)

                    for title, call in calls.items():
                        where = f"of the {kind} of {owner.uid} in a directory of {above.uid} with mode {mode:o}"
                        yield Case(f"{title} {where}", setup, call, OWNER)


def privileges() -> Iterator[Case]:
    """Which calls take away the set-user-id and set-group-id bits, and file capabilities."""
    users = {"root": ROOT_USER, "owner": OWNER, "member": MEMBER, "other": OTHER}
    ways = (*on_path(b"x"), *on_file(b"x"))
    for mode in (0o4777, 0o6777, 0o6776, 0o2766, 0o6767):
        for kind in ("file", "dir"):

            def setup(world: World, mode: int = mode, kind: str = kind) -> None:
                world.make(kind, b"x")
                if kind == "file":
                    world.write_at(b"x", b"four", 0)
                spares(world)
                own(world, b"x", OWNER, mode)

            for who, user in users.items():
                for title, call in ways:
                    if title.startswith(("open", "trunc", "ch", "fch", "write", "app", "ftrunc", "posix", "utime n")):
                        yield Case(f"{title} of a {kind} of mode {mode:o} by {who}", setup, call, user)


def outsiders() -> Iterator[Case]:
    """The set-group-id bit of files whose owner is not in their group."""
    for kind in ("file", "dir", "fifo", "sock", "char"):
        for mode in (0o2764, 0o2774, 0o6764):

            def setup(world: World, kind: str = kind, mode: int = mode) -> None:
                world.make(kind, b"x")
                spares(world)
                own(world, b"x", User(OWNER.uid, 4000), mode)

            def give(world: World) -> object:
                os.setxattr(world.at(b"x"), ACCESS_ACL, acl(0o7, 0o0, 0o0, mask=0o7, users={1001: 0o6}))
                return all_acls(world)

            calls: dict[str, Call] = {f"set {ACCESS_ACL}": give}
            calls |= {title: call for title, call in on_path(b"x") if title.startswith(("ch", "lch", "utime"))}
            for who, user in {"root": ROOT_USER, "the owner": OWNER, "others": OTHER}.items():
                for title, call in calls.items():
                    yield Case(f"{title} of a {kind} of mode {mode:o} in another group by {who}", setup, call, user)


def contents() -> Iterator[Case]:
    """Calls on an open file, by its owner."""

    def setup(world: World) -> None:
        world.create(b"x", 0o600, b"four")
        own(world, b"x", OWNER)

    for title, call in on_file(b"x"):
        yield Case(title, setup, call, OWNER)


def creation() -> Iterator[Case]:
    """Owner, group and mode of what is made: set-group-id directories, the umask, default ACLs."""
    make: dict[str, Call] = {kind: partial(make_in, kind=kind, mode=0o6776) for kind in KINDS}
    make |= {"plain " + kind: partial(make_in, kind=kind, mode=0o777) for kind in ("file", "dir", "fifo")}
    make["open"] = lambda w: opened(w, b"d/x", os.O_CREAT | os.O_RDWR, 0o2666)
    defaults = {"no": None, "plain": acl(0o7, 0o5, 0o4), "large": acl(0o7, 0o7, 0o1, mask=0o6, users={1001: 0o7})}
    make["whiteout"] = leave_whiteout
    for group, mode in ((1000, 0o777), (1000, 0o2777), (4000, 0o2777), (3000, 0o3777)):
        for umask in (0, 0o27, 0o777):
            for which, default in defaults.items():

                def setup(world: World, group: int = group, mode: int = mode, default: bytes | None = default) -> None:
                    os.mkdir(world.at(b"d"))
                    own(world, b"d", User(0, group), mode)
                    if default is not None:
                        os.setxattr(world.at(b"d"), DEFAULT_ACL, default)

                for kind, call in make.items():
                    for user in (ROOT_USER, OWNER):

                        def masked(world: World, umask: int = umask, call: Call = call) -> object:
                            before = os.umask(umask)
                            try:
                                call(world)
                            finally:
                                os.umask(before)
                            names = os.listxattr(world.at(b"d/x"), follow_symlinks=False)
                            return [(name, os.getxattr(world.at(b"d/x"), name)) for name in sorted(names)]

                        where = f"in a directory {mode:o} of group {group}, umask {umask:o}, {which} default ACL"
                        yield Case(f"{kind} by {user.uid} {where}", setup, masked, user)


def acls() -> Iterator[Case]:
    """What ACLs allow, what they do to the mode, and chmod to them."""
    lists = {
        "plain": acl(0o6, 0o4, 0o0),
        "named user": acl(0o6, 0o0, 0o0, mask=0o7, users={1001: 0o6}),
        "masked": acl(0o7, 0o7, 0o7, mask=0o4, users={1001: 0o7}, groups={1000: 0o7}),
        "named group": acl(0o0, 0o0, 0o0, mask=0o6, groups={1002: 0o2, 3000: 0o4, 1001: 0o0}),
        "others only": acl(0o0, 0o0, 0o7),
        "empty": b"\2\0\0\0",
        "no ACL": b"rubbish",
        "without a mask": acl(0o7, 0o7, 0o7, users={1001: 0o7}),
    }
    for which, value in lists.items():
        for mode in (0o640, 0o2750):
            for user in (OWNER, MEMBER, OTHER):
                for kind in ("file", "dir"):

                    def given(world: World, kind: str = kind, mode: int = mode) -> None:
                        world.make(kind, b"x")
                        own(world, b"x", OWNER, mode)

                    def setup(world: World, value: bytes = value, given: Call = given) -> None:
                        given(world)
                        if len(value) > 10:
                            with contextlib.suppress(OSError):
                                os.setxattr(world.at(b"x"), ACCESS_ACL, value)

                    calls: dict[str, Call] = {
                        "access": lambda w: [os.access(w.at(b"x"), bits, effective_ids=True) for bits in range(8)],
                        "open to read": lambda w: opened(w, b"x", os.O_RDONLY),
                        "open to write": lambda w: opened(w, b"x", os.O_WRONLY),
                        "chmod": partial(change_mode, mode=0o751),
                        "chmod of special bits": partial(change_mode, mode=0o6604),
                        "remove": remove_acl,
                        "list": all_acls,
                    }
                    who = f"a {kind} of mode {mode:o} with the ACL {which} by {user.uid}"
                    for title, call in calls.items():
                        if title != "remove" or len(value) > 30:
                            yield Case(f"{title} of {who}", setup, call, user)
                    for name in (ACCESS_ACL, DEFAULT_ACL):

                        def give(world: World, name: str = name, value: bytes = value) -> object:
                            os.setxattr(world.at(b"x"), name, value)
                            return all_acls(world)

                        yield Case(f"set {name} of {who}", given, give, user)


def leave_whiteout(world: World) -> None:
    world.create(b"d/x")
    world.rename(b"d/x", b"d/y", WHITEOUT)


def change_mode(world: World, mode: int) -> object:
    os.chmod(world.at(b"x"), mode)
    return all_acls(world)


def remove_acl(world: World) -> object:
    os.removexattr(world.at(b"x"), ACCESS_ACL)
    return all_acls(world)


def all_acls(world: World) -> list[tuple[str, bytes]]:
    return [(name, os.getxattr(world.at(b"x"), name)) for name in sorted(os.listxattr(world.at(b"x")))]


def acl(
    owner: int,
    group: int,
    other: int,
    *,
    mask: int | None = None,
    users: dict[int, int] | None = None,
    groups: dict[int, int] | None = None,
) -> bytes:
    """An ACL as the kernel takes it (linux/posix_acl_xattr.h)."""
    nobody = 0xFFFFFFFF
    entries = [(1, owner, nobody), *((2, bits, uid) for uid, bits in (users or {}).items()), (4, group, nobody)]
    entries += [(8, bits, gid) for gid, bits in (groups or {}).items()]
    if mask is not None:
        entries.append((16, mask, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in (*entries, (32, other, nobody)))


AREAS: dict[str, Callable[[], Iterator[Case]]] = {
    "acls": acls,
    "contents": contents,
    "creation": creation,
    "kinds": kinds,
    "outsiders": outsiders,
    "owners": owners,
    "paths": paths,
    "permissions": permissions,
    "privileges": privileges,
    "sticky": sticky,
}
