"""A PostgreSQL server of its own for a test, and clients that keep what was committed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from tests.e2e.harness import Bench, as_user, until

__all__ = ["Client", "Postgres"]

SETTINGS = {
    "shared_buffers": "16MB",
    "max_connections": "20",
    "listen_addresses": "",
    "max_wal_size": "64MB",
    "checkpoint_timeout": "30s",
    "log_min_messages": "warning",
}
BALANCES = """
    SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
           (SELECT sum(bbalance) FROM pgbench_branches), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)
"""


def program(name: str) -> Path:
    """Where Debian has a program of the newest PostgreSQL there is."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    assert found, f"{name} is not installed; scripts/setup installs postgresql"
    return found[-1]


class Postgres:
    """A server with its data in `data`, a directory below a mount, and its socket in a directory of its own."""

    def __init__(self, bench: Bench, data: Path, sockets: Path) -> None:
        self._bench = bench
        self.data = data
        self.sockets = sockets
        sockets.mkdir(exist_ok=True)
        shutil.chown(sockets, "postgres", "postgres")
        self.process: subprocess.Popen[str] | None = None

    def run(self, name: str, *words: str, limit: float = 60, status: int | None = 0) -> str:
        """Run one of PostgreSQL's programs against this server."""
        return self._bench.run(*as_user("postgres"), program(name), *words, cwd=Path("/"),
                               env={"PGHOST": os.fspath(self.sockets)}, limit=limit, status=status)  # fmt: skip

    def create(self) -> Postgres:
        """initdb."""
        self.data.mkdir()
        shutil.chown(self.data, "postgres", "postgres")
        self.run("initdb", "-D", os.fspath(self.data), "-A", "trust", "-E", "UTF8", "--locale=C")
        return self

    def start(self) -> Postgres:
        """Start, and wait until it answers; recovery is over then."""
        options = [word for key, value in SETTINGS.items() for word in ("-c", f"{key}={value}")]
        log = self.sockets / "log"
        deadline_shown = ""

        def attempt() -> bool:
            # For as long as processes of a killed server are there, a new one refuses to start.
            nonlocal deadline_shown
            if self.process is None:
                with open(log, "a") as file:
                    self.process = self._bench.start(*as_user("postgres"), program("postgres"), "-D", self.data, "-k",
                                                     self.sockets, *options, stdout=file.fileno())  # fmt: skip
            if self.process.poll() is not None:
                self._bench.finish(self.process)
                self.process = None
                deadline_shown = log.read_text()[-2000:]
                return False
            return self.run("pg_isready", "-q", status=None) == "" and self._answers()

        try:
            until(attempt, "PostgreSQL to answer", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{deadline_shown or log.read_text()[-2000:]}") from None
        return self

    def _answers(self) -> bool:
        return self.run("psql", "-qAt", "-c", "SELECT 1", "postgres", status=None).strip() == "1"

    def kill(self) -> None:
        """kill -9 of the postmaster."""
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self._bench.finish(self.process)
        self.process = None

    def gone(self) -> None:
        """Wait until the server has ended by itself, for want of its files; end it where it lingers."""
        assert self.process
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
        self._bench.finish(self.process)
        self.process = None

    def stop(self) -> None:
        """A clean shutdown."""
        assert self.process
        self.process.send_signal(signal.SIGINT)
        self._bench.finish(self.process)
        self.process = None

    def ask(self, sql: str) -> list[str]:
        """The rows of a query."""
        return self.run("psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql, "postgres").split("\n")[:-1]

    def pgbench(self, seconds: int, seed: int) -> subprocess.Popen[str]:
        """Start a load."""
        return self._bench.start(*as_user("postgres"), program("pgbench"), "-n", "-c", "3", "-T", str(seconds),
                                 f"--random-seed={seed}", "postgres", env={"PGHOST": os.fspath(self.sockets)},
                                 cwd=Path("/"))  # fmt: skip

    def verify(self) -> None:
        """The balances that pgbench keeps agree, and every index has what its table has."""
        (row,) = self.ask(BALANCES)
        assert len(set(row.split("|"))) == 1, row
        self.run("pg_amcheck", "--heapallindexed", "--install-missing", "postgres")


class Client:
    """One connection that inserts row after row, each a transaction of its own, and notes each that was committed."""

    def __init__(self, bench: Bench, server: Postgres, number: int, rows: int = 30_000) -> None:
        self._bench = bench
        self.number = number
        self._answers = server.sockets / f"committed-{number}"
        script = server.sockets / f"client-{number}.sql"
        script.write_text("".join(f"INSERT INTO row VALUES ({number}, {n}) RETURNING n;\n" for n in range(rows)))
        with open(self._answers, "w") as file:
            self._process = bench.start(*as_user("postgres"), program("psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", "-f",
                                        script, "postgres", env={"PGHOST": os.fspath(server.sockets)}, cwd=Path("/"),
                                        stdout=file.fileno())  # fmt: skip

    @property
    def committed(self) -> int:
        """How many rows were acknowledged."""
        return sum(line.isdigit() for line in self._answers.read_text().split("\n")[:-1])

    def end(self) -> None:
        """Wait until it has noticed that its server is gone, or end it."""
        if self._process.poll() is None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._bench.finish(self._process)
