"""Very many threads, or processes, come at once: the deadline of a call bounds the wait, none is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

THREADS = int(os.environ.get("INMEM_TEST_THREADS", "1500"))
PROCESSES = int(os.environ.get("INMEM_TEST_PROCESSES", "100"))
DEADLINE_S = 60.0  # of a call: the promise is that it suffices, beside other work too

MANY_THREADS = """
import collections, resource, sys, threading, time
import inmem

path, count, deadline = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
if hard != resource.RLIM_INFINITY and hard < 3 * count:
    print("skip", hard)
    raise SystemExit
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
threading.stack_size(256 * 1024)
with inmem.open(path, timeout_s=deadline) as db:
    errors, waits = collections.Counter(), [[] for _ in range(3)]
    together = threading.Barrier(count)

    def work():
        together.wait(100)
        for n in range(3):
            began = time.monotonic()
            try:
                db.kv.add("r", "n")
            except Exception as error:
                errors[f"{type(error).__name__}: {error}"] += 1
            waits[n].append(time.monotonic() - began)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not errors, errors
    assert db.kv.get("r", "n") == 3 * count
    for n, found in enumerate(waits):
        found.sort()
        print(f"call {n + 1}: median {found[count // 2]:.2f} s, slowest {found[-1]:.2f} s;", end=" ")
"""

MANY_PROCESSES = """
import os, sys, time
import inmem
inmem.open  # so that all is loaded

path, count, deadline = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
read, write = os.pipe()
go, begin = os.pipe()
children = []
for number in range(count):
    pid = os.fork()
    if pid == 0:
        os.close(begin)
        os.read(go, 1)  # its end is when all begin
        began = time.monotonic()
        try:
            with inmem.open(path, timeout_s=deadline) as db:
                db.kv.add("r", "n")
                db.kv.get("r", "n")
            told = f"{time.monotonic() - began:.3f}"
        except BaseException as error:
            told = f"{type(error).__name__}: {error}".replace(os.linesep, " ")
        os.write(write, told.encode() + b"\\n")
        os._exit(0)
    children.append(pid)
os.close(go); os.close(begin); os.close(write)
with os.fdopen(read) as source:
    told = source.read().split("\\n")[:-1]
for pid in children: os.waitpid(pid, 0)
wrong = [line for line in told if not line[0].isdigit()]
assert not wrong and len(told) == count, wrong
waits = sorted(map(float, told))
with inmem.open(path) as db:
    assert db.kv.get("r", "n") == count
print(f"median {waits[count // 2]:.2f} s, slowest {waits[-1]:.2f} s", end="")
"""


@pytest.mark.parametrize(("program", "count"), [(MANY_THREADS, THREADS), (MANY_PROCESSES, PROCESSES)],
                         ids=["threads", "processes"])
def test_all_are_admitted(store_path: Path, program: str, count: int, request: pytest.FixtureRequest) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, str(store_path), str(count), str(DEADLINE_S)],
        capture_output=True, text=True, timeout=110,
    )
    if done.stdout.startswith("skip"):
        limit = done.stdout.split()[1]
        pytest.skip(f"at most {limit} files may be open here: a thread needs one, and the writer another")
    assert done.returncode == 0, done.stderr
    print(f"{count} {request.node.callspec.id}: {done.stdout}")
