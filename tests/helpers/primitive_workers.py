"""Workers of the tests over all five primitives, and how those tests look at an image."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import inmem
from inmem.storage.environment import Table

DEADLINE_S = 30.0
PATIENT = 10_000  # attempts of a transaction that many processes want at once
READY = 64  # the first of the words in which workers say how far they are
HUB = "hub"
Rows = dict[bytes, bytes]
STEPS = ("logged", "synced", "published", "answering")
ARM = 100  # words: which step plus one, at which arrival, and number of the flag


def open_store(path: str | Path, **settings: Any) -> inmem.Database:
    return inmem.open(path, timeout_s=DEADLINE_S, **settings)


def rows_of(db: inmem.Database) -> dict[Table, Rows]:
    """Every table of the image, raw, all of one moment."""
    snapshot = db.engine.attachment.image.snapshot(DEADLINE_S)
    try:
        return {table: {bytes(k): bytes(v) for k, v in snapshot.table(table)} for table in Table}
    finally:
        snapshot.close()


def refusal(call: Callable[[], Any]) -> str:
    """The name of the error that a call raises, empty if it does not."""
    try:
        call()
    except inmem.InmemError as error:
        return type(error).__name__
    return ""


# --- a transaction over all primitives ------------------------------------------------------------


def mark_everywhere(words: Any, index: int, path: str, seed: int, notes: str, flag: str) -> int:
    """Write one marker into all five primitives at a time; what was tried and acked goes to a file.

    Which failpoint the next writer gets that this process starts is in the words.
    """
    rng = random.Random(seed * 1000 + index)
    note = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    done = 0
    with open_store(path) as db:
        while not words.stopping():
            _arm(words, flag)
            run = f"marks-{index}-{done // 40:03}"
            marker = f"m-{index}-{done:05}"
            gives_up = rng.random() < 0.1
            kind = rng.randrange(3)
            os.write(note, f"{'drop' if gives_up else 'try'} {run} {marker}\n".encode())
            try:
                db.transact(
                    run, lambda txn, a=(run, marker, kind, gives_up): mark(txn, *a), max_attempts=PATIENT
                )
            except _GivesUpError:
                pass
            else:
                os.write(note, f"ack {run} {marker}\n".encode())
            done += 1
            words[index] = done
    os.close(note)
    return done


class _GivesUpError(Exception):
    """A worker changes its mind in the middle of a transaction."""


def mark(txn: Any, run: str, marker: str, kind: int, gives_up: bool) -> None:
    """One marker in all five, and a count in a run that all workers share."""
    if txn.runs.get_run() is None:
        txn.runs.create_run(tags=["marked"])
    txn.kv.put(marker, marker, ttl=3600.0 if kind == 2 else None)
    txn.events.append("mark" if kind else f"mark-{marker[-1]}", marker)
    if kind:
        txn.cells.set(marker, marker)
    else:
        txn.cells.init(marker, marker)
    txn.traces.record(inmem.Thought(marker), id=marker, tags=["mark", marker])
    if gives_up:
        raise _GivesUpError
    txn.runs.add_tags([marker])
    txn.runs.update_metadata({marker: kind})
    hub = txn.at(HUB)
    hub.events.append("mark", marker)
    hub.kv.add("count")
    if kind == 1:  # a read of what everybody writes
        state = hub.cells.read("count")
        if state is None:
            hub.cells.init("count", 1)
        else:
            hub.cells.transition("count", lambda now: (now.value + 1, None))


def _arm(words: Any, flag: str) -> None:
    step, count, number = words[ARM], words[ARM + 1], words[ARM + 2]
    if step:
        os.environ["INMEM_FAILPOINT"] = f"{STEPS[step - 1]}:{count}:{flag}{number}"


def marks_in(view: Any) -> list[set[str]]:
    """The markers of one run, as each of the five primitives has them; each at most once."""
    events = [event.payload for event in view.events.iter()]
    traces = [trace.id for trace in view.traces.list()]
    assert len(set(events)) == len(events) and len(set(traces)) == len(traces)
    found = view.runs.get_run()
    tags = set() if found is None else set(found.tags) - {"marked"}
    assert found is None or set(found.metadata) == tags
    return [set(view.kv.list()), set(events), set(view.cells.list()), set(traces), tags]


# --- cells ----------------------------------------------------------------------------------------


def count_up(words: Any, index: int, path: str, run: str, count: int) -> list[int]:
    """Increments of one cell by `transition`; the numbers that this worker made."""
    with open_store(path) as db:
        words[READY + index] = 1
        words.pass_gate()
        made = []
        for n in range(count):
            made.append(db.cells.transition(
                run, "count", lambda state: (state.value + 1, state.value + 1),
                max_attempts=PATIENT, timeout_s=90.0,
            ))
            words[index] = n + 1
        return made


def win_versions(words: Any, index: int, path: str, run: str, last: int) -> dict[str, Any]:
    """Try to change the cell from each version that is seen; the versions from which that worked."""
    won: list[int] = []
    lost = 0
    with open_store(path) as db:
        words[READY + index] = 1
        words.pass_gate()
        while True:
            state = db.cells.read(run, "race")
            assert state is not None
            version = state.version
            if version >= last:
                return {"won": won, "lost": lost}
            try:
                if index % 4 == 3:
                    with db.transaction(run) as txn:
                        new = txn.cells.cas("race", version, [index, version])
                else:
                    new = db.cells.cas(run, "race", version, [index, version])
                assert new == version + 1
                won.append(version)
            except inmem.VersionMismatchError as error:
                assert error.expected == version < error.actual, error
                lost += 1
            except inmem.ConflictError:
                lost += 1


# --- snapshots ------------------------------------------------------------------------------------


def change_all_three(words: Any, index: int, path: str, run: str, seed: int) -> int:
    """Count events, a cell and a key up together, in different ways."""
    rng = random.Random(seed * 1000 + index)
    done = 0

    def by_reads(txn: Any, more: int) -> None:
        txn.kv.put("count", txn.kv.get("count") + more)
        state = txn.cells.read("count")
        txn.cells.cas("count", state.version, state.value + more)
        txn.events.append_many([("more", n) for n in range(more)])

    def by_length(txn: Any, more: int) -> None:
        for _ in range(more):
            txn.events.append("pinned", None)
        txn.kv.put("count", txn.events.count())
        txn.cells.set("count", txn.events.count())

    def by_transition(txn: Any, more: int) -> None:
        txn.cells.transition("count", lambda state: (state.value + more, None))
        txn.kv.add("count", more)
        for _ in range(more):
            txn.events.append("blind", more)

    ways: Iterable[Any] = (by_reads, by_length, by_transition)
    with open_store(path) as db:
        while not words.stopping():
            way, more = rng.choice(list(ways)), rng.randrange(1, 4)
            db.transact(run, lambda txn, w=way, m=more: w(txn, m), max_attempts=PATIENT)
            done += 1
            words[index] = done
    return done


def compare_all_three(words: Any, path: str, run: str, views: int, states_wanted: int) -> dict[str, Any]:
    """Look at all three, again and again: they agree in each view, and never go back.

    It looks on until it has seen enough states: the system may let the writers wait meanwhile.
    """
    seen: set[int] = set()
    last = number = 0
    began = time.monotonic()
    with open_store(path) as db:
        while number < views or (len(seen) < states_wanted and time.monotonic() < began + DEADLINE_S):
            number += 1
            with db.snapshot(run) if number % 10 else db.transaction(run) as view:
                events = view.events.count()
                state = view.cells.read("count")
                count = view.kv.get("count")
                assert state is not None and events == state.value == count, (number, events, state, count)
            assert count >= last, "what was published has gone"
            last = count
            seen.add(count)
    return {"views": number, "states": len(seen), "seconds": time.monotonic() - began}
