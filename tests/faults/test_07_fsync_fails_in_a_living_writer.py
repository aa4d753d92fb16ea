"""A living writer whose fsync fails, by a tracer that answers EIO in the kernel's place."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from crash_workers import RUN
from support import alive, kill, wait_until, writer_pid

import inmem

RUNS = int(os.environ.get("INMEM_TEST_FSYNC_RUNS", "2"))


def tracer(pid: int, log: Path) -> subprocess.Popen[bytes]:
    """Every fdatasync and fsync of the writer fails from now on, whichever thread asks."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    process = subprocess.Popen(
        [strace, "-f", "-p", str(pid), "-o", str(log), "-e", "trace=fdatasync,fsync",
         "-e", "inject=fdatasync,fsync:error=EIO"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )

    def traced() -> bool:
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.skip(f"strace cannot attach here: {process.stderr.read().decode()}")
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return all("TracerPid:\t0" not in (task / "status").read_text() for task in tasks)

    wait_until(traced, "all threads of the writer are traced")
    return process


@pytest.mark.timeout(120 + 10 * RUNS)
@pytest.mark.parametrize("durability", ["sync", "buffered"])
def test_fsync_fails_in_a_living_writer(store_path: Path, scratch: Path, durability: str) -> None:
    """No answer rests on it and it is not asked again: that writer stops, and the next one is right."""
    tries = []
    with inmem.open(store_path, durability=durability, timeout_s=30.0) as db:
        for number in range(RUNS):
            before = db.kv.add(RUN, "n", 0)
            pid = writer_pid(store_path)
            log = scratch / f"strace-{number}"
            process = tracer(pid, log)
            try:
                # In `sync` this needs the fsync, in `buffered` the writer's timer does.
                if durability == "buffered":
                    with db.transaction(RUN, durability="sync") as txn:
                        txn.kv.add("n")
                else:
                    assert db.kv.add(RUN, "n") == before + 1
                wait_until(lambda p=pid: not alive(p), "the writer that could not sync has stopped")
            finally:
                kill(process.pid, 15)
                process.wait(10)
                assert process.stderr is not None
                process.stderr.close()
            calls = [line for line in log.read_text().splitlines() if "EIO" in line and "INJECTED" in line]
            # The timer's thread and the loop may each ask once, before either knows of the other's failure.
            assert 1 <= len(calls) <= (1 if durability == "sync" else 2), calls
            tries.append(len(calls))
            assert writer_pid(store_path) not in (0, pid), "the answer came from another writer"
            assert db.kv.get(RUN, "n") == before + 1, "once"
            assert db.kv.add(RUN, "n") == before + 2
        assert "cannot be made durable" in (store_path / "writer.log").read_text()
        assert db.check().problems == []
    print(f"{durability}: {RUNS} runs, failed fsyncs asked {tries} times, wrong answers 0, lost 0, doubled 0")
