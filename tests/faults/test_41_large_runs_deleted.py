"""Fault 41: a large run is deleted. It is gone for everybody at once, and its space comes back in slices."""

from __future__ import annotations

import io
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from checkpointing import remove_image
from run_workers import write_into, write_on
from support import Workers, epoch, kill_writer, process_state, wait_until, writer_pid

import inmem
from inmem import values
from inmem.client.direct import commit_call
from inmem.engines.local import attachment_of
from inmem.errors import RunDeletedError
from inmem.exchange import export_runs, import_runs
from inmem.exchange.import_ import discard_import
from inmem.maintenance.backup_report import backup_in_process
from inmem.maintenance.restore import restore

KEYS = int(os.environ.get("INMEM_TEST_KEYS", "100000"))  # of the run that is deleted beside others
SOME = 6_000  # enough for several slices
SLOWEST_S = 0.25  # of another's put; before there were slices it waited for the whole deletion
RUN, OTHER, WRITTEN = "large", "larger", "written"


def fill(db: inmem.Database, run: str = RUN, keys: int = SOME) -> None:
    db.runs.create_run(run_id=run, tags=["nightly"])
    with db.pipeline() as pipeline:
        for n in range(keys):
            pipeline.kv.put(run, f"key-{n:06}", n, ttl=3600 if n % 10 == 0 else None)
        for n in range(300):
            pipeline.events.append(run, f"type-{n % 3}", {"n": n})
    db.cells.init(run, "phase", "working")
    db.traces.record(run, inmem.Thought("why"), id="top", tags=["a"])


def seen(db: inmem.Database, run: str = RUN) -> list[Any]:
    """What every way to read finds of a run."""
    lines = io.BytesIO()
    export_runs(db, lines)
    with db.snapshot(run) as view:
        inside = [view.kv.list(), view.events.count(), view.kv.get("key-000007"), view.traces.list()]
    return [
        *inside, db.transact(run, lambda txn: [txn.kv.get("key-000011"), txn.kv.list(limit=5)]),
        db.kv.get(run, "key-005000"), db.kv.get_many(run, ["key-000000", "key-000001"]),
        db.kv.list(run), db.kv.count(run), db.events.head(run), db.events.query_by_type(run, "type-1"),
        db.cells.read(run, "phase"), db.cells.list(run), db.traces.get(run, "top"),
        db.traces.query_by_tag(run, "a"), db.runs.get_run(run),
        [found.run_id for found in db.runs.query_runs(tags=["nightly"]) if found.run_id == run],
        [found for found in db.runs.list_runs(include_uncreated=True) if found == run],
        [prefix for prefix in db.engine.prefixes() if prefix.endswith(run.encode())],
        run.encode() + b'"' in lines.getvalue(),
    ]


def is_nothing(found: Any) -> bool:
    return all(map(is_nothing, found)) if isinstance(found, list) else not found


def wait_for_space(db: inmem.Database, limit: int) -> int:
    return int(wait_until(
        lambda: (used := db.status().image_bytes) < limit and used, "the space of the run comes back"
    ))


def test_gone_for_everybody_while_its_data_is_still_there(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer is stopped after the first slice: readers, export and backup see nothing of the run."""
    monkeypatch.setenv("INMEM_FAILPOINT", f"purged:1:{scratch / 'stopped'}:stop")
    with inmem.open(store_path) as db:
        db.kv.put("kept", "k", 1)
        empty = db.status().image_bytes
        fill(db)
        fill(db, OTHER)
        assert not any(map(is_nothing, seen(db)[:4])), "all of this finds something before"
        with db.snapshot(RUN) as before:
            assert db.runs.delete_run(RUN) == inmem.DeletedRun(RUN, SOME, 300, 1, 1, True)
            pid = writer_pid(store_path)
            wait_until(lambda: process_state(pid) == "T", "the writer is stopped")
            try:
                assert [n for n, each in enumerate(seen(db)) if not is_nothing(each)] == []
                assert not is_nothing(seen(db, OTHER)[:4]) and db.kv.get("kept", "k") == 1
                assert before.kv.get("key-000007") == 7 and len(before.kv.list()) == SOME
                report = db.check()
                assert report.ok, report.problems
                assert any("1 deleted runs still take space" in note for note in report.notes)
                backup_in_process(store_path, scratch / "backup")
            finally:
                os.kill(pid, signal.SIGCONT)
        assert not is_nothing(seen(db, OTHER))
        with pytest.raises(RunDeletedError):
            db.kv.put(RUN, "again", 1)
        db.runs.delete_run(OTHER)
        assert wait_for_space(db, empty + 200_000)
        assert db.check().notes == [] and db.check().ok
    restore(scratch / "backup", scratch / "restored")
    with inmem.open(scratch / "restored") as db:
        assert is_nothing(seen(db)) and db.kv.list(OTHER) and db.check().ok


@pytest.mark.parametrize("durability", ["buffered", "memory"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_killed_between_slices(
    store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, durability: str, count: int
) -> None:
    """The next writer goes on where it was: no half of a run, and nothing left."""
    flag = scratch / "died"
    monkeypatch.setenv("INMEM_FAILPOINT", f"purged:{count}:{flag}")
    with inmem.open(store_path, durability=durability) as db:
        db.kv.put("kept", "k", 1)
        empty = db.status().image_bytes
        fill(db)
        db.runs.delete_run(RUN)
        wait_until(flag.exists, "the writer dies")
        assert is_nothing(seen(db)), "also while nobody serves"
        db.kv.put("kept", "k", 2)
        assert epoch(store_path) == 2 and is_nothing(seen(db))
        wait_for_space(db, empty + 200_000)
        assert db.check().ok and db.check().notes == [] and db.kv.get("kept", "k") == 2


def test_rebuilt_in_the_middle(store_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is lost between slices: the log has the deletion as a whole."""
    flag = scratch / "stopped"
    monkeypatch.setenv("INMEM_FAILPOINT", f"purged:1:{flag}:stop")
    with inmem.open(store_path) as db:
        fill(db)
        empty = db.status().image_bytes
        db.runs.delete_run(RUN)
        wait_until(flag.exists, "the writer is stopped")
        kill_writer(store_path)
        remove_image(store_path)
        db.kv.put("kept", "k", 1)
        assert is_nothing(seen(db)) and db.check().ok and db.status().image_bytes < empty / 2


def test_a_checkpoint_in_the_middle_has_nothing_of_it(
    store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many checkpoints as fit between the slices, then a start from the last one alone."""
    with inmem.open(store_path) as db:
        fill(db, keys=30_000)
        fill(db, OTHER)
        expected = db.kv.list_with_values(OTHER)
        db.runs.delete_run(RUN)
        before = db.status().image_bytes
        entries = db.checkpoint().entries
        assert entries < 2 * SOME and before > 0, "a copy has no dead records"
        kill_writer(store_path)
        remove_image(store_path)
        assert is_nothing(seen(db)) and db.kv.list_with_values(OTHER) == expected and db.check().ok


def test_others_go_on_meanwhile(store_path: Path, workers: Workers) -> None:
    with inmem.open(store_path) as db:
        fill(db, keys=KEYS)
        other = workers.start(write_on, store_path)
        wait_until(lambda: workers.check() or db.kv.get("bystander", "n"), "the other one writes")
        began = time.monotonic()
        deleted = db.runs.delete_run(RUN)
        took_s = time.monotonic() - began
        assert deleted.kv == KEYS
        wait_for_space(db, KEYS * 8)
        freed_s = time.monotonic() - began
        workers.words.stop()
        waits = sorted(other.result())
        p99_ms, slowest_ms = waits[len(waits) * 99 // 100] * 1e3, waits[-1] * 1e3
        print(
            f"{KEYS} keys deleted in {took_s:.2f} s, space back after {freed_s:.2f} s; {len(waits)} puts of "
            f"another one: p99 {p99_ms:.1f} ms, slowest {slowest_ms:.0f} ms"
        )
        assert slowest_ms < SLOWEST_S * 1e3


def test_counts_are_exact_where_others_write_into_the_run(store_path: Path, workers: Workers) -> None:
    """Too large for the writer to count, and written to while it is counted: each record counts once."""
    with inmem.open(store_path) as db:
        fill(db, WRITTEN, keys=20_000)
        others = [workers.start(write_into, n, store_path, WRITTEN) for n in range(2)]
        wait_until(lambda: workers.check() or db.kv.count(WRITTEN, "more-") > 10, "the others write")
        deleted = db.runs.delete_run(WRITTEN)
        written = sum(other.result() for other in others)
        assert (deleted.kv, deleted.events, deleted.cells, deleted.traces) == (20_000 + written, 300, 1, 1)
        assert is_nothing(seen(db, WRITTEN))


def test_imported_again_while_the_half_before_still_goes(store_path: Path, scratch: Path) -> None:
    """An import that was given up leaves a purge, and its id is free: what comes anew is seen."""
    file = scratch / "runs.jsonl"
    with inmem.open(store_path) as db:
        db.kv.put_many(RUN, {f"key-{n:06}": ["new", n] for n in range(0, 3000, 3)})
        db.events.append_many(RUN, [("e", n) for n in range(50)])
        expected, events = db.kv.list_with_values(RUN), [e.hash for e in db.events.iter(RUN)]
        export_runs(db, file)
    with inmem.open(scratch / "other") as db:
        attachment, namespace, token = attachment_of(db.engine), db.namespace.prefix(), bytes(16)
        commit_call(attachment, "import.begin", [namespace, RUN, token, 0], 10.0)
        for start in range(0, 30_000, 2000):
            items = [[b"key-%06d" % n, values.encode("old"), 0, 1] for n in range(start, start + 2000)]
            commit_call(attachment, "import.entries", [namespace + b"/" + RUN.encode(), token, items], 10.0)
        assert db.kv.count(RUN) == 30_000
        discard_import(db, RUN)
        assert db.kv.list(RUN) == [] and db.check().ok
        import_runs(db, file)
        for _ in range(2):
            assert db.kv.list_with_values(RUN) == expected
            assert [e.hash for e in db.events.iter(RUN)] == events and db.events.verify_chain(RUN).is_valid
            assert db.kv.get(RUN, "key-000001") is None and db.kv.get(RUN, "key-000003") == ["new", 3]
            wait_until(lambda: not db.check().notes, "the rest of the first half goes")
        assert db.check().ok
        kill_writer(scratch / "other")
        remove_image(scratch / "other")
        assert db.kv.list_with_values(RUN) == expected and db.check().ok


def test_who_deletes_to_make_room_has_it_at_once(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quota counts what is left of a deleted run; a commit that needs the room gets it first."""
    monkeypatch.setenv("INMEM_QUOTA_BYTES", str(16 << 20))
    with inmem.open(store_path) as db:
        for round_number in range(3):
            run = f"{RUN}-{round_number}"
            with db.pipeline() as pipeline:
                for n in range(40_000):
                    pipeline.kv.put(run, f"key-{n:06}", "x" * 100)
            assert db.status().image_bytes > 7 << 20
            db.runs.delete_run(run)
            for n in range(18):
                db.kv.put(f"next-{round_number}", f"k{n}", "y" * 500_000)
            db.runs.delete_run(f"next-{round_number}")
