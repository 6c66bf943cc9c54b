"""Encryption at rest: what a store gets to see, what a key opens, and what is not taken for a key."""

import os
import random
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from fusevol.backends.base import Manifest
from fusevol.backends.encryption import EncryptedBackend, Key, make_key_file, read_key_file
from fusevol.backends.encryption.ciphers import SpaceCipher
from fusevol.backends.memory import MemoryBackend, new_version
from fusevol.errors import AlreadyExists, BackendError, CorruptData, FusevolError, InvalidArgument, WrongKey
from fusevol.log import copying, create_volume, open_volume
from fusevol.testing.damage import bits_to_flip, flip, make_volume, read_all, stored_blocks

SECRET = bytes(range(32))
KEY = Key(SECRET)
BLOCK = 4096
UNIT = 64 << 10


def derived(purpose: str, length: int) -> bytes:
    """What docs/format.md says a key for some purpose is."""
    return HKDF(SHA256(), length, salt=None, info=f"fusevol {purpose}".encode()).derive(SECRET)


def by_the_book(data: bytes, offset: int, volume_id: str) -> bytes:
    """XTS-AES-256 as IEEE 1619 writes it down, block of 16 bytes by block, from nothing but AES."""
    key = derived(f"space {volume_id}", 64)
    one, two = (Cipher(algorithms.AES(half), modes.ECB()) for half in (key[:32], key[32:]))
    result = bytearray()
    for at in range(0, len(data), 16):
        unit, inner = divmod(offset + at, UNIT)
        tweak = int.from_bytes(two.encryptor().update(unit.to_bytes(16, "little")), "little")
        for _ in range(inner // 16):
            tweak = tweak << 1 ^ (0x87 | 1 << 128 if tweak >> 127 else 0)
        mask = tweak.to_bytes(16, "little")
        mixed = bytes(a ^ b for a, b in zip(data[at : at + 16], mask, strict=True))
        result += bytes(a ^ b for a, b in zip(one.encryptor().update(mixed), mask, strict=True))
    return bytes(result)


async def stored(store: MemoryBackend, size: int, offset: int) -> bytes:
    return bytes(await store.read("v", size, offset))


@pytest.mark.parametrize("offset", [0, BLOCK, 15 * BLOCK, 2**40 + 3 * BLOCK])
async def test_what_is_stored_is_xts_as_the_standard_has_it(offset: int) -> None:
    store = MemoryBackend()
    backend, data = EncryptedBackend(store, KEY), random.Random(1).randbytes(2 * BLOCK)
    await backend.create("v")
    await backend.write("v", data, offset)
    assert await stored(store, 2 * BLOCK, offset) == by_the_book(data, offset, "v")


async def test_a_manifest_is_sealed_as_the_format_has_it() -> None:
    store = MemoryBackend()
    backend = EncryptedBackend(store, KEY)
    await backend.create("v")
    version = await backend.put_manifest("v", b"one", "")
    sealed = (await store.get_manifest("v")).data
    assert sealed[:16] == b"FVSEALED" + derived("key id", 8)
    assert AESGCM(derived("manifest v", 32)).decrypt(sealed[16:28], sealed[28:], None) == b"one"
    await backend.put_manifest("v", b"one", version)
    assert (await store.get_manifest("v")).data[16:] != sealed[16:], "it shows that nothing has changed"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(0, 255)), max_size=8), st.data())
def test_any_blocks_come_back_whatever_they_were_written_with(
    writes: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    cipher = SpaceCipher(KEY, "v")
    space, model = bytearray(90 * BLOCK), bytearray(90 * BLOCK)
    for first, count, value in writes:
        part = slice(first * BLOCK, (first + count) * BLOCK)
        model[part] = bytes([value]) * (count * BLOCK)
        cipher.encrypt(memoryview(model)[part], part.start, memoryview(space)[part])
    first = data.draw(st.integers(0, 89))
    end = data.draw(st.integers(first, 90))
    part = slice(first * BLOCK, end * BLOCK)
    assert cipher.decrypt(memoryview(space)[part], part.start) == model[part]


async def test_nothing_of_a_volume_can_be_seen_in_the_store() -> None:
    store = MemoryBackend()
    backend, word = EncryptedBackend(store, KEY), b"a word that nobody else should see "
    await create_volume(backend, "v", word.decode())
    async with open_volume(backend, "v") as volume:
        await volume.write(word * 4000, 0)
        await volume.snapshot(word.decode().strip().replace(" ", "-"))
    everything = (await store.get_manifest("v")).data
    for offset in await stored_blocks(store, "v", 1 << 39, (1 << 39) + (1 << 22)):
        everything += await stored(store, BLOCK, offset)
    assert len(everything) > 130_000
    for part in (word[:8], word[:8].replace(b" ", b"-"), b"FVBATCH", b"FVMANIF", b'"uuid"', b"\0" * 8):
        assert part not in everything
    async with open_volume(backend, "v", read_only=True) as volume:
        assert bytes(await volume.read(len(word) * 4000, 0)) == word * 4000


async def test_volumes_and_places_have_ciphers_of_their_own() -> None:
    seen = set()
    for volume_id in ("v", "w"):
        for offset in (0, BLOCK, UNIT):
            into = bytearray(BLOCK)
            SpaceCipher(KEY, volume_id).encrypt(memoryview(bytes(BLOCK)), offset, memoryview(into))
            seen.add(bytes(into))
    assert len(seen) == 6


async def test_a_bit_that_is_flipped_in_the_store_is_an_error_and_never_another_byte() -> None:
    store = MemoryBackend()
    backend = EncryptedBackend(store, KEY)
    contents = await make_volume(backend, "v", clean=True)
    blocks = [*await stored_blocks(store, "v", 1 << 39, (1 << 39) + (1 << 20))]
    assert len(blocks) > 10
    errors = 0
    for bit in list(bits_to_flip(blocks, 8, seed=3))[::7]:
        await flip(store, "v", bit)
        found = await read_all(backend, "v")
        await flip(store, "v", bit)
        errors += isinstance(found, FusevolError)
        assert isinstance(found, CorruptData) or found == contents
    assert errors > 100
    assert await read_all(backend, "v") == contents


async def test_a_manifest_that_was_touched_is_an_error_that_names_the_volume() -> None:
    store = MemoryBackend()
    backend = EncryptedBackend(store, KEY)
    for volume_id in ("v", "w"):
        await create_volume(backend, volume_id)
    data, _ = await store.get_manifest("v")
    others = (await store.get_manifest("w")).data
    damaged = [data[:length] for length in range(0, len(data), 3)] + [data + b"\0", others]
    for bit in range(0, len(data) * 8, 5):
        touched = bytearray(data)
        touched[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(touched))
    for text in damaged:
        store.spaces["v"].manifest = Manifest(text, new_version())
        with pytest.raises((CorruptData, InvalidArgument), match='"v"'):
            await backend.get_manifest("v")
        assert store.spaces["v"].manifest.data == text


async def test_another_key_opens_nothing_and_changes_nothing(tmp_path: Path) -> None:
    store = MemoryBackend()
    contents = await make_volume(EncryptedBackend(store, KEY), "v", clean=True)
    other = EncryptedBackend(store, Key(bytes(32), "the key of somebody else"))
    before = (await store.get_manifest("v")).data
    for read_only in (True, False):
        with pytest.raises(WrongKey, match="the key of somebody else is not the one that opens it"):
            async with open_volume(other, "v", read_only=read_only):
                pass
    assert (await store.get_manifest("v")).data == before
    assert await read_all(EncryptedBackend(store, Key(SECRET)), "v") == contents


async def test_encrypted_and_other_volumes_are_told_apart_both_ways() -> None:
    store = MemoryBackend()
    await make_volume(store, "plain", clean=True)
    await make_volume(EncryptedBackend(store, KEY), "sealed", clean=True)
    with pytest.raises(WrongKey, match='the manifest of volume "plain" is not encrypted'):
        async with open_volume(EncryptedBackend(store, KEY), "plain"):
            pass
    with pytest.raises(WrongKey, match='the manifest of volume "sealed" is encrypted') as caught:
        async with open_volume(store, "sealed"):
            pass
    assert "key_file" in str(caught.value.hint)


async def test_a_copy_to_an_encrypted_store_holds_the_same() -> None:
    store, far = MemoryBackend(), EncryptedBackend(MemoryBackend(), KEY)
    await create_volume(store, "v")
    data = random.Random(5).randbytes(50 * BLOCK)
    async with open_volume(store, "v") as volume:
        await volume.write(data, 7 * BLOCK)
        await volume.snapshot("s")
        await create_volume(far, "w")
        async with volume.view("s") as view, open_volume(far, "w") as target:
            await copying.Copier(None, view, None, target).run(None)
            await target.flush()
            assert bytes(await target.read(len(data), 7 * BLOCK)) == data


async def test_a_large_write_that_fails_leaves_its_buffer_to_whoever_is_at_it() -> None:
    class Keeping(MemoryBackend):
        kept: memoryview

        async def write(self, volume_id: str, data: object, offset: int) -> int:
            self.kept = memoryview(data)  # type: ignore[arg-type]
            raise BackendError("full of other things")

    store = Keeping()
    backend = EncryptedBackend(store, KEY)
    await backend.create("v")
    with pytest.raises(BackendError, match="full of other things"):
        await backend.write("v", b"one" * 4096, 0)
    kept = store.kept
    was = bytes(kept)
    with pytest.raises(BackendError):
        await backend.write("v", b"two" * 4096, 0)
    assert kept == was


# Key files


def test_a_key_is_made_once_for_its_owner_alone_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "vault.key"
    make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert len(text) == 65
    assert read_key_file(path).for_space("v") == Key(bytes.fromhex(text)).for_space("v")
    with pytest.raises(AlreadyExists):
        make_key_file(path)
    assert path.read_text() == text
    other = tmp_path / "keys" / "other.key"
    make_key_file(other)
    assert other.read_text() != text
    assert other.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["  {}  ", "{}", "\n{}\r\n\n"])
def test_white_space_around_a_key_and_capitals_are_no_matter(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text.format(SECRET.hex().upper()))
    path.chmod(0o400)
    assert read_key_file(path).id == KEY.id


@pytest.mark.parametrize(
    "text", ["", "secret", SECRET.hex()[:-1], SECRET.hex() + "00", SECRET.hex() * 2, "g" * 64, "0x" + SECRET.hex()]
)
def test_what_is_no_key_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InvalidArgument, match="holds no key") as caught:
        read_key_file(path)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o601])
def test_a_key_that_is_not_safe_from_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    make_key_file(path)
    path.chmod(mode)
    with pytest.raises(InvalidArgument, match="not safe from others") as caught:
        read_key_file(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"missing\.key.*No such file"):
        read_key_file(tmp_path / "missing.key")
    with pytest.raises(BackendError, match="Is a directory"):
        read_key_file(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(InvalidArgument, match="holds no key"):
        read_key_file(tmp_path / "fifo")
    with pytest.raises(BackendError, match="No such file"):
        make_key_file(tmp_path / "nowhere" / "at all" / "vault.key")


def test_a_key_is_never_shown() -> None:
    assert SECRET.hex() not in repr(KEY)
    assert str(SECRET) not in repr(KEY)
    assert not any(SECRET in value for value in (KEY.id, KEY.for_space("v"), KEY.for_manifest("v")))
