"""Fault 57: many stores are open at once. What each costs is bounded, in processor time and in memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from support import writer_pid

import inmem

STORES = int(os.environ.get("INMEM_TEST_OPEN_STORES", "8"))
MOST_CPU_S = 0.3  # to open one, of all processes that take part; twice what is promised, for a machine in use
MOST_MIB = 14.25  # of memory of its own, that a writer has

PATHS = f"import sys; sys.path[:0] = {[path for path in sys.path if path]!r}; "
PRIVATE = ("Private_Clean:", "Private_Dirty:")


def private_mib(pid: int) -> float:
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[1]) for fields in lines if fields[0] in PRIVATE) / 1024


def cpu_s(pids: list[int]) -> float:
    """Of this process, of those that started writers, and of the writers."""
    writers = sum(
        int((task / "schedstat").read_text().split()[0])
        for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()
    )
    started = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + started.ru_utime + started.ru_stime + writers / 1e9


def test_what_an_open_store_costs(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # as it is where packages are installed
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(scratch / "compiled"))
    with ExitStack() as stack, inmem.open(scratch / "first") as first:
        first.kv.put("run", "k", 1)
        before, began = cpu_s([]), time.monotonic()
        paths = [scratch / f"store-{n}" for n in range(STORES)]
        for path in paths:
            db = stack.enter_context(inmem.open(path))
            db.kv.put("run", "k", 1)
        took_s = (time.monotonic() - began) / STORES
        pids = [writer_pid(path) for path in paths]
        spent_s = (cpu_s(pids) - before) / STORES
        largest = max(map(private_mib, pids))
        print(
            f"{STORES} stores: opening and one put {took_s * 1e3:.0f} ms, of processor time "
            f"{spent_s * 1e3:.0f} ms each; a writer has {largest:.1f} MiB of its own"
        )
        assert spent_s < MOST_CPU_S and largest < MOST_MIB


def test_what_a_writer_does_not_load() -> None:
    """Each of these is time at each start, and memory of each writer."""
    code = (
        "import sys, inmem.writer.__main__ as m; m._parsed(['/d', '--ready-fd', '3']); "
        "print(*{'argparse', 'subprocess', 'shutil', 'tomllib', 'logging.handlers', 'asyncio', "
        "'tempfile', 'typer'} & set(sys.modules))"
    )
    command = [sys.executable, "-S", "-c", PATHS + code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
