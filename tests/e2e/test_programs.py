"""Programs that people run, on a mounted volume: what they verify of their own work holds."""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume, seed

MIB = 1 << 20

IDENTITY = {
    "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
}  # fmt: skip


def _fill(path: Path, rng: random.Random, files: int, largest: int) -> None:
    for number in range(files):
        directory = path / f"d{number % 17}" / f"e{number % 5}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_bytes(rng.randbytes(rng.randrange(largest)))


def test_git_clones_commits_packs_and_finds_its_repository_sound(volume: Volume, bench: Bench, place: Path) -> None:
    origin, clone = place / "origin", volume.path / "clone"
    origin.mkdir()

    def git(*words: str, cwd: Path = clone) -> str:
        return bench.run("git", *words, cwd=cwd, env=IDENTITY)

    rng = random.Random(seed())
    git("init", "-q", "-b", "main", cwd=origin)
    for version in range(2):
        _fill(origin, rng, 150, 6000)
        git("add", "-A", cwd=origin)
        git("commit", "-qm", f"version {version}", cwd=origin)
    git("clone", "-q", "--no-local", os.fspath(origin), os.fspath(clone), cwd=place)
    assert git("rev-parse", "HEAD") == git("rev-parse", "HEAD", cwd=origin)
    assert git("status", "--porcelain") == ""
    for number in range(3):
        _fill(clone / f"new{number}", rng, 20, 3000)
        git("add", "-A")
        git("commit", "-qm", f"new {number}")
    git("checkout", "-q", "HEAD~4")
    git("checkout", "-q", "main")
    git("gc", "-q", "--prune=now")
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain") == ""
    head = git("rev-parse", "HEAD")
    volume.umount()
    volume.check()
    volume.mount()
    assert git("rev-parse", "HEAD") == head
    git("fsck", "--full", "--strict")
    assert git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    "mode", ["wal", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("delete", "truncate"))]
)
def test_sqlite_writers_and_readers_find_a_sound_database(volume: Volume, bench: Bench, place: Path, mode: str) -> None:
    file, writers, each = volume.path / "data.db", 3, 60
    with sqlite3.connect(file) as connection:
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
        connection.execute("CREATE TABLE entry (writer INTEGER, number INTEGER, body BLOB, UNIQUE (writer, number))")
    connection.close()
    script = place / "writer.py"
    script.write_text(
        "import sqlite3, sys\n"
        "file, writer, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "connection = sqlite3.connect(file, timeout=60, isolation_level=None)\n"
        "connection.execute('PRAGMA synchronous=FULL')\n"
        "for number in range(each):\n"
        "    connection.execute('BEGIN IMMEDIATE')\n"
        "    connection.execute('INSERT INTO entry VALUES (?, ?, randomblob(?))', (writer, number, 10 + number * 97))\n"
        "    connection.execute('COMMIT')\n"
        "    if number % 10 == 5:\n"
        "        total = connection.execute('SELECT count(*) FROM entry WHERE writer = ?', (writer,)).fetchone()[0]\n"
        "        assert total == number + 1, (total, number)\n"
        "connection.close()\n"
    )
    running = [bench.start(sys.executable, script, file, str(writer), str(each)) for writer in range(writers)]
    for process in running:
        said = bench.finish(process)
        assert process.returncode == 0, said
    for remounted in (False, True):
        if remounted:
            volume.umount()
            volume.check()
            volume.mount()
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*), count(DISTINCT writer) FROM entry").fetchone() == (
            writers * each,
            writers,
        )
        connection.close()


def _odd_tree(path: Path, rng: random.Random) -> None:
    """A tree with all that a copy can lose."""
    path.mkdir()
    _fill(path, rng, 60, 20000)
    names = [b"with space", b"new\nline", b"\xff\xfe not utf-8", b"-rf", b"*?[a]", "d\u00e9j\u00e0 \u2603".encode(),
             b"x" * 255, b"\\back\"quote'", b".hidden", b"tab\tname", b"\x01\x7f"]  # fmt: skip
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(path), name), "wb") as file:
            file.write(rng.randbytes(number * 1000))
    os.link(path / "d0" / "e0" / "f0", path / "hard")
    os.link(path / "d0" / "e0" / "f0", path / "d1" / "hard")
    os.symlink("d0/e0/f0", path / "soft")
    os.symlink("/nowhere/" + "x" * 3000, path / "dangling")
    os.mkfifo(path / "fifo", 0o640)
    os.mknod(path / "null", 0o020666, os.makedev(1, 3))
    with open(path / "sparse", "wb") as sparse:
        for at in (0, 3 * MIB + 5, 20 * MIB):
            sparse.seek(at)
            sparse.write(rng.randbytes(5000))
        sparse.truncate(30 * MIB)
    (path / "empty").mkdir()
    (path / "big").write_bytes(rng.randbytes(5 * MIB + 321))
    for number, mode in enumerate((0o4755, 0o2755, 0o1777, 0o000, 0o640)):
        file_ = path / f"mode{number}"
        file_.write_bytes(b"m" * number)
        os.chown(file_, 1000 + number, 2000 + number)
        file_.chmod(mode)
    os.setxattr(path / "big", "user.short", b"value")
    os.setxattr(path / "big", "user.long", rng.randbytes(3000))
    os.setxattr(path / "empty", "user.on-a-directory", b"\0binary\xff")
    # Long ago: of what it links or makes late, rsync sets the times only where the seconds differ.
    for number, entry in enumerate([*sorted(path.rglob("*")), path]):
        os.utime(entry, ns=(5, 1_234_567_890_000_000_001 + number * 1_000_000_007), follow_symlinks=False)


def _with_acls(bench: Bench, path: Path) -> None:
    bench.run("setfacl", "-m", "u:1234:rw,g:4321:r,m::rw", path / "big")
    bench.run("setfacl", "-m", "u:1234:rwx,d:u:1234:rwx,d:g::r", path / "empty")


def _picture(bench: Bench, path: Path) -> dict[str, tuple[object, ...]]:
    """All there is to know of a tree, besides inode numbers, ctimes and blocks."""
    found: dict[str, tuple[object, ...]] = {}
    links: dict[int, str] = {}
    for directory, directories, files in os.walk(os.fsencode(path)):
        directories.sort()
        for entry in sorted([*directories, *files]) + ([b""] if directory == os.fsencode(path) else []):
            full = os.path.join(directory, entry) if entry else directory
            name = os.fsdecode(os.path.relpath(full, os.fsencode(path)))
            stat = os.lstat(full)
            content = ""
            if os.path.islink(full):
                content = os.fsdecode(os.readlink(full))
            elif os.path.isfile(full):
                with open(full, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            extra = {key: os.getxattr(full, key, follow_symlinks=False)
                     for key in sorted(os.listxattr(full, follow_symlinks=False))}  # fmt: skip
            first = links.setdefault(stat.st_ino, name)
            size = 0 if os.path.isdir(full) else stat.st_size
            nlink = 0 if os.path.isdir(full) else stat.st_nlink
            found[name] = (
                stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, size, stat.st_mtime_ns, nlink, first, content,
                tuple(extra.items()),
            )  # fmt: skip
    return found


def _same(first: dict[str, tuple[object, ...]], second: dict[str, tuple[object, ...]]) -> None:
    assert sorted(first) == sorted(second)
    for name, facts in first.items():
        assert second[name] == facts, name


def test_tar_brings_a_tree_onto_the_volume_and_back_unchanged(volume: Volume, bench: Bench, place: Path) -> None:
    """Hard links, symlinks, devices, xattrs, ACLs, odd names, nanoseconds, holes."""
    source = place / "source"
    _odd_tree(source, random.Random(seed()))
    _with_acls(bench, source)
    flags = "--xattrs --xattrs-include='*' --acls --numeric-owner --format=posix --sparse"
    bench.shell(f"tar {flags} -C {source} -cf {volume.path}/tree.tar .")
    bench.shell(f"mkdir {volume.path}/tree; tar {flags} -C {volume.path}/tree -xpf {volume.path}/tree.tar")
    _same(_picture(bench, source), _picture(bench, volume.path / "tree"))
    volume.umount()
    volume.mount()
    bench.shell(f"mkdir {place}/back; tar {flags} -C {volume.path}/tree -cf - . | tar {flags} -C {place}/back -xpf -")
    _same(_picture(bench, source), _picture(bench, place / "back"))
    sparse = os.stat(volume.path / "tree" / "sparse")
    assert sparse.st_blocks * 512 < MIB, "the holes were filled"


def test_rsync_with_everything_finds_nothing_left_to_copy(volume: Volume, bench: Bench, place: Path) -> None:
    """rsync -aHAX, then --checksum, in both directions."""
    source, copy, back = place / "source", volume.path / "copy", place / "back"
    _odd_tree(source, random.Random(seed()))
    _with_acls(bench, source)

    def rsync(old: Path, new: Path) -> list[str]:
        return bench.run("rsync", "-aHAX", "--checksum", "--sparse", "--delete", "--itemize-changes", "--numeric-ids",
                         f"{old}/", f"{new}/").splitlines()  # fmt: skip

    for old, new in ((source, copy), (copy, back)):
        rsync(old, new)
        assert rsync(old, new) == []
        _same(_picture(bench, old), _picture(bench, new))
        volume.umount()
        volume.check()
        volume.mount()
    assert rsync(source, copy) == []


FIO = {
    "random-fsync": "--rw=randwrite --bs=4k --numjobs=3 --size=8m --fsync=32",
    "direct": "--rw=randwrite --bs=4k --numjobs=2 --size=8m --direct=1 --ioengine=libaio --iodepth=16",
    "sequential": "--rw=write --bs=256k --numjobs=2 --size=24m --end_fsync=1",
    "unaligned": "--rw=randwrite --bsrange=512-70000 --bs_unaligned=1 --numjobs=2 --size=12m --fdatasync=50",
    "mmap": "--rw=randrw --bs=16k --numjobs=2 --size=12m --ioengine=mmap --fsync=64",
}


@pytest.mark.parametrize(
    "job", ["random-fsync", "direct", *(pytest.param(job, marks=pytest.mark.slow) for job in list(FIO)[2:])]
)
def test_fio_verifies_what_it_wrote(volume: Volume, bench: Bench, place: Path, job: str) -> None:
    where = f"--directory={volume.path} --fallocate=truncate --randseed={seed()}"
    common = f"fio --name=job {where} --verify=crc32c --verify_fatal=1 {FIO[job]}"
    bench.shell(f"{common} --do_verify=1", cwd=place)
    if job != "mmap":
        volume.umount()
        volume.mount()
        bench.shell(f"{common} --verify_only", cwd=place)
    volume.umount()
    volume.check()


STRESSORS = [
    "hdd",
    "rename",
    "link",
    "symlink",
    "dir",
    "xattr",
    "flock",
    "fallocate",
    "seek",
    "chmod",
    "utime",
    "sync-file",
]


def test_stress_ng_finds_its_filesystem_stressors_verified(volume: Volume, bench: Bench) -> None:
    """A handful, together; scripts/stress_mount runs all there are."""
    words = [word for name in STRESSORS for word in (f"--{name}", "1", f"--{name}-ops", "60")]
    small = ("--hdd-bytes", "8m", "--fallocate-bytes", "8m")
    said = bench.run("stress-ng", "--temp-path", volume.path, "--verify", "--timeout", "6s", *small, *words)
    assert "fail:" not in said, said
    volume.umount()
    volume.check()


def test_many_processes_work_on_one_directory_at_once(volume: Volume, bench: Bench, place: Path) -> None:
    """Each makes, reads, renames and deletes files next to the others, and all append to one log."""
    script = place / "worker.py"
    script.write_text(
        "import os, random, sys\n"
        "root, worker, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "rng = random.Random(seed * 1000 + worker)\n"
        "log = os.open(f'{root}/log', os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "mine = {}\n"
        "for step in range(120):\n"
        "    name = f'{root}/{worker}-{rng.randrange(20)}'\n"
        "    if name in mine and rng.random() < 0.5:\n"
        "        assert open(name, 'rb').read() == mine[name], name\n"
        "        other = f'{root}/{worker}-{rng.randrange(20)}'\n"
        "        os.rename(name, other)\n"
        "        mine[other] = mine.pop(name)\n"
        "    else:\n"
        "        data = rng.randbytes(rng.randrange(30000))\n"
        "        with open(name, 'wb') as file: file.write(data)\n"
        "        mine[name] = data\n"
        "    if rng.random() < 0.2:\n"
        "        name = rng.choice(sorted(mine))\n"
        "        os.unlink(name); del mine[name]\n"
        "    assert os.write(log, b'%03d %05d\\n' % (worker, step)) == 10\n"
        "    if step % 40 == 7: os.fsync(log)\n"
        "for name, data in mine.items():\n"
        "    assert open(name, 'rb').read() == data, name\n"
        "assert sorted(mine) == sorted(f'{root}/{n}' for n in os.listdir(root) if n.startswith(f'{worker}-'))\n"
    )
    start, workers = seed(), 24
    running = [bench.start(sys.executable, "-W", "ignore", script, volume.path, str(worker), str(start))
               for worker in range(workers)]  # fmt: skip
    for process in running:
        said = bench.finish(process)
        assert process.returncode == 0, said
    lines = (volume.path / "log").read_text().splitlines()
    assert sorted(lines) == [f"{worker:03} {step:05}" for worker in range(workers) for step in range(120)]
    volume.umount()
    volume.check()
