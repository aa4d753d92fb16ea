"""A PostgreSQL server of the tests' own, in a directory that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

USERS = ("postgres", "nobody")  # of whom one runs the server where the tests run as root, which it refuses


def binaries() -> Path | None:
    """Where the programs of the newest server of this machine are; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    here = shutil.which("initdb")
    return Path(here).parent if here else None


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
    """A running server that listens on a socket in its directory only."""

    def __init__(self, *options: str) -> None:
        programs = binaries()
        assert programs is not None, "there is no PostgreSQL"
        self._programs = programs
        self.place = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._user = unprivileged()
        if self._user is not None:
            os.chown(self.place, *self._user)
        self._run("initdb", "-D", str(self.place / "data"), "-A", "trust", "-N", "-U", "inmem")
        self.options = ("-k", str(self.place), "-h", "", "-p", "5432", *options)
        self.start()

    def _run(self, program: str, *words: str) -> None:
        more: dict[str, Any] = {}
        if self._user is not None:
            more = {"user": self._user[0], "group": self._user[1], "extra_groups": []}
        done = subprocess.run(
            [str(self._programs / program), *words], cwd=self.place, capture_output=True, text=True,
            check=False, stdin=subprocess.DEVNULL, **more,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it."""
        words = " ".join(f"'{word}'" for word in self.options)
        data, log = str(self.place / "data"), str(self.place / "log")
        self._run("pg_ctl", "-D", data, "-o", words, "-l", log, "-w", "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop it."""
        self._run("pg_ctl", "-D", str(self.place / "data"), "-m", mode, "-w", "stop")

    @property
    def conninfo(self) -> str:
        """How to connect to it."""
        return f"host={self.place} port=5432 user=inmem dbname=postgres"

    @property
    def url(self) -> str:
        """The same, as a URL."""
        return f"postgresql://inmem@{quote(str(self.place), safe='')}:5432/postgres"

    def remove(self) -> None:
        """Stop it, and remove its files."""
        self.stop()
        shutil.rmtree(self.place)
