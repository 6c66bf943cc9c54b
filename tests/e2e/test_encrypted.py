"""Volumes in pools that encrypt, mounted and used: nothing of theirs is in the store, and all of it is in the mount."""

from __future__ import annotations

import json
import os
import random
import shutil
import uuid
from pathlib import Path

import pytest

from tests.e2e.harness import Bench, Volume
from tests.s3 import S3, configure

#: In names and contents of what the tests write.
WORD = b"vermilion-secret"
EVERYWHERE = pytest.mark.parametrize("volume", ["files", "s3"], indirect=True)


@pytest.fixture
def key(place: Path, bench: Bench) -> Path:
    """A key, as the command makes it."""
    path = place / "vault.key"
    Volume(bench, place / "home").fusevol("pool", "key", str(path))
    return path


@pytest.fixture
def volume(bench: Bench, place: Path, key: Path, request: pytest.FixtureRequest) -> Volume:
    """A mounted volume in a pool that encrypts; `place/store` has what is stored, where that is in files."""
    home = place / "home"
    home.mkdir(exist_ok=True)
    if getattr(request, "param", "files") == "s3":
        s3: S3 = request.getfixturevalue("s3")
        configure(home, s3.parameters(uuid.uuid4().hex))
    else:
        (home / "config.toml").write_text(f'[pools.default]\nbackend = "file"\npath = "{place}/store"\n')
    with (home / "config.toml").open("r+") as config:
        text = config.read().replace("[pools.default]\n", f'[pools.default]\nkey_file = "{key}"\n')
        config.seek(0)
        config.write(text)
    return Volume(bench, home).create().mount()


def synced(path: Path, data: bytes) -> bytes:
    with open(path, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    return data


def holders(directory: Path) -> list[Path]:
    """The files that the word is in, or in whose names it is."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if WORD in path.read_bytes() or WORD in bytes(path.relative_to(directory))]


@EVERYWHERE
def test_what_programs_write_is_in_no_store_and_no_cache(volume: Volume, place: Path, s3: S3) -> None:
    word = WORD.decode()
    small = synced(volume.path / f"{word}.txt", WORD * 10)
    large = synced(volume.path / "large", WORD * 400_000)
    os.setxattr(volume.path / "large", "user.note", WORD)
    os.symlink(word, volume.path / "link")
    volume.fusevol("snapshot", f"{volume.name}@{word}")
    (volume.path / "large").unlink()
    volume.umount()
    places = [place / "store", volume.home / "cache", s3.directory]
    assert sum(path.stat().st_size for there in places if there.exists() for path in there.rglob("*")) > 6_000_000
    assert [found for there in places if there.exists() for found in holders(there)] == []
    volume.mount()
    (volume.path / ".fusevol/restore").write_text(word)
    assert (volume.path / f"{word}.txt").read_bytes() == small
    assert (volume.path / "large").read_bytes() == large
    assert os.getxattr(volume.path / "large", "user.note") == WORD
    assert os.readlink(volume.path / "link") == word
    volume.umount()
    volume.check()


@EVERYWHERE
def test_after_kill_9_all_that_was_synced_is_there(volume: Volume) -> None:
    choose, written = random.Random(7), {}
    for number in range(40):
        written[f"file{number}"] = choose.randbytes(choose.choice((10, 5000, 300_000)))
        synced(volume.path / f"file{number}", written[f"file{number}"])
    volume.kill()
    volume.mount()
    assert {path.name: path.read_bytes() for path in volume.path.iterdir()} == written
    volume.umount()
    volume.check()


@EVERYWHERE
def test_another_host_needs_the_key_and_says_so(volume: Volume, key: Path, place: Path) -> None:
    data = synced(volume.path / "file", random.Random(8).randbytes(1 << 20))
    volume.umount()
    other = Volume(volume.bench, place / "other", name=volume.name)
    other.home.mkdir()
    config = (volume.home / "config.toml").read_text()
    without = "".join(line for line in config.splitlines(keepends=True) if "key_file" not in line)
    (other.home / "config.toml").write_text(without)
    (found,) = json.loads(other.fusevol("import", "--json"))
    assert "is encrypted" in found["problem"]
    wrong = place / "wrong.key"
    other.fusevol("pool", "key", str(wrong))
    (other.home / "config.toml").write_text(config.replace(str(key), str(wrong)))
    (found,) = json.loads(other.fusevol("import", "--json"))
    assert f'the key "{wrong}" is not the one that opens it' in found["problem"]
    shutil.copy(key, wrong)
    other.fusevol("import", volume.name)
    assert json.loads(other.fusevol("inspect", volume.name, "--json"))["encrypted"] is True
    other.mount()
    assert (other.path / "file").read_bytes() == data
    other.umount()


def test_without_its_key_nothing_is_done_but_a_mount_goes_on(volume: Volume, key: Path) -> None:
    synced(volume.path / "file", b"one")
    away = key.rename(key.with_name("away"))
    assert synced(volume.path / "more", b"two" * 100_000) == (volume.path / "more").read_bytes()
    volume.umount()
    for command in (("mount", volume.name, str(volume.path)), ("check", volume.name), ("rm", volume.name)):
        said = volume.fusevol(*command, status=1)
        assert f'the key "{key}" cannot be read: No such file or directory' in said
        assert "put its copy there" in said
    assert "vault.key" in volume.fusevol("status", status=None)
    away.rename(key)
    key.chmod(0o644)
    assert f"hint: chmod 600 {key}" in volume.fusevol("mount", volume.name, str(volume.path), status=2)
    key.chmod(0o600)
    volume.mount()
    assert (volume.path / "file").read_bytes() == b"one"
    assert (volume.path / "more").read_bytes() == b"two" * 100_000


def test_copies_go_from_pools_that_encrypt_to_others_and_back(volume: Volume, place: Path) -> None:
    data = synced(volume.path / "file", WORD * 50_000)
    volume.fusevol("pool", "add", "plain", "file", f"path={place}/plain")
    volume.fusevol("copy", volume.name, "open", "--pool", "plain")
    volume.fusevol("copy", "open", "closed", "--pool", "default")
    volume.fusevol("clone", "closed", "twin")
    encrypted = {each["name"]: each["encrypted"] for each in json.loads(volume.fusevol("ls", "--json"))}
    assert encrypted == {volume.name: True, "open": False, "closed": True, "twin": True}
    assert holders(place / "plain") != []
    volume.umount()
    for name in ("open", "closed", "twin"):
        volume.fusevol("mount", name, str(volume.path))
        assert (volume.path / "file").read_bytes() == data
        volume.fusevol("umount", name)
        volume.fusevol("check", name)


def test_who_asks_for_encryption_gets_it_or_an_error(volume: Volume, place: Path) -> None:
    volume.fusevol("pool", "add", "plain", "file", f"path={place}/plain")
    said = volume.fusevol("create", "no", "--pool", "plain", "--opt", "secure=true", status=1)
    assert "encrypted: its pool does not encrypt" in said
    volume.fusevol("create", "yes", "--opt", "secure=true")
    assert "encrypted:  yes" in volume.fusevol("inspect", "yes")
    assert "encrypted: its pool encrypts" in volume.fusevol("set", "yes", "--opt", "secure=false", status=1)
    assert {each["name"] for each in json.loads(volume.fusevol("ls", "--json"))} == {volume.name, "yes"}


def test_a_pool_is_not_added_with_a_key_that_does_not_fit(volume: Volume, key: Path, place: Path) -> None:
    wrong = place / "wrong.key"
    volume.fusevol("pool", "key", str(wrong))
    lines = (volume.home / "config.toml").read_text().splitlines()[1:]
    words = [line.replace(" = ", "=").replace('"', "") for line in lines if not line.startswith("key_file")]
    backend = next(word for word in words if word.startswith("backend")).partition("=")[2]
    others = [word for word in words if not word.startswith("backend")]
    other = Volume(volume.bench, place / "other")
    for more, said in (
        ([], "is encrypted"),
        ([f"key_file={wrong}"], "is not the one that opens it"),
        (["key_file=vault.key"], "'key_file': it must be an absolute path"),
        ([f"key_file={place}/none"], "No such file or directory"),
    ):
        assert said in other.fusevol("pool", "add", "vault", backend, *others, *more, status=None)
        assert not (other.home / "config.toml").exists()
    other.fusevol("pool", "add", "vault", backend, *others, f"key_file={key}")
    assert volume.name in other.fusevol("import")
