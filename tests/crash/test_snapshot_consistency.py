"""One moment over several primitives: a hundred thousand looks, never half of a transaction."""

from __future__ import annotations

import os
from pathlib import Path

from primitive_workers import change_all_three, compare_all_three
from support import Workers, wait_until

import inmem

VIEWS = 100_000
STATES = 200
WRITERS = 3
RUN = "shared"
SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))


def test_events_cell_and_key_always_agree(store_path: Path, workers: Workers) -> None:
    print(f"seed {SEED}")
    with inmem.open(store_path) as db:
        db.kv.put(RUN, "count", 0)
        db.cells.init(RUN, "count", 0)
        writers = [workers.start(change_all_three, i, store_path, RUN, SEED) for i in range(WRITERS)]
        wait_until(lambda: all(workers.words[index] for index in range(WRITERS)), "all writers write")
        before = workers.words.total(WRITERS)
        report = workers.start(compare_all_three, store_path, RUN, VIEWS, STATES).result()
        meanwhile = workers.words.total(WRITERS) - before
        workers.words.stop()
        done = sum(writer.result() for writer in writers)
        length = db.events.count(RUN)
        state = db.cells.read(RUN, "count")
        assert state is not None
        assert length == state.value == db.kv.get(RUN, "count") >= done
        assert db.events.verify_chain(RUN).length == length
        assert db.check().problems == []
    assert report["views"] >= VIEWS
    assert report["states"] >= STATES, "the counts changed while they were looked at"
    print(f"{report['views']} views in {report['seconds']:.1f} s saw {report['states']} states of "
          f"{meanwhile} transactions, differences 0")
