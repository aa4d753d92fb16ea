"""Is an operation far from what the machine gives at this moment? `python -m bench.operations`

Without peers, and in under half a minute with `--quick`: the tests use it to
see that no fast path was lost. One client unless it says otherwise, `buffered` durability, values of 50
bytes. Each round runs the probes and all operations once, in turn; reported
are the median, the lowest and the highest round, and the ratio to the probe
of the same round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inmem
from bench import probes
from bench.probes import VALUE, rate

RAW = Path(__file__).parents[1] / "build" / "bench"
PROCESSES = 8


def _work(path: str, index: int, kind: str, seconds: float, barrier: Any, results: Any) -> None:
    with inmem.open(path) as db:
        run = db.run(f"worker-{index}")
        db.status()
        operation: Callable[[], Any] = {
            "put": lambda: run.kv.put("key", VALUE),
            "append": lambda: db.events.append("shared", "tick", VALUE),
        }[kind]
        barrier.wait()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            operation()
            count += 1
        results.put(count / (time.perf_counter() - began))


def many(path: str, kind: str, seconds: float) -> float:
    """The summed rate of several processes doing one operation each on its own run, or on one log."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    results = context.Queue()
    workers = [
        context.Process(target=_work, args=(path, i, kind, seconds, barrier, results))
        for i in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    rates: list[float] = [results.get(timeout=60 + seconds) for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


def pipelined(db: inmem.Database, seconds: float) -> float:
    """Puts through a pipeline, until all are answered."""
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        with db.pipeline() as p:
            for n in range(5_000):
                p.kv.put("pipeline", f"key-{n % 1000:04}", VALUE)
        count += 5_000
    return count / (time.perf_counter() - began)


def operations(db: inmem.Database, path: str) -> dict[str, tuple[str, Callable[[float], float]]]:
    """Name -> (probe to compare with, how to measure it)."""
    run = db.run("bench")
    for n in range(10_000):
        if n % 1000 == 0:
            run.kv.put_many({f"key-{m:05}": VALUE for m in range(n, n + 1000)})
    run.cells.set("cell", 0)

    def one_step(txn: inmem.Transaction) -> None:
        txn.kv.put("step", VALUE)
        txn.events.append("step", VALUE)
        txn.cells.set("phase", VALUE)
        txn.traces.record(inmem.Thought(VALUE))

    def add_one(txn: inmem.Transaction) -> None:
        txn.kv.put("count", txn.kv.get("count", 0) + 1)

    def cas() -> None:
        state = run.cells.read("cell")
        assert state is not None
        run.cells.cas("cell", state.version, VALUE)

    def single(operation: Callable[[], Any]) -> Callable[[float], float]:
        return lambda seconds: rate(operation, seconds)

    return {
        "kv get": ("lmdb get", single(lambda: run.kv.get("key-05000"))),
        "kv put": ("zmq echo", single(lambda: run.kv.put("key-05000", VALUE))),
        f"kv put, {PROCESSES} processes": ("zmq echo", lambda seconds: many(path, "put", seconds)),
        "kv put, pipelined": ("zmq echo", lambda seconds: pipelined(db, seconds)),
        "event append": ("zmq echo", single(lambda: run.events.append("tick", VALUE))),
        f"event append, {PROCESSES} processes, one log": (
            "zmq echo", lambda seconds: many(path, "append", seconds)
        ),
        "cell read + cas": ("zmq echo", single(cas)),
        "trace record, 2 tags": (
            "zmq echo", single(lambda: run.traces.record(inmem.Thought(VALUE), tags=["a", "b"]))
        ),
        "transaction: kv + event + cell + trace": ("zmq echo", single(lambda: run.transact(one_step))),
        "transaction: read, modify, write": ("zmq echo", single(lambda: run.transact(add_one))),
        "put, durability sync": (
            "fdatasync", single(lambda: run.transact(lambda txn: txn.kv.put("s", VALUE), durability="sync"))
        ),
    }


def measure(rounds: int, seconds: float, path: Path) -> dict[str, Any]:
    """All rounds; a document with machine, probes and operations."""
    rates: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        running = {
            "lmdb get": stack.enter_context(probes.lmdb_get()),
            "zmq echo": stack.enter_context(probes.zmq_echo()),
            "fdatasync": stack.enter_context(probes.fdatasync(path.parent)),
        }
        db = stack.enter_context(inmem.open(path, durability="buffered"))
        todo = operations(db, str(path))
        for _ in range(rounds):
            probed = {name: probe(seconds) for name, probe in running.items()}
            for name, value in probed.items():
                rates.setdefault(f"probe: {name}", []).append(value)
            for name, (probe, run) in todo.items():
                value = run(seconds)
                rates.setdefault(name, []).append(value)
                ratios.setdefault(name, []).append(value / probed[probe])
        compared = {name: probe for name, (probe, _) in todo.items()}
    return {
        "machine": {
            "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()
        },
        "rounds": rounds,
        "seconds": seconds,
        "rates_per_s": {
            name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in rates.items()
        },
        "ratios": {
            name: {"probe": compared[name], "median": statistics.median(v)} for name, v in ratios.items()
        },
    }


def table(document: dict[str, Any]) -> str:
    """The document as a Markdown table."""
    lines = ["| operation | per second (median) | lowest - highest | ratio | to the probe |",
             "|---|---:|---:|---:|---|"]
    for name, found in document["rates_per_s"].items():
        ratio = document["ratios"].get(name)
        told = (f"{ratio['median']:.2f}", ratio["probe"]) if ratio else ("", "")
        lines.append(
            f"| {name} | {found['median']:,.0f} | {found['min']:,.0f} - {found['max']:,.0f} "
            f"| {told[0]} | {told[1]} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, and write it to build/bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.operations", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="per operation and round")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 0.3 seconds")
    parser.add_argument("--output", type=Path, default=RAW / "operations", help="without ending")
    options = parser.parse_args(arguments)
    rounds, seconds = (3, 0.3) if options.quick else (options.rounds, options.seconds)
    scratch = Path(tempfile.mkdtemp(prefix="inmem-bench-"))
    try:
        document = measure(rounds, seconds, scratch / "store")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    text = table(document)
    print(text)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(document, indent=2) + "\n")
    options.output.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
