"""A client that may open no more files gets a clear error, and nothing aborts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import inmem

REAL_PROGRAMS = True  # no file is left to tell another process

FILES = """
import os, resource, sys, time
import inmem
path, limit = sys.argv[1], int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
kept = []

def fill(leave):
    while limit - sum(int(n) < limit for n in os.listdir("/proc/self/fd")) > leave:
        kept.append(os.open("/dev/null", os.O_RDONLY))

def case(when, leave):
    if when == "open":
        fill(leave)
        inmem.open(path).kv.put("r", "k", 1)
        return
    db = inmem.open(path)
    db.kv.put("r", "k", 1)
    pid = db.status().writer_pid
    fill(leave)
    os.kill(pid, 9)  # so that there are no files for another connection
    db.kv.put("r", "k", 1)

for word in sys.argv[3:]:
    when, leave = word.split(":")
    if os.fork() == 0:  # each in a process that has not used the store
        try:
            case(when, int(leave))
            said = "ok"
        except inmem.InmemError as error:
            reason = "open files" if "files are open" in str(error) else str(error)
            said = f"{type(error).__name__} {reason}"
        while kept:
            os.close(kept.pop())
        with inmem.open(path) as db:
            assert db.kv.put("r", "k", 2) and db.kv.get("r", "k") == 2
        print(word, said, flush=True)
        os._exit(0)
    status = os.wait()[1]
    if status:
        print(word, "ended with", status, flush=True)
"""


def test_a_client_that_runs_out_of_open_files(store_path: Path) -> None:
    """However few are left, at the start or later: an error that says so, no abort, and no wrong reason."""
    few = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 20, 30]
    cases = [f"open:{leave}" for leave in few] + [f"later:{leave}" for leave in (2, 5, 8, 14)]
    with inmem.open(store_path):
        done = subprocess.run(
            [sys.executable, "-c", FILES, str(store_path), "128", *cases, "open:48", "later:48"],
            capture_output=True, text=True, timeout=90, check=False,
        )
        assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr}"
        said = [line.split(" ", 1) for line in done.stdout.splitlines()]
        assert [what for _, what in said[-2:]] == ["ok", "ok"], done.stdout + done.stderr
        # What was sent to a writer that was killed may be applied, whatever keeps this client from asking.
        right = {"open": ("LimitError open files",)}
        right["later"] = (*right["open"], "CommitUnknownError open files")
        wrong = [line for line in said[:-2] if line[1] not in right[line[0].partition(":")[0]]]
        assert len(said) == len(cases) + 2 and not wrong, f"{wrong}\n{done.stderr}"
    print(f"{len(cases)} cases of too few open files: clear errors {len(cases)}, aborts 0")
