"""The largest commit of each kind beside a client that works, and the first one that is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_workers import measured_adds
from support import Workers, control_state, epoch, kill, wait_until, writer_pid

import inmem
from inmem.config import MAX_COMMIT_BYTES, MAX_TRANSACTION_OPS, MIB
from inmem.values import MAX_VALUE_BYTES

RUN = "large"
TAGS = [f"tag-{n}" for n in range(256)]
ROUNDS = int(os.environ.get("INMEM_TEST_ROUNDS", "2"))
# A quiet machine keeps below 0.1 s. The bound has room for one where two processes compute without end.
WAIT_S = 2.0


def puts(db: inmem.Database, count: int, part: int) -> Any:
    db.kv.put_many(RUN, {f"k-{part}-{n:06}": n for n in range(count)})


def large_puts(db: inmem.Database, count: int, part: int) -> Any:
    db.kv.put_many(RUN, {f"l-{n}": bytes([n]) * MIB for n in range(count)})


def value(db: inmem.Database, count: int, part: int) -> Any:
    db.kv.put(RUN, "v", bytes(count))


def events(db: inmem.Database, count: int, part: int) -> Any:
    db.events.append_many(RUN, [("happened", n) for n in range(count)])


def traces(db: inmem.Database, count: int, part: int) -> Any:
    db.traces.record_many(RUN, [inmem.NewTrace(inmem.Thought("x")) for _ in range(count)])


def tagged(db: inmem.Database, count: int, part: int) -> Any:
    db.traces.record_many(RUN, [inmem.NewTrace(inmem.Thought("x"), tags=TAGS) for _ in range(count)])


def transaction(db: inmem.Database, count: int, part: int) -> Any:
    with db.transaction(RUN) as txn:
        for n in range(count):
            txn.kv.add(f"t-{part}-{n:06}")


def cells(db: inmem.Database, count: int, part: int) -> Any:
    with db.transaction(RUN) as txn:
        for n in range(count):
            txn.cells.set(f"c-{part}-{n:06}", n)


def runs(db: inmem.Database, count: int, part: int) -> Any:
    with db.transaction(RUN) as txn:
        for n in range(count):
            txn.at(db.run(f"r-{part}-{n:06}")).runs.create_run(tags=TAGS)


Write = Callable[[inmem.Database, int, int], Any]
# What fits, and the first of the refused ones that are told: what lies between depends on keys and values.
LARGEST: list[tuple[Write, int, int]] = [
    (puts, MAX_TRANSACTION_OPS, MAX_TRANSACTION_OPS + 1), (large_puts, 16, 17),
    (value, MAX_VALUE_BYTES - 16, MAX_VALUE_BYTES + 1), (events, 5_200, 5_500), (traces, 2_500, 2_900),
    (tagged, 40, 44), (transaction, MAX_TRANSACTION_OPS, MAX_TRANSACTION_OPS + 1),
    (cells, MAX_TRANSACTION_OPS, MAX_TRANSACTION_OPS + 1), (runs, 38, 46),
]  # fmt: skip


@pytest.mark.parametrize(("write", "fits", "refused"), LARGEST, ids=[one[0].__name__ for one in LARGEST])
def test_the_largest_commit_and_the_first_refused_one(
    store_path: Path, workers: Workers, write: Write, fits: int, refused: int
) -> None:
    with inmem.open(store_path, timeout_s=60.0) as db:
        db.kv.put("before", "k", 1)
        bystander = workers.start(measured_adds, 0, store_path, 0.001)

        def beside(phase: int, work: Callable[[], Any]) -> None:
            wait_until(lambda: workers.check() or workers.words[0] > 20, "the bystander works")
            workers.words[200] = phase
            seen = workers.words[0]
            work()
            wait_until(lambda: workers.words[0] > seen + 100, "it goes on")
            workers.words[200] = 0

        def refuse() -> None:
            with pytest.raises(inmem.LimitError) as caught:
                write(db, refused, ROUNDS)
            error = caught.value
            assert error.limit and error.size and error.size > error.limit, error
            assert error.what and error.hint and not error.retryable

        served = epoch(store_path)
        for part in range(ROUNDS):
            beside(1, lambda part=part: write(db, fits, part))
        stored = stored_in(db)
        beside(2, refuse)
        assert stored_in(db) == stored, "nothing is stored of a refused one"
        workers.words.stop()
        phases = bystander.result()["phases"]
        assert epoch(store_path) == served
        assert db.check().problems == []
    times = {n: {k: v * 1000 if k != "count" else v for k, v in phases[str(n)].items()} for n in range(3)}
    print(
        f"{write.__name__}: {fits} in a commit, a bystander's p99 {times[1]['p99']:.1f} ms, slowest "
        f"{times[1]['max']:.0f} ms; {refused} refused, p99 {times[2]['p99']:.1f} ms, slowest "
        f"{times[2]['max']:.0f} ms; p99 without {times[0]['p99']:.1f} ms"
    )
    assert phases["1"]["max"] < WAIT_S and phases["2"]["max"] < WAIT_S


def stored_in(db: inmem.Database) -> list[Any]:
    return [
        db.kv.count(RUN), db.events.count(RUN), db.traces.count(RUN), len(db.cells.list(RUN)),
        len(db.runs.list_runs()),
    ]


def rss_peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


def test_nineteen_thousand_traces_with_all_tags(store_path: Path) -> None:
    """What once ended writer after writer: refused at once, also where a client does not look first."""
    with inmem.open(store_path, timeout_s=60.0) as db:
        db.kv.put(RUN, "k", 1)
        pid = writer_pid(store_path)
        new = [inmem.NewTrace(inmem.Thought("x"), tags=TAGS)] * 19_000
        began = time.monotonic()
        with pytest.raises(inmem.LimitError, match="comes to") as caught:
            db.traces.record_many(RUN, new)
        assert caught.value.limit == MAX_COMMIT_BYTES and "Cut it" in caught.value.hint
        told_s = time.monotonic() - began
        # Past the facade, as much as a message takes.
        from inmem.client.direct import commit_call
        from inmem.engines.local import attachment_of
        from inmem.primitives.traces.facade import _item

        sink = db.run(RUN).traces._sink
        items = [_item(sink, one) for one in new[:6_000]]
        prefix = db.namespace.run_prefix(RUN)
        with pytest.raises(inmem.LimitError) as caught:
            commit_call(attachment_of(db.engine), "trace.record", [prefix, items], 60.0)
        assert caught.value.limit == MAX_COMMIT_BYTES
        assert writer_pid(store_path) == pid, "the same writer"
        assert db.traces.count(RUN) == 0
        peak = rss_peak(pid) / MIB
        print(f"refused after {told_s:.2f} s; the writer's memory at most {peak:.0f} MiB")
        assert peak < 600


def test_bulk_of_any_size_is_cut_where_it_may_be(store_path: Path, scratch: Path) -> None:
    """Pipelines and imports are no single commits: they send as many as it takes."""
    import inmem.exchange

    file = scratch / "runs.jsonl"
    with inmem.open(store_path, timeout_s=60.0) as db:
        with db.pipeline() as pipe:
            for n in range(60):
                pipe.kv.put(RUN, f"large-{n:03}", bytes([n]) * 600_000)
            for n in range(12_000):
                pipe.events.append(RUN, "happened", n)
        assert db.kv.count(RUN) == 60
        assert db.kv.get(RUN, "large-059") == bytes([59]) * 600_000
        assert db.events.count(RUN) == 12_000
        for _ in range(3):
            db.traces.record_many(RUN, [inmem.NewTrace(inmem.Thought("x"), tags=TAGS)] * 40)
        with db.pipeline() as pipe:
            pipe.kv.put(RUN, "a", 1)
            with pytest.raises(inmem.LimitError):
                pipe.kv.put_many(RUN, {f"m-{n}": bytes(MIB) for n in range(20)})
            pipe.kv.put(RUN, "b", 2)
        assert (db.kv.get(RUN, "a"), db.kv.get(RUN, "b"), db.kv.exists(RUN, "m-0")) == (1, 2, False)
        inmem.exchange.export_runs(db, file)
    with inmem.open(scratch / "copy", timeout_s=60.0) as copy:
        inmem.exchange.import_runs(copy, file)
        assert (copy.traces.count(RUN), copy.events.count(RUN), copy.kv.count(RUN)) == (120, 12_000, 62)
        assert copy.check().problems == []


def test_recovery_of_the_largest_commits_is_in_bounded_memory(store_path: Path) -> None:
    with inmem.open(store_path, timeout_s=60.0) as db:
        db.kv.put(RUN, "k", 1)
        idle = rss_peak(writer_pid(store_path))
        for n in range(6):
            puts(db, MAX_TRANSACTION_OPS, n)
            value(db, MAX_VALUE_BYTES - 16, n)
            tagged(db, 40, n)
        state = control_state(store_path)
        kill(state.pid)
        for entry in Path(state.image).iterdir():
            entry.unlink()
        os.rmdir(state.image)
        db.kv.put(RUN, "k", 2)
        assert db.kv.count(RUN) == 6 * MAX_TRANSACTION_OPS + 2
        grown = (rss_peak(writer_pid(store_path)) - idle) / MIB
        print(f"a log of {18} largest commits: the writer's peak grew by {grown:.0f} MiB")
        assert db.check().problems == []
        assert grown < 1000
