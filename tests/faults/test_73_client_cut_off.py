"""A client whose machine goes in the middle of what it sends: what it has locked is free within seconds.

No word of its end reaches the server: its network interface is taken down. It has one of its own, in a
network namespace that ends with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from postgres_server import PostgresServer, binaries
from postgres_shared import MISSING
from small_disks import needs_root
from support import wait_until

import inmem

RUN = "r"
WAYS = ("in a message", "in a batch", "between")
FREE_S = 5.0  # as documented
LATE_S = 4.0  # of a busy machine

CLIENT = """
import os, sys
import inmem
from inmem.engines.postgres.asking import BEGIN
from inmem.engines.postgres.statements import LOCKED

sys.stdin.readline()
db = inmem.open(sys.argv[1])
store = db.engine.store
with store.connections.one() as one:
    rows = [row for row, in one.execute("select bucket from buckets", binary=True).fetchall()]
connection = store.connections.take()
if sys.argv[2] == "between":  # its transaction is open, and it thinks
    connection.ask((BEGIN, ()), (LOCKED, (rows,)))
else:
    pgconn = connection.pgconn
    pgconn.enter_pipeline_mode()
    for query, values in ((BEGIN, ()), (LOCKED, (rows,))):
        data = [dump(value) for dump, value in zip(query.dumps, values)]
        pgconn.send_query_params(query.text, data, query.oids, query.formats, 1)
    pgconn.send_flush_request()  # and no end of what is asked
    while pgconn.flush():
        pass
    if sys.argv[2] == "in a message":
        os.write(pgconn.socket, b"Q" + (1 << 20).to_bytes(4, "big") + b"select")
print("sent", flush=True)
sys.stdin.readline()
"""


class Apart:
    """A client with a network of its own, and a server that it reaches over that."""

    def __init__(self) -> None:
        number = os.getpid() % 16_000
        self.net = f"10.{77 + number // 4000}.{number // 64 % 64}.{number % 64 * 4 + 1}"
        head, _, last = self.net.rpartition(".")
        self.theirs = f"{head}.{int(last) + 1}"
        self.link = f"im{os.getpid()}"
        self.client: subprocess.Popen[str] | None = None
        self.server: PostgresServer | None = None

    def start(self, way: str) -> None:
        url = f"postgresql://inmem@{self.net}:5432/postgres?schema=store"
        self.client = subprocess.Popen(
            ["unshare", "-n", sys.executable, "-c", CLIENT, url, way], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(inmem.__file__).parents[1])},
        )
        wait_until(lambda: os.stat(f"/proc/{self.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino,
                   "it has a network of its own")
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "out", "netns", str(self.pid))
        run("ip", "addr", "add", f"{self.net}/30", "dev", self.link)
        run("ip", "link", "set", self.link, "up")
        inside = "nsenter", "-t", str(self.pid), "-n", "ip"
        run(*inside, "addr", "add", f"{self.theirs}/30", "dev", "out")
        run(*inside, "link", "set", "out", "up")
        self.server = PostgresServer("-F", "-c", f"listen_addresses={self.net}", shared=False)
        with open(self.server.data / "pg_hba.conf", "a") as rules:
            rules.write(f"host all all {self.theirs}/32 trust\n")
        self.server.run("pg_ctl", "-D", str(self.server.data), "reload")

    @property
    def pid(self) -> int:
        assert self.client is not None
        return self.client.pid

    def go_on(self) -> None:
        """Let it send."""
        assert self.client is not None
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        self.client.stdin.write("\n")
        self.client.stdin.flush()
        assert self.client.stdout.readline() == "sent\n"

    def remove(self) -> None:
        if self.client is not None:
            self.client.kill()
            self.client.communicate()
            subprocess.run(["ip", "link", "del", self.link], capture_output=True, check=False)
        if self.server is not None:
            self.server.remove()


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=30)


@pytest.fixture
def apart() -> Iterator[Apart]:
    if binaries() is None:
        pytest.skip(MISSING)
    if not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("ip, unshare or nsenter is not installed")
    found = Apart()
    try:
        yield found
    finally:
        found.remove()


def is_locked(server: PostgresServer) -> bool:
    with psycopg.connect(server.conninfo) as connection:
        try:
            connection.execute("select from store.buckets for update nowait")
        except psycopg.errors.LockNotAvailable:
            return True
    return False


@needs_root
@pytest.mark.parametrize("way", WAYS if os.environ.get("INMEM_EXHAUSTIVE") else WAYS[:1])
def test_what_it_has_locked_is_free_soon(apart: Apart, way: str) -> None:
    apart.start(way)
    server = apart.server
    assert server is not None
    with inmem.open(server.url_of("store"), timeout_s=30.0) as db:
        db.kv.put(RUN, "a", 1)
        apart.go_on()
        wait_until(lambda: is_locked(server), "it has locked")
        run("ip", "link", "set", apart.link, "down")
        began = time.monotonic()
        db.transact(RUN, lambda txn: txn.kv.put("a", txn.kv.get("a") + 1), timeout_s=30.0)
        took = time.monotonic() - began
        assert db.kv.get(RUN, "a") == 2
    print(f"{way}: free after {took:.1f} s")
    assert 0.5 < took < FREE_S + LATE_S


IN_THE_MIDDLE = """
import os, sys, signal
import inmem
from inmem.engines.postgres.attempts import Attempt

write = Attempt._write

def stop_first(*arguments):  # under its locks
    Attempt._write = write
    print("locked", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return write(*arguments)

with inmem.open(sys.argv[1], timeout_s=60.0) as db:
    Attempt._write = stop_first
    print(db.kv.add("r", "a", 10))
"""


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "stopped"])
def test_a_client_that_ends_under_its_locks(postgres_server: PostgresServer, is_killed: bool) -> None:
    """One that was killed holds nobody up, one that is stopped for five seconds; then it goes on, once."""
    url = postgres_server.url_of(f"middle_{os.getpid()}_{is_killed:d}")
    with inmem.open(url, timeout_s=30.0) as db:
        db.kv.put(RUN, "a", 1)
        client = subprocess.Popen(
            [sys.executable, "-c", IN_THE_MIDDLE, url], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(inmem.__file__).parents[1])},
        )
        assert client.stdout is not None
        try:
            assert client.stdout.readline() == "locked\n"
            wait_until(lambda: Path(f"/proc/{client.pid}/stat").read_text().split()[2] == "T", "it stops")
            if is_killed:
                client.kill()
            began = time.monotonic()
            assert db.kv.add(RUN, "a", 100) == 101
            took = time.monotonic() - began
            print(f"{'killed' if is_killed else 'stopped'}: free after {took:.1f} s")
            assert took < (LATE_S if is_killed else FREE_S + LATE_S)
            if not is_killed:
                client.send_signal(signal.SIGCONT)
                assert client.stdout.readline() == "111\n"
                assert client.wait(30) == 0
                assert db.kv.get(RUN, "a") == 111
        finally:
            client.kill()
            client.communicate()
