"""The error classes, and the tables that map them to the outside."""

import errno
import re
from pathlib import Path

import pytest

from fusevol import errors
from fusevol.errors import ERRNO, EXIT_CODE, SEED_ERRORS, FusevolError, errno_of, exit_code_of

#: The named errors of openstorage's `volume` package, with their messages.
SEED = {
    "ErrAlreadyShutdown": "VolumeDriverProvider already shutdown",
    "ErrExist": "Already exists",
    "ErrDriverNotFound": "Driver implementation not found",
    "ErrDriverInitializing": "Driver is initializing",
    "ErrEnoEnt": "Volume does not exist.",
    "ErrEnomem": "Out of memory.",
    "ErrEinval": "Invalid argument",
    "ErrVolDetached": "Volume is detached",
    "ErrVolAttached": "Volume is attached",
    "ErrVolAttachedOnRemoteNode": "Volume is attached on another node",
    "ErrVolAttachedScale": ("Volume is attached on another node. Increase scale factor to create more instances"),
    "ErrVolHasSnaps": "Volume has snapshots associated",
    "ErrNotSupported": "Operation not supported",
    "ErrVolBusy": "Volume is busy",
}


def classes(base: type[FusevolError] = FusevolError) -> list[type[FusevolError]]:
    """`base` and its subclasses in fusevol.errors, depth first."""
    children = [kind for kind in base.__subclasses__() if kind.__module__ == errors.__name__]
    return [base] + [kind for child in children for kind in classes(child)]


def test_every_error_has_an_errno_and_an_exit_code() -> None:
    assert set(ERRNO) == set(classes())
    assert set(EXIT_CODE) == set(classes())


def test_every_errno_is_one_the_system_knows() -> None:
    assert all(number in errno.errorcode for number in ERRNO.values())


def test_every_exit_code_says_that_something_failed() -> None:
    assert set(EXIT_CODE.values()) == {1, 2}


def test_the_tree_in_the_module_docstring_is_the_class_tree() -> None:
    lines = re.findall(r"^    ([ │├└─]*)([A-Z]\w+)", errors.__doc__ or "", re.MULTILINE)
    drawn = [(len(indent) // 4, name) for indent, name in lines]
    real = [(len(kind.__mro__) - len(FusevolError.__mro__), kind.__name__) for kind in classes()]
    assert drawn == real


def test_every_named_error_of_the_seed_is_there_with_its_message() -> None:
    assert {name: kind.summary for name, kind in SEED_ERRORS.items()} == SEED


def test_no_two_named_errors_of_the_seed_are_the_same_class() -> None:
    assert len(set(SEED_ERRORS.values())) == len(SEED_ERRORS)


def test_every_error_is_exported_and_documented() -> None:
    for kind in classes():
        assert kind.__name__ in errors.__all__
        assert kind.__doc__
        assert kind.summary


def test_every_public_name_of_the_module_exists() -> None:
    for name in errors.__all__:
        assert hasattr(errors, name)


def test_an_error_without_a_message_says_its_summary() -> None:
    assert str(errors.VolumeBusy()) == "Volume is busy"
    assert errors.VolumeBusy().hint is None


def test_an_error_keeps_its_message_and_hint() -> None:
    error = errors.VolumeBusy('volume "web" is mounted', hint="unmount it")
    assert (str(error), error.hint) == ('volume "web" is mounted', "unmount it")


def test_an_error_that_a_third_party_derives_is_mapped_as_its_base() -> None:
    class TapeTorn(errors.CorruptData):
        """A third party's."""

    class BadTape(errors.InvalidArgument):
        """A third party's."""

    assert (errno_of(TapeTorn()), exit_code_of(TapeTorn())) == (errno.EIO, 1)
    assert (errno_of(BadTape()), exit_code_of(BadTape())) == (errno.EINVAL, 2)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (MemoryError(), errno.ENOMEM),
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (OSError("no number"), errno.EIO),
        (KeyError("a bug"), errno.EIO),
    ],
)
def test_an_error_that_is_not_ours_has_its_own_errno_or_eio(error: Exception, number: int) -> None:
    assert errno_of(error) == number
    assert exit_code_of(error) == 1


def test_the_module_names_no_class_twice() -> None:
    source = Path(errors.__file__).read_text()
    names = re.findall(r"^class (\w+)", source, re.MULTILINE)
    assert sorted(names) == sorted(kind.__name__ for kind in classes())
