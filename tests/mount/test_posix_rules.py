"""Every rule of POSIX on files, as in `rules`, holds on a mounted volume as it does on ext4."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import mounted_volume, needs_fuse, reference_directory
from tests.mount.rules import AREAS
from tests.mount.worlds import compare

pytestmark = needs_fuse

#: Where the kernel's own bookkeeping differs, which sets the times of files with a write-back cache (docs/mount.md).
LENIENT = (
    # FUSE takes a truncation to the same size for no change, unless it comes from ftruncate(2).
    "truncate to the same size",
    # ext4 leaves ctime alone where the ACL was what the mode says; FUSE sets it once the request is answered.
    "remove access ACL",
    "remove of",
    "set system.posix_acl_access",
)


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Path, Path]]:
    before = os.umask(0)
    try:
        with mounted_volume() as volume, reference_directory() as reference:
            yield volume.mountpoint, reference
            volume.unmount()
    finally:
        os.umask(before)


@pytest.mark.parametrize("area", AREAS)
def test_each_call_has_the_result_and_the_effects_that_it_has_on_ext4(pair: tuple[Path, Path], area: str) -> None:
    mount, reference = (parent / area for parent in pair)
    mount.mkdir()
    reference.mkdir()
    checked, wrong = compare(mount, reference, AREAS[area](), lambda title: title.startswith(LENIENT))
    print(f"{checked} calls compared")
    assert checked
    assert not wrong, "\n".join(wrong)
