"""The systemd service: units that systemd understands, put where they belong and taken away again."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fusevol.daemon.listen import listen_tcp, listen_unix
from fusevol.daemon.service import units
from fusevol.errors import BackendError, InvalidArgument, VolumeBusy
from tests.cli.command import FUSEVOL, Fusevol

_UNITS = ("fusevol.socket", "fusevol.service")


@pytest.fixture
def fusevol(tmp_path: Path) -> Fusevol:
    return Fusevol(tmp_path / "home")


def test_what_is_installed_is_what_is_shown_and_goes_again(fusevol: Fusevol, tmp_path: Path) -> None:
    root = tmp_path / "root"
    said = fusevol("service", "install", "--root", str(root), "--", "--patience", "5")
    where = root / "etc/systemd/system"
    assert said.splitlines() == [f"write {where / name}" for name in _UNITS]
    shown = fusevol("service", "show", "--", "--patience", "5")
    assert shown == "".join(f"# {name}\n{(where / name).read_text()}\n" for name in _UNITS)
    assert f"ExecStart={FUSEVOL} serve" in shown
    assert f"FUSEVOL_HOME={fusevol.home}" in shown
    fusevol("service", "remove", "--root", str(root))
    assert os.listdir(where) == []
    assert fusevol("service", "remove", "--root", str(root)) == "nothing is installed\n"


def test_a_unit_of_somebody_else_is_left_alone(fusevol: Fusevol, tmp_path: Path) -> None:
    theirs = tmp_path / "root/etc/systemd/system/fusevol.service"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\n")
    assert "was not made by this program" in fusevol.fails("service", "install", "--root", str(tmp_path / "root"))
    assert fusevol("service", "remove", "--root", str(tmp_path / "root")) == "nothing is installed\n"
    assert os.listdir(theirs.parent) == ["fusevol.service"]
    assert theirs.read_text() == "[Service]\n"


def test_nothing_is_left_of_an_installation_that_failed(fusevol: Fusevol, tmp_path: Path) -> None:
    where = tmp_path / "root/etc/systemd/system"
    where.mkdir(parents=True)
    # The second unit cannot be written.
    (where / "fusevol.service").symlink_to(tmp_path / "nowhere" / "file")
    result = fusevol.call("service", "install", "--root", str(tmp_path / "root"))
    assert result.status == 1
    assert not (where / "fusevol.socket").exists()


def test_a_dry_run_says_it_all_and_does_nothing(fusevol: Fusevol, tmp_path: Path) -> None:
    said = fusevol("service", "install", "--dry-run")
    assert "systemctl enable fusevol.socket fusevol.service" in said
    fusevol("service", "install", "--dry-run", "--root", str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_options_that_the_daemon_does_not_have_are_refused(fusevol: Fusevol, tmp_path: Path) -> None:
    assert "--nope" in fusevol.fails("service", "install", "--root", str(tmp_path), "--", "--nope", status=2)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_understands_the_units(tmp_path: Path) -> None:
    odd = ["--mounts", '/srv/100% "odd" $PLACE', "--docker-socket", ""]
    for name, text in units(FUSEVOL, Path("/var/lib/a home"), Path("/run/docker/plugins/x.sock"), odd).items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *(str(tmp_path / name) for name in _UNITS)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_sockets_that_systemd_made_are_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "plugin.sock"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
        made.listen()
        script = (
            "import os, sys\n"
            "os.dup2(int(sys.argv[1]), 3)\n"
            "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='plugin')\n"
            "from fusevol.daemon.listen import inherited\n"
            "found = inherited()\n"
            "print(list(found), found['plugin'].getsockname(), os.get_inheritable(3), inherited())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(made.fileno())], pass_fds=[made.fileno()], capture_output=True, text=True
        )
    assert done.stdout == f"['plugin'] {path} False {{}}\n", done.stderr


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "plugin.sock"
    listen_unix(path).close()
    with listen_unix(path), pytest.raises(VolumeBusy, match="listens on"):
        listen_unix(path)


def test_a_file_in_place_of_a_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "plugin.sock"
    path.write_text("precious")
    with pytest.raises(BackendError, match="in use"):
        listen_unix(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("address", ["", "7070", "localhost:", ":7070", "localhost:port", "localhost:70000"])
def test_an_address_is_a_host_and_a_port(address: str) -> None:
    with pytest.raises(InvalidArgument, match="HOST:PORT"):
        listen_tcp(address)
