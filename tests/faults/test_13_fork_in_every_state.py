"""Many forks at random moments: every row is compared in the parent and in the children."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from pathlib import Path

import pytest
from fault_workers import RUN, measured_adds
from forks import in_child
from support import Workers, wait_until

import inmem

SEED = int(os.environ.get("INMEM_TEST_SEED", "20260701"))
FORKS = int(os.environ.get("INMEM_TEST_FORKS", "40"))


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.timeout(120 + 2 * FORKS)
def test_forks_in_every_state(store_path: Path, workers: Workers) -> None:
    """Forked while idle, in a snapshot, in a transaction, beside a thread; every row is compared."""
    rng = random.Random(f"{SEED} forks")
    print(f"seed {SEED}")
    worker = workers.start(measured_adds, 0, store_path, 0.0)
    rows = {f"row-{n:03}": f"value {n} " * 20 for n in range(200)}
    outcomes = {"ok": 0, "ForkError": 0}
    compared = 0
    stop = threading.Event()
    wrong: list[BaseException] = []
    with inmem.open(store_path) as db:
        db.kv.put_many(RUN, rows)

        def read() -> None:
            try:
                while not stop.is_set():
                    key = f"row-{rng.randrange(200):03}"
                    assert db.kv.get(RUN, key) == rows[key]
                    time.sleep(0.001)
            except BaseException as error:
                wrong.append(error)

        thread = threading.Thread(target=read)
        for number in range(FORKS):
            if number == FORKS // 2:
                thread.start()  # from here on there is another thread
            state = ("idle", "snapshot", "transaction")[rng.randrange(3)]

            def work() -> None:
                assert dict(db.kv.list_with_values(RUN)) == rows
                assert db.kv.add("children", "n") > 0

            if state == "idle":
                said = in_child(work)
                compared += said == "ok"
            else:
                with db.snapshot(RUN) if state == "snapshot" else db.transaction(RUN) as view:
                    assert view.kv.get("row-000") == rows["row-000"]
                    said = in_child(work)
                    done = workers.words[0]
                    wait_until(lambda d=done: workers.check() or workers.words[0] > d + 5, "writes go on")
                    assert dict(view.kv.list_with_values()) == rows
                    compared += 1
                assert said == "ForkError", said
            outcomes[said] += 1
            assert dict(db.kv.list_with_values(RUN)) == rows
            compared += 1
        stop.set()
        thread.join()
        assert not wrong, wrong
        assert db.kv.get("children", "n", 0) == outcomes["ok"] > 0
        workers.words.stop()
        worker.result()
    print(f"{FORKS} forks: {outcomes}, {compared * len(rows)} rows compared, wrong rows 0")


def add_once(db: inmem.Database, name: str) -> None:
    db.kv.add("children", name)
    db.close()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_ways_to_start_a_child_inside_a_snapshot(db: inmem.Database, method: str) -> None:
    """Where a fork is refused these are not."""
    db.kv.put(RUN, "k", 1)
    context = multiprocessing.get_context(method)
    with db.snapshot(RUN) as view:
        child = context.Process(target=add_once, args=(db, method))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        child.close()
        assert view.kv.get("k") == 1 and db.kv.get("children", method) == 1
