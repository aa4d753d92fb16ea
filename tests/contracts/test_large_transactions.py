"""What cannot travel together travels apart, and what a call does not concern costs it nothing."""

from __future__ import annotations

import time

import inmem

RUN = "run"
MIB = 1 << 20


def test_many_large_values(db: inmem.Database) -> None:
    """Each is legal, and a hundred of them are more than one commit may be."""
    value = b"x" * MIB
    with db.pipeline() as pipe:
        for number in range(60):
            pipe.kv.put(RUN, f"k-{number:02}", value)
        pipe.kv.put("other-run", "k", 1)
    assert db.kv.count(RUN) == 60 and db.kv.get("other-run", "k") == 1


def test_merges_into_a_large_entry(db: inmem.Database) -> None:
    """Each writes all of it again: together they come to more than one commit may."""
    db.kv.put(RUN, "document", {"text": "x" * 250_000})
    with db.pipeline() as pipe:
        for number in range(100):
            pipe.kv.merge(RUN, "document", {"n": number, f"field-{number}": number})
            pipe.kv.put(RUN, "n", number)
    document = db.kv.get(RUN, "document")
    assert len(document) == 102 and document["n"] == 99 == db.kv.get(RUN, "n")


def test_appends_that_are_too_many_as_one(db: inmem.Database) -> None:
    many = [("t", n) for n in range(4_000)]  # fits a commit, and twice as many do not
    with db.pipeline() as pipe:
        pipe.events.append_many(RUN, many)
        pipe.events.append_many(RUN, many)
    assert db.events.count(RUN) == 8_000


def test_thousands_of_calls_put_off(db: inmem.Database) -> None:
    """What a read has to look at does not grow with the calls that do not concern it."""

    def seconds(count: int, run: str) -> float:
        began = time.perf_counter()
        with db.transaction(run) as txn:
            for number in range(count):
                txn.kv.add(f"n-{number}")
            for number in range(count):
                assert txn.kv.get(f"other-{number}") is None
        assert db.kv.count(run, "n-") == count
        return time.perf_counter() - began

    ratios = []
    for number in range(5):
        few, many = (seconds(count, f"{number}-{count}") for count in (500, 4000))
        ratios.append(many / few)
        if ratios[-1] < 20:
            break
    assert min(ratios) < 20, "eight times as many cost 64 times as much where each read looks at all of them"


def test_a_cell_that_was_not_looked_at_does_not_conflict(db: inmem.Database) -> None:
    """Setting a cell looks at the mark of the run's deleted cells, which others do not change."""
    db.cells.init(RUN, "hot", 0)
    with db.transaction(RUN) as txn:
        txn.cells.init("mine", 1)
        txn.cells.set("hot", 5)
        db.cells.set(RUN, "hot", 4)
    assert db.cells.read(RUN, "hot").value == 5
