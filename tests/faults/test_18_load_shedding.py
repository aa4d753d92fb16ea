"""Memory that messages take in the writer is bounded by shutting connections, and only those that send."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from crash_workers import RUN
from mailboxes import mailbox
from support import wait_until

import inmem
from inmem.host.files import python_environment
from inmem.writer.shedding import LoadShedder

MIB = 1 << 20


GROWING = """
from inmem.writer.shedding import anonymous_bytes, return_free_memory
before = anonymous_bytes()
some = bytearray(b"x") * (64 << 20)
grown = anonymous_bytes() - before
small = [bytes(1000) for _ in range(20_000)]
del some, small
return_free_memory()
print(grown >> 20, anonymous_bytes() - before >> 20)
"""


def test_shedding_sees_memory_of_its_own_kind() -> None:
    """In a process of its own, whose memory nothing else changes."""
    done = subprocess.run(
        [sys.executable, "-c", GROWING], capture_output=True, text=True, timeout=60, check=True,
        env=python_environment(),
    )
    grown_mib, left_mib = map(int, done.stdout.split())
    assert 60 <= grown_mib <= 70 and left_mib <= 8, done.stdout


def test_shedding_shuts_who_sends_and_drastically_all(scratch: Path) -> None:
    """Only accepted connections of its own socket, and of those only where bytes wait."""
    other = scratch / "other"
    with socket.socket(socket.AF_UNIX) as theirs, mailbox(scratch / "s") as box:
        theirs.bind(str(other))
        theirs.listen()
        box._shedder.stop()  # what it does by itself must not mix with this
        silent, sending, foreign = (socket.socket(socket.AF_UNIX) for _ in range(3))
        with silent, sending, foreign:
            foreign.connect(str(other))
            accepted, _ = theirs.accept()
            with accepted:
                for one in (silent, sending):
                    one.connect(str(box.path))
                shedder = box._shedder
                wait_until(lambda: len(list(shedder._connections())) == 2, "both were accepted")
                names = {connection.getsockname() for connection in shedder._connections()}
                assert names == {str(box.path)}
                assert not any(shedder._shut(connection, False) for connection in shedder._connections())
                # Noise that libzmq takes in at once would not wait: more than its buffer does.
                sending.setblocking(False)
                stopped = False
                deadline = time.monotonic() + 10.0
                while not stopped and time.monotonic() < deadline:
                    try:
                        sending.send(b"\xff" + bytes(8) + b"\x7f" + bytes(1 << 16))
                    except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                        pass
                    stopped = any(shedder._shut(connection, False) for connection in shedder._connections())
                    stopped = stopped or len(list(shedder._connections())) < 2
                assert stopped, "who sends is shut, by the shedder or as a stranger by libzmq"
                assert silent.fileno() >= 0 and len(list(shedder._connections())) >= 1
                assert sum(shedder._shut(connection, True) for connection in shedder._connections()) >= 1
                silent.settimeout(5.0)
                while silent.recv(4096):
                    pass  # libzmq's greeting, then the end
                accepted.sendall(b"still there")
                assert foreign.recv(100) == b"still there"


def test_giants_within_the_limits_are_not_shut_out(store_path: Path) -> None:
    """Eight commits of 16 MiB at once are no flood."""
    wrong: list[BaseException] = []
    with inmem.open(store_path, durability="memory", timeout_s=60.0) as db:
        db.kv.put(RUN, "k", 0)
        ready = threading.Barrier(8)

        def work(index: int) -> None:
            try:
                values = {f"part-{n}": os.urandom(1) * (8 * MIB) for n in range(2)}
                ready.wait(30)
                with db.transaction(f"giant-{index}") as txn:
                    txn.kv.put_many(values)
                    txn.kv.add("n")
                assert {key: db.kv.get(f"giant-{index}", key) for key in values} == values
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
        assert wrong == []
        assert [db.kv.get(f"giant-{index}", "n") for index in range(8)] == [1] * 8
        assert "shut" not in (store_path / "writer.log").read_text()
        print(f"eight commits of 16 MiB at once: none shut out, {db.status().repeated} sent twice")


def test_the_mailbox_uses_the_load_shedder(scratch: Path) -> None:
    with mailbox(scratch / "s") as box:
        assert isinstance(box._shedder, LoadShedder) and box._shedder._thread.is_alive()
    assert not box._shedder._thread.is_alive()
