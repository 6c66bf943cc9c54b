"""Backends: the stores of bytes under a volume, found by name.

A backend is an entry point of the group `fusevol.backends`, so that third parties can add theirs. The
modules of the backends are imported only when they are used.
"""

import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fusevol.backends.base import NO_VERSION, Backend, Manifest, Traits
from fusevol.errors import DriverNotFound, InvalidArgument

__all__ = ["NO_VERSION", "Backend", "Manifest", "Traits", "available", "check_parameters", "load", "open_backend"]

_GROUP = "fusevol.backends"


def available() -> list[str]:
    """The names of all backends that are installed, sorted. Nothing is imported."""
    return sorted({point.name for point in entry_points(group=_GROUP)})


def load(name: str) -> type[Backend]:
    """The backend class of that name. Raises DriverNotFound if there is none, or it cannot be imported."""
    points: list[EntryPoint] = list(entry_points(group=_GROUP, name=name))
    if not points:
        raise DriverNotFound(f"no backend {name!r}; known: {', '.join(available()) or 'none'}")
    package = points[0].dist.name if points[0].dist is not None else points[0].module
    try:
        found = points[0].load()
    except Exception as error:  # a broken package must not take this program down
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DriverNotFound(
            f"backend {name!r} of package {package} does not load: {reason}",
            hint=f"repair or remove the package {package}",
        ) from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise DriverNotFound(f"backend {name!r} of package {package} is not a Backend class")
    return found


def check_parameters(name: str, params: Mapping[str, Any], *, besides: Sequence[str] = ()) -> type[Backend]:
    """The backend of that name, which has such parameters; what they are is not looked at.

    besides: what else the caller knows, for the error. Raises InvalidArgument for one that it does not know, or lacks,
    and as `load`.
    """
    kind = load(name)
    signature = inspect.signature(kind)
    known = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for param in params:
        if param not in known:
            names = ", ".join([*known, *besides]) or "none"
            raise InvalidArgument(f"backend {name!r} has no parameter {param!r}; known: {names}")
    try:
        signature.bind(**params)
    except TypeError as error:
        raise InvalidArgument(f"backend {name!r}: {error}") from None
    return kind


def open_backend(name: str, /, **params: Any) -> Backend:
    """Open the backend of that name. Raises as `check_parameters`, and as the backend itself."""
    return check_parameters(name, params)(**params)
