"""The daemon as a service of systemd: its units, and putting them where they belong, and away again.

The plugin's socket is a unit of its own, so that dockerd can connect, and wait, before the daemon runs and while it is
restarted. Only the daemon itself is ended with its unit (KillMode=process): the processes that serve mounts are in its
control group, but containers need them. The unit must not have a mount namespace of its own (PrivateTmp=, Protect...=),
or nobody else would see the mounts.
"""

import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fusevol.errors import AlreadyExists, BackendError, NotSupported

__all__ = ["Installer", "units"]

_MARK = "# Made by `fusevol service install`; `fusevol service remove` takes it away."

_SOCKET_NAME, _SERVICE_NAME = "fusevol.socket", "fusevol.service"

_SOCKET = """\
{mark}
[Unit]
Description=fusevol: socket of the Docker volume plugin
Before=docker.service

[Socket]
ListenStream={plugin_socket}
FileDescriptorName=plugin
SocketMode=0600
DirectoryMode=0755
RemoveOnStop=yes

[Install]
WantedBy=sockets.target
"""

_SERVICE = """\
{mark}
[Unit]
Description=fusevol: volumes for Docker, REST API and metrics
Requires=fusevol.socket
After=fusevol.socket local-fs.target
Before=docker.service

[Service]
Type=notify
Environment={home}
ExecStart={command}
Restart=always
RestartSec=1
# The processes that serve mounts stay when this is stopped or restarted.
KillMode=process
OOMPolicy=continue
LimitNOFILE=1048576
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""


def units(program: Path, home: Path, plugin_socket: Path, arguments: Sequence[str]) -> dict[str, str]:
    """The text of each unit, by its name. arguments: those of `fusevol serve`."""
    command = [str(program), "serve", "--plugin-socket", str(plugin_socket), *arguments]
    return {
        _SOCKET_NAME: _SOCKET.format(mark=_MARK, plugin_socket=_plain(str(plugin_socket))),
        _SERVICE_NAME: _SERVICE.format(
            mark=_MARK, home=_quoted(f"FUSEVOL_HOME={home}"), command=" ".join(map(_quoted, command))
        ),
    }


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _quoted(word: str) -> str:
    """A word in a command line of systemd, see systemd.service(5)."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or not word or any(c.isspace() for c in word) or "'" in word else word


class Installer:
    """Puts units under a root directory. say: called with each step, before it is taken.

    root: "/" for this host; any other is for packages, and nothing is started there. dry: steps are said only.
    """

    def __init__(self, say: Callable[[str], None], *, root: Path = Path("/"), dry: bool = False) -> None:
        self._say = say
        self._here = root == Path("/")
        self._directory = root / "etc/systemd/system"
        self._dry = dry

    def install(self, wanted: dict[str, str]) -> None:
        """Write the units, enable and start them; all or nothing.

        Raises AlreadyExists for a unit of that name which is not ours, NotSupported without systemd, BackendError.
        """
        self._check_systemd()
        before = {name: self._read(name) for name in wanted}
        for name, text in before.items():
            if text is not None and _MARK not in text:
                raise AlreadyExists(
                    f"{self._directory / name} is there, and was not made by this program", hint="move it away first"
                )
        try:
            for name, text in wanted.items():
                self._write(name, text)
            self._systemctl("daemon-reload")
            self._systemctl("enable", *wanted)
            # What runs already gives way to the new settings; a socket cannot be made anew under its service.
            self._systemctl("stop", _SERVICE_NAME)
            self._systemctl("restart", _SOCKET_NAME)
            self._systemctl("start", _SERVICE_NAME)
        except BackendError:
            self._say("# that failed; going back")
            for name, earlier in before.items():
                if earlier is not None:
                    self._write(name, earlier)
            self._take_away([name for name, earlier in before.items() if earlier is None])
            raise

    def remove(self) -> bool:
        """Stop, disable and remove those of the units that are ours; whether there were any. Mounts stay."""
        self._check_systemd()
        ours = [name for name in (_SERVICE_NAME, _SOCKET_NAME) if _MARK in (self._read(name) or "")]
        self._take_away(ours)
        return bool(ours)

    def _take_away(self, names: Sequence[str]) -> None:
        if not names:
            return
        self._systemctl("disable", "--now", *names, fatal=False)
        for name in names:
            path = self._directory / name
            self._step(shlex.join(["rm", str(path)]), partial(path.unlink, missing_ok=True))
        self._systemctl("daemon-reload", fatal=False)

    def _check_systemd(self) -> None:
        runs = shutil.which("systemctl") is not None and Path("/run/systemd/system").is_dir()
        if self._here and not self._dry and not runs:
            raise NotSupported(
                "this host does not run systemd",
                hint="fusevol service show prints the units; otherwise have fusevol serve started before dockerd",
            )

    def _read(self, name: str) -> str | None:
        try:
            return (self._directory / name).read_text(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BackendError(f"{self._directory / name}: {error.strerror}") from error

    def _write(self, name: str, text: str) -> None:
        path = self._directory / name

        def write() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

        self._step(f"write {path}", write)

    def _systemctl(self, *words: str, fatal: bool = True) -> None:
        command = ["systemctl", *words]

        def run() -> None:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode and fatal:
                reason = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
                raise BackendError(f"{shlex.join(command)}: {reason}")

        if self._here:
            self._step(shlex.join(command), run)

    def _step(self, what: str, work: Callable[[], None]) -> None:
        self._say(what)
        if self._dry:
            return
        try:
            work()
        except OSError as error:
            raise BackendError(f"{what}: {error.strerror}") from error
