"""Where a session can be mounted: on which directories, over what, and by whom."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.mount.mounttable import find
from tests.mount.servers import (
    LIMIT,
    MEMORYFS,
    NOBODY,
    ROOT,
    clean,
    device_for_all,
    needs_fuse,
    needs_setpriv,
    public_directory,
    serving,
)

pytestmark = needs_fuse

needs_helper = pytest.mark.skipif(shutil.which("fusermount3") is None, reason="needs fusermount3")

MIB = 1 << 20


def refused(directory: Path, mountpoint: Path) -> dict[str, object]:
    """What mounting there ends with."""
    result = directory / "refused.json"
    command = [sys.executable, os.fspath(MEMORYFS), os.fspath(mountpoint), os.fspath(result)]
    try:
        subprocess.run(command, timeout=LIMIT, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    except subprocess.TimeoutExpired:
        clean(mountpoint)
        raise
    end = json.loads(result.read_bytes())
    assert not result.with_suffix(".ready").exists()
    return {key: end[key] for key in ("type", "message")}


def test_a_mountpoint_has_to_exist(tmp_path: Path) -> None:
    path = tmp_path / "missing"
    assert refused(tmp_path, path) == {"type": "InvalidArgument", "message": f'"{path}" does not exist'}
    path = tmp_path / ("x" * 300)
    assert refused(tmp_path, path)["type"] == "InvalidArgument"


def test_a_mountpoint_has_to_be_a_directory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    assert refused(tmp_path, path) == {"type": "InvalidArgument", "message": f'"{path}" is not a directory'}
    assert refused(tmp_path, path / "below")["type"] == "InvalidArgument"


def test_a_mountpoint_must_not_be_a_mount_already(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        (tmp_path / "link").symlink_to(server.mountpoint)
        for path in (server.mountpoint, tmp_path / "link", server.mountpoint / "."):
            assert refused(tmp_path, path)["type"] == "VolumeBusy"
        (server.mountpoint / "file").write_bytes(b"still served")


def test_even_a_mount_whose_server_hangs_is_known_to_be_one(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        server.process.send_signal(signal.SIGSTOP)
        assert refused(tmp_path, server.mountpoint)["type"] == "VolumeBusy"
        server.process.send_signal(signal.SIGCONT)


def test_one_mount_lies_over_another_where_that_is_asked_for(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with serving(first) as below, serving(second, mountpoint=below.mountpoint, allow_over_mount=True) as above:
        (above.mountpoint / "file").write_bytes(b"above")
        above.terminate()
        assert above.end()["files"]["file"] == 5
        assert not (below.mountpoint / "file").exists()
        assert below.notes["counts"]["lookup"] > 0
        below.unmount()
        assert below.end()["ended"] == "unmounted"


@pytest.mark.parametrize(
    "name", ["with space", "new\nline", "tab\there", "back\\slash", "oct\\040al", "ünï€çødé", "#hash", "a,b", "\udcff"]
)
def test_mountpoints_have_any_name(tmp_path: Path, name: str) -> None:
    with serving(tmp_path, name=name) as server:
        mounted = find(server.mountpoint)
        assert mounted is not None
        assert mounted.mountpoint == tmp_path / name
        (server.mountpoint / "file").write_bytes(b"x")
        server.terminate()
        assert server.end()["ended"] == "cancelled"
        assert find(server.mountpoint) is None


@needs_helper
@needs_setpriv
def test_an_ordinary_user_mounts_through_fusermount3() -> None:
    with device_for_all(), public_directory() as directory:
        mountpoint = directory / "mnt"
        mountpoint.mkdir()
        os.chown(mountpoint, 65534, 65534)
        with serving(directory, mountpoint=mountpoint, prefix=NOBODY) as server:
            mounted = find(mountpoint)
            assert mounted is not None
            assert mounted.fstype == "fuse.fusevol"
            assert {"user_id=65534", "max_read=1048576"} <= mounted.super_options
            script = (
                "import sys, os; p = sys.argv[1]; open(p, 'wb').write(bytes(1 << 20)); print(len(open(p,'rb').read()))"
            )
            command = [*NOBODY, sys.executable, "-c", script, str(mountpoint / "file")]
            done = subprocess.run(command, timeout=LIMIT, check=True, capture_output=True)
            assert done.stdout == b"1048576\n"
            server.terminate()
            end = server.end()
            assert end["ended"] == "cancelled"
            assert end["files"]["file"] == MIB
            assert max(map(int, end["writes"])) == MIB
            assert find(mountpoint) is None


@needs_helper
@needs_setpriv
def test_what_fusermount3_refuses_is_an_error_in_one_line() -> None:
    with device_for_all(), public_directory() as directory:
        mountpoint = directory / "mnt"
        mountpoint.mkdir(0o755)  # of root's
        with serving(directory, mountpoint=mountpoint, prefix=NOBODY, wait=False) as server:
            end = server.end()
            assert end["type"] == "InvalidArgument"
            assert "\n" not in end["message"]
        os.chown(mountpoint, 65534, 65534)
        with contextlib.suppress(FileNotFoundError):
            (directory / "result.json").unlink()
        with serving(directory, mountpoint=mountpoint, prefix=NOBODY, wait=False, allow_other=True) as server:
            assert server.end()["type"] == "NotSupported"
