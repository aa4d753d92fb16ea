"""Fault 47: a stream whose run is deleted in the middle of it says so; it never ends as if it were whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from injecting import NestedCall

import inmem
from inmem.errors import RunDeletedError
from inmem.exchange.reading import source_of
from inmem.keys import Namespace
from inmem.primitives import _paging
from inmem.reading import moment, source
from inmem.reading.run import StoredRun

CHUNK = 8
HOME = Namespace()


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_paging, "CHUNK", CHUNK)
    defaults = {**(source.Source.page.__kwdefaults__ or {}), "limit": CHUNK}
    monkeypatch.setattr(source.Source.page, "__kwdefaults__", defaults)
    assert moment.PAGE_RECORDS > CHUNK


def numbers(found: Iterator[Any]) -> Iterator[int]:
    return (getattr(each, "event", each).sequence for each in found)


STREAMS: dict[str, Callable[[inmem.Database, str], Iterator[int]]] = {
    "by run": lambda db, run: numbers(db.events.iter(run)),
    "scope": lambda db, run: numbers(db.run(run).events.iter()),
    "read model": lambda db, run: numbers(StoredRun(source_of(db), HOME, run).events()),
    "by type": lambda db, run: numbers(StoredRun(source_of(db), HOME, run).events(event_type="even")),
}


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK])
@pytest.mark.parametrize("name", STREAMS)
def test_deleted_after_any_number_of_events(db: inmem.Database, name: str, length: int) -> None:
    ended = 0
    for after in range(1, length + 1):
        run = f"{name}-{length}-{after}".replace(" ", "-")
        db.events.append_many(run, [("even", n) for n in range(length)])
        read = []
        try:
            for sequence in STREAMS[name](db, run):
                read.append(sequence)
                if len(read) == after:
                    db.runs.delete_run(run)
            assert read == list(range(length)), f"a silent end after {len(read)} of {length}"
            ended += 1
        except RunDeletedError as error:
            assert read == list(range(len(read)))
            assert f"sequence {read[-1]}" in str(error) or f"{len(read)} records" in str(error)
    assert ended <= CHUNK, "only what was read before it was deleted is whole"


@pytest.mark.parametrize("kind", ["facade", "read model"])
def test_verified_while_it_is_deleted(db: inmem.Database, kind: str) -> None:
    """At every line: the verdict is on the whole log, on none, or there is no verdict."""
    refused = at = 0
    while True:
        run = f"{kind}-{at}".replace(" ", "-")
        appended = db.events.append_many(run, [("t", n) for n in range(3 * CHUNK)])
        anchor = (2 * CHUNK, appended[2 * CHUNK].hash)
        reads = StoredRun(source_of(db), HOME, run)

        def verify(run: str = run, anchor: tuple[int, bytes] = anchor, reads: StoredRun = reads) -> Any:
            return db.events.verify_chain(run, anchor=anchor) if kind == "facade" else reads.verify(anchor)

        injection = NestedCall(at, lambda run=run: db.runs.delete_run(run), opcodes=False)
        try:
            verdict = injection.run(verify)
            whole = (verdict.is_valid, verdict.length) == (True, 3 * CHUNK)
            assert whole or (verdict.is_valid, verdict.length) == (False, 0), injection.where
        except RunDeletedError:
            refused += 1
        if at >= injection.seen:
            break
        at += 1 if at < 60 else 7
    assert refused > 5 and at > 60


def test_a_log_that_ends_with_a_page_is_whole(db: inmem.Database) -> None:
    for length in (CHUNK, 2 * CHUNK):
        db.events.append_many(f"r-{length}", [("t", n) for n in range(length)])
        assert len(list(db.events.iter(f"r-{length}"))) == length
        with db.transaction(f"r-{length}") as txn:
            assert len(list(txn.events.iter())) == length
