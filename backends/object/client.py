"""What ObjectBackend asks of a store: obstore's calls in worker threads, its errors in ours.

obstore's asynchronous calls need asyncio; its synchronous ones release the GIL, so they run in threads.
A call that has begun is not abandoned on cancellation, but for listings: it would go on reading a buffer that its
caller may reuse. How long it may take is for the store's `retry_config` and timeouts to say.

A store that is a local directory differs in two ways, and `LocalClient` makes up for both: obstore does
not make its files durable there, and has no conditional update.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import obstore
import trio
import xxhash
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore

from fusevol.api.io import Buffer
from fusevol.backends.base import NO_VERSION, Manifest
from fusevol.backends.object.errors import in_words
from fusevol.errors import BackendError, CorruptData, InvalidArgument, ManifestConflict, NoSpace, NotSupported

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Client", "LocalClient", "Missing", "client_of", "open_client"]

_T = TypeVar("_T")

#: Requests under way at the same time, of one backend.
PARALLEL = 20

_MAGIC = b"fvm1"
_NONCE = 16
_HEAD = len(_MAGIC) + _NONCE + 8
_FULL = re.compile(rf"os error ({errno.ENOSPC}|{errno.EDQUOT})\b|No space left|QuotaExceeded|StorageFull")


class Missing(BackendError):
    """There is no such object. Does not leave ObjectBackend."""

    summary = "No such object"


def seal(data: Buffer) -> bytes:
    """A manifest as it is stored: magic, nonce, checksum of the rest, data.

    The nonce makes the bytes of every put unique. So a store whose ETags are hashes of the content never
    gives one out twice, and a put whose answer was lost can be told from somebody else's.
    """
    body = os.urandom(_NONCE) + bytes(data)
    return _MAGIC + body[:_NONCE] + xxhash.xxh3_64_digest(body) + body[_NONCE:]


def unseal(stored: bytes, path: str) -> tuple[bytes, bytes]:
    """The data and the nonce of a stored manifest."""
    nonce = stored[len(_MAGIC) : len(_MAGIC) + _NONCE]
    digest = stored[len(_MAGIC) + _NONCE : _HEAD]
    if not stored.startswith(_MAGIC) or xxhash.xxh3_64_digest(nonce + stored[_HEAD:]) != digest:
        raise CorruptData(f"the manifest {path} is damaged")
    return stored[_HEAD:], nonce


class Client:
    """A store. Paths are relative to its prefix."""

    durable = True
    #: Whether a listing is in the order of the names.
    sorted = True

    def __init__(self, store: "ObjectStore") -> None:
        self.store = store
        self._limiter = trio.CapacityLimiter(PARALLEL)
        self.durable = not isinstance(store, obstore.store.MemoryStore)

    async def _run(self, what: str, call: Callable[[], _T], *, abandon: bool = False) -> _T:
        """Make a call in a thread; name `what` in errors. abandon: whoever is cancelled does not wait for its end."""

        def translated() -> _T:
            try:
                return call()
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise BackendError(f"{what}: there is no such bucket") from error
                raise Missing(f"{what}: no such object") from error
            except (AlreadyExistsError, PreconditionError):
                raise
            except (BaseError, OSError, ValueError, NotImplementedError) as error:
                text = str(error)
                kind = NoSpace if _FULL.search(text) else BackendError
                raise kind(f"{what}: {in_words(text) or type(error).__name__}") from error

        return await trio.to_thread.run_sync(translated, limiter=self._limiter, abandon_on_cancel=abandon)

    async def exists(self, path: str) -> bool:
        """Whether there is an object at `path`."""
        try:
            await self._run(path, lambda: obstore.head(self.store, path))
        except Missing:
            return False
        return True

    async def get(self, path: str) -> bytes:
        """The bytes of an object. Raises Missing."""
        return await self._run(path, lambda: bytes(obstore.get(self.store, path).bytes()))

    async def get_range(self, path: str, start: int, stop: int) -> Buffer:
        """Some bytes of an object, at least one. Raises Missing."""
        data = await self._run(path, lambda: memoryview(obstore.get_range(self.store, path, start=start, end=stop)))
        if len(data) != stop - start:
            raise CorruptData(f"{path} is shorter than its name says")
        return data

    async def create(self, path: str, data: Buffer) -> bool:
        """Make an object; False if there is one already."""
        # obstore's memory store would otherwise keep the caller's buffer.
        body = data if self.durable else bytes(data)
        try:
            await self._run(path, lambda: obstore.put(self.store, path, body, mode="create"))
        except AlreadyExistsError:
            return False
        return True

    async def replace(self, path: str, data: bytes) -> None:
        """Make an object, or put new bytes into the one there is."""
        await self._run(path, lambda: obstore.put(self.store, path, data, use_multipart=False))

    async def delete(self, paths: Sequence[str]) -> None:
        """Delete objects; no harm if they are gone."""
        if not paths:
            return
        try:
            await self._run(paths[0], lambda: obstore.delete(self.store, paths))
        except Missing:
            # Some store found one of many missing; which of the others are left is anybody's guess.
            for path in paths:
                try:
                    await self._run(path, lambda path=path: obstore.delete(self.store, path))  # type: ignore[misc]
                except Missing:
                    continue

    async def names(self, folder: str, start: str = "", stop: str = "\uffff") -> list[tuple[str, int]]:
        """Names, relative to `folder`, and sizes of the objects below it with start <= name < stop."""

        def call() -> list[tuple[str, int]]:
            found = []
            skip = len(folder) + 1
            # `offset` is exclusive; "-" sorts before every digit of a name.
            after = f"{folder}/{start}-" if start else None
            for chunk in obstore.list(self.store, f"{folder}/", offset=after, chunk_size=1000):
                for meta in chunk:
                    name = meta["path"][skip:]
                    if start <= name < stop:
                        found.append((name, meta["size"]))
                    elif self.sorted and name >= stop:
                        return found
            return found

        try:
            return await self._run(folder, call, abandon=True)
        except BackendError as error:
            # A listing that breaks off is not tried again by obstore, as other requests are.
            if type(error) is not BackendError:
                raise
            return await self._run(folder, call, abandon=True)

    async def make_durable(self, paths: Iterable[str]) -> None:
        """Bring what was written and deleted at these paths to stable storage. Network stores have done so."""

    async def drop_folder(self, folder: str) -> None:
        """Remove what is left of a folder without objects. Only local directories have such."""

    async def get_manifest(self, path: str) -> Manifest:
        """The manifest at `path`. Raises Missing, CorruptData."""
        data, _, version = await self._manifest(path)
        return Manifest(data, version)

    async def _manifest(self, path: str) -> tuple[bytes, bytes, str]:
        def call() -> tuple[bytes, str]:
            result = obstore.get(self.store, path)
            return bytes(result.bytes()), _version(result.meta["e_tag"], result.meta["version"])

        stored, version = await self._run(path, call)
        return *unseal(stored, path), version

    async def put_manifest(self, path: str, data: Buffer, if_version: str) -> str:
        """Put the manifest if its version is still `if_version`. Raises ManifestConflict."""
        sealed = seal(data)
        mode: Any = "create"
        if if_version != NO_VERSION:
            version, space, e_tag = if_version.partition(" ")
            if not space:
                raise ManifestConflict(f"the manifest {path} never had the version {if_version!r}")
            mode = {key: value for key, value in (("e_tag", e_tag), ("version", version)) if value}
        try:
            result = await self._run(path, lambda: obstore.put(self.store, path, sealed, mode=mode))
        except (AlreadyExistsError, PreconditionError, Missing):
            # Lost to somebody else, or to our own put whose answer was lost and which was tried again.
            try:
                _, nonce, version = await self._manifest(path)
            except Missing:
                nonce = b""
            if nonce and nonce in sealed[:_HEAD]:
                return version
            raise ManifestConflict(f"the manifest {path} was changed by someone else") from None
        return _version(result["e_tag"], result["version"])


def _version(e_tag: str | None, version: str | None) -> str:
    """A manifest version of what the store tells of an object. Some check one of the two, some the other."""
    if not e_tag and not version:
        raise NotSupported("the store gives no ETags, so manifests cannot be compared and swapped in it")
    return f"{version or ''} {e_tag or ''}"


class LocalClient(Client):
    """A local directory. Manifests are swapped under a lock on the file `.lock` at its top."""

    sorted = False

    def __init__(self, store: LocalStore) -> None:
        super().__init__(store)
        self._root = Path(store.prefix or "/")

    async def make_durable(self, paths: Iterable[str]) -> None:
        """Sync the files, and the folders above them up to the top. Files that are gone are skipped."""
        files = [self._root / path for path in paths]
        folders = {folder for file in files for folder in file.parents if folder.is_relative_to(self._root)}

        def call() -> None:
            for path in [*files, *sorted(folders, key=lambda folder: -len(folder.parts))]:
                try:
                    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

        if files:
            await self._run(str(self._root), call)

    async def drop_folder(self, folder: str) -> None:
        """Remove the folder and its subfolder; leave them if they are not empty."""

        def call() -> None:
            with contextlib.suppress(OSError):
                for path in (*(self._root / folder).glob("*/"), self._root / folder):
                    path.rmdir()

        await self._run(folder, call)

    async def _manifest(self, path: str) -> tuple[bytes, bytes, str]:
        data, nonce = unseal(await self._run(path, (self._root / path).read_bytes), path)
        return data, nonce, nonce.hex()

    async def put_manifest(self, path: str, data: Buffer, if_version: str) -> str:
        """Put the manifest if its version, here its nonce, is still `if_version`. Raises ManifestConflict."""
        file, sealed = self._root / path, seal(data)
        # obstore leaves names that end in "#" and digits out of its listings, so no crash leaves litter.
        draft = file.with_name(f"{file.name}#0")

        def call() -> bool:
            with open(self._root / ".lock", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    found = unseal(file.read_bytes(), path)[1].hex()
                except FileNotFoundError:
                    found = NO_VERSION
                if found != if_version:
                    return False
                file.parent.mkdir(parents=True, exist_ok=True)
                with open(draft, "wb", buffering=0) as out:
                    view = memoryview(sealed)
                    while view:
                        view = view[out.write(view) :]
                    os.fsync(out.fileno())
                os.replace(draft, file)
                return True

        if not await self._run(path, call):
            raise ManifestConflict(f"the manifest {path} was changed by someone else")
        await self.make_durable([path])
        return unseal(sealed, path)[1].hex()


Kind = Literal["config", "client_options", "retry_config"]


def open_client(url: str, options: dict[Kind, dict[str, Any] | None]) -> Client:
    """A client for the store at `url`; `options` go to obstore's store of that kind."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if not isinstance(value, dict):
            raise InvalidArgument(f"no store can be opened at {url}: {name} must be a table")
    if not isinstance(url, str):
        raise InvalidArgument(f"no store can be opened at {url!r}: it is no text")
    if "retry_config" in given:
        # Seconds, where obstore wants an object that no configuration file can have.
        seconds = given["retry_config"].get("retry_timeout")
        timeout = {"retry_timeout": timedelta(seconds=seconds)} if isinstance(seconds, int | float) else {}
        given["retry_config"] = given["retry_config"] | timeout
    if url.startswith("file:"):
        given["mkdir"] = True
    endpoint = str(given.get("config", {}).get("endpoint", "https:"))
    if not endpoint.startswith(("http:", "https:")):
        # obstore would panic at the first request.
        raise InvalidArgument(f"no store can be opened at {url}: its endpoint {endpoint!r} is no http or https URL")
    try:
        store = obstore.store.from_url(url, **given)
    except BaseException as error:
        # Options that obstore does not expect make it panic, which is no Exception.
        if not isinstance(error, BaseError | OSError | ValueError | TypeError) and "Panic" not in type(error).__name__:
            raise
        text = str(error)
        raise InvalidArgument(
            f"no store can be opened at {url}: {text.splitlines()[0] if text else error!r}"
        ) from error
    return client_of(store)


def client_of(store: "ObjectStore") -> Client:
    """A client for a store."""
    return LocalClient(store) if isinstance(store, LocalStore) else Client(store)
