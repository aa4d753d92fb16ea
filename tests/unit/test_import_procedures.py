"""The procedures of an import: what they take, what they refuse; and a marked run is closed to all else."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from committing import NS, Bench, Client, append, call, delete, error_of, kv_key, put, results_of

from inmem import values
from inmem.errors import (
    BusyError,
    CellExistsError,
    InmemError,
    InvalidInputError,
    InvariantError,
    RunDeletedError,
    RunExistsError,
    TraceExistsError,
    TraceNotFoundError,
)
from inmem.keys import Key, fence_of
from inmem.primitives import import_mark as importing
from inmem.primitives.events import rules as event_log
from inmem.primitives.events.rules import NO_HASH, chain_hash
from inmem.primitives.import_mark import Mark
from inmem.primitives.server import INDEX_TAGS, entries_of
from inmem.record import payload_of, timestamp_of
from inmem.storage.environment import Table
from inmem.storage.wal.format import PUT

HOME, RUN = NS.prefix(), NS.run_prefix("r")
TOKEN, OTHER = b"t" * 16, b"o" * 16
THEN = 1_000_000
RECORD = ["completed", "p", THEN, THEN + 5, THEN + 5, ["b", "a"], values.encode({"m": 1}), None, 3]


def begin(token: bytes = TOKEN, run: str = "r", cell_mark: int = 0) -> list[Any]:
    return call("import.begin", HOME, run, token, cell_mark)


def finish(kv: int = 0, cells: int = 0, events: int = 0, traces: int = 0, record: Any = None) -> list[Any]:
    return call("import.finish", HOME, "r", TOKEN, [kv, cells, events, traces], record)


def chain(count: int, kind: int = 0) -> list[list[Any]]:
    """Events that follow from one another, as the procedure takes them."""
    items, previous = [], NO_HASH
    for number in range(count):
        payload = values.encode(number)
        digest = chain_hash(kind, number, THEN + number, b"e", payload, previous)
        items.append([b"e", payload, THEN + number, digest])
        previous = digest
    return items


def of(name: str, *arguments: Any, token: bytes = TOKEN) -> list[Any]:
    return call(f"import.{name}", RUN, token, *arguments)


ENTRY = [b"k", values.encode("v"), 0, THEN]
CELL = [b"c", 7, THEN, values.encode("v")]
TRACE = ["root", "", THEN, 4, "Thought", ["x"], values.encode({"content": "c", "confidence": None}), b"\x80"]
CHILD = ["child", "root", *TRACE[2:]]


def assert_indices(bench: Bench) -> None:
    stored, expected = set(), set()
    for key, record in bench.records().items():
        prefix, tag, rest = Key(key).split_key()
        if tag in INDEX_TAGS:
            stored.add(key)
        else:
            expected.update(entries_of(prefix, tag, rest, payload_of(record)))
    assert stored == expected


def test_a_run_in_one_commit(bench: Bench, client: Client) -> None:
    results = results_of(client.send(
        begin(cell_mark=9), of("entries", [ENTRY]), of("cells", [CELL]), of("events", 0, 0, chain(3)),
        of("traces", [TRACE, CHILD]), finish(1, 1, 3, 2, RECORD),
    ))
    assert results[0] is False
    assert list(bench.store.items(Table.FENCES)) == []
    assert bench.value(kv_key("r", "k")) == "v"
    assert timestamp_of(bench.records()[kv_key("r", "k")]) == THEN
    pairs = [(n, bench.live()[event_log.event_key(RUN, n)][1]) for n in range(3)]
    assert event_log.verify(pairs).is_valid
    assert_indices(bench)
    # It is a run like any other now: the mark of deleted cells counts, the log goes on.
    assert results_of(client.send(call("cell.init", RUN, b"new", values.encode(1)))) == [10]
    assert results_of(client.send(append("r", ("next", 1))))[0][0] == 3
    assert client.send(call("run.update", HOME, "r", "archived", None, [], b"\x80")).status == 0


def test_in_many_commits_and_across_writers(bench: Bench, client: Client) -> None:
    client.send(begin())
    for number, item in enumerate(chain(6, kind=1)):
        assert results_of(client.send(of("events", 1, number, [item]))) == [None]
        bench.restart()  # the mark and its counts outlive every writer
    error = error_of(client.send(finish(events=5, record=RECORD)))
    assert isinstance(error, InvariantError) and "not whole" in error.message
    results_of(client.send(finish(events=6, record=RECORD)))
    assert_indices(bench)


@pytest.mark.parametrize("op", [
    put(kv_key("r", "k"), 1), delete(kv_key("r", "k")), call("kv.add", kv_key("r", "k"), 1, 0),
    call("kv.delete", kv_key("r", "k")), append("r", ("e", 1)), call("event.append", RUN, []),
    call("cell.init", RUN, b"n", b"\1"), call("cell.set", RUN, b"n", b"\1"),
    call("cell.cas", RUN, b"n", 1, b"\1"), call("cell.delete", RUN, b"c"),
    call("trace.record", RUN, [TRACE]), call("run.delete", HOME, "r"),
    call("run.create", HOME, "r", "", [], b"\x80"),
    call("run.update", HOME, "r", "failed", None, [], b"\x80"),
    of("entries", [ENTRY], token=OTHER), call("import.finish", HOME, "r", OTHER, [0, 1, 0, 0], None),
], ids=lambda op: op[1] if isinstance(op[1], str) else "plain")  # fmt: skip
@pytest.mark.parametrize("restarted", [False, True])
def test_a_marked_run_is_closed(bench: Bench, client: Client, op: list[Any], restarted: bool) -> None:
    results_of(client.send(begin(), of("cells", [CELL])))
    if restarted:
        bench.restart()
    before = bench.records()
    error = error_of(client.send(op))
    assert isinstance(error, BusyError) and error.retryable and "r" in (error.what or "")
    # Nor together with others, nor before or after a call of the import itself.
    assert isinstance(error_of(client.send(put(kv_key("other", "k"), 1), op)), BusyError)
    assert isinstance(error_of(client.send(of("entries", [ENTRY]), op)), BusyError)
    assert bench.records() == before
    assert client.send(put(kv_key("other", "k"), 1)).status == 0
    results_of(client.send(finish(cells=1)))
    assert client.send(put(kv_key("r", "after"), 1)).status == 0


def test_a_later_import_takes_over(bench: Bench, client: Client) -> None:
    results_of(client.send(begin(), of("entries", [ENTRY]), of("events", 0, 0, chain(2))))
    results = results_of(client.send(begin(OTHER), of("events", 0, 0, chain(1), token=OTHER)))
    assert results[0] is True
    assert kv_key("r", "k") not in bench.records()
    assert isinstance(error_of(client.send(of("events", 0, 2, chain(3)[2:]))), BusyError)
    assert results_of(client.send(call("import.abort", HOME, "r", TOKEN))) == [False]
    done = call("import.finish", HOME, "r", OTHER, [0, 0, 1, 0], None)
    results_of(client.send(done))
    assert_indices(bench)


@pytest.mark.parametrize("token", [TOKEN, b""])
def test_giving_up_leaves_nothing(bench: Bench, client: Client, token: bytes) -> None:
    results_of(client.send(begin(cell_mark=3), of("entries", [ENTRY]), of("traces", [TRACE])))
    assert results_of(client.send(call("import.abort", HOME, "r", token))) == [True]
    assert bench.records() == {} and list(bench.store.items(Table.FENCES)) == []
    assert results_of(client.send(call("import.abort", HOME, "r", token))) == [False]
    error = error_of(client.send(of("entries", [ENTRY])))
    assert isinstance(error, InvariantError) and "given up" in error.message
    assert client.send(put(kv_key("r", "k"), 1)).status == 0


def test_what_exists_is_not_begun(bench: Bench, client: Client) -> None:
    client.send(put(kv_key("data", "k"), 1))
    client.send(call("run.create", HOME, "record", "", [], b"\x80"))
    client.send(call("run.create", HOME, "deleted", "", [], b"\x80"))
    client.send(call("run.delete", HOME, "deleted"))
    client.send(put(kv_key("expired", "k"), 1, bench.now + 1))
    bench.now += 2
    for run, error in (("data", RunExistsError), ("record", RunExistsError), ("deleted", RunDeletedError)):
        found = error_of(client.send(begin(run=run)))
        assert isinstance(found, error) and found.run_id == run, found  # type: ignore[attr-defined]
    assert results_of(client.send(begin(run="expired"))) == [False]


def broken(number: int, at: int, value: Any) -> list[list[Any]]:
    items = chain(3)
    items[number][at] = value
    return items


@pytest.mark.parametrize(("op", "error"), [
    (of("events", 0, 1, chain(1)), InvariantError),
    (of("events", 0, 0, chain(3)[1:]), InvariantError),
    (of("events", 0, 0, [chain(3)[n] for n in (0, 2, 1)]), InvariantError),
    (of("events", 1, 0, chain(1)), InvariantError),
    (of("events", 7, 0, chain(1)), InvalidInputError),
    (of("events", [], 0, chain(1)), InmemError),
    (of("events", 0, 0, broken(1, 1, b"\x07")), InvariantError),
    (of("events", 0, 0, broken(2, 2, THEN + 9)), InvariantError),
    (of("events", 0, 0, broken(1, 0, b"other")), InvariantError),
    (of("events", 0, 0, broken(1, 0, b"")), InvalidInputError),
    (of("events", 0, 0, broken(1, 3, b"short")), InvariantError),
    (of("entries", [ENTRY, ENTRY]), InvariantError),
    (of("entries", [[b"", *ENTRY[1:]]]), InvalidInputError),
    (of("entries", [[b"x" * 321, *ENTRY[1:]]]), InvalidInputError),
    (of("entries", [[b"k", b"\1", 0, 0]]), InvalidInputError),
    (of("entries", [[b"k", b"\1", -1, THEN]]), InvalidInputError),
    (of("cells", [CELL, CELL]), CellExistsError),
    (of("cells", [[b"c", 0, THEN, b"\1"]]), InvalidInputError),
    (of("traces", [CHILD, TRACE]), TraceNotFoundError),
    (of("traces", [TRACE, TRACE]), TraceExistsError),
    (of("traces", [[*TRACE[:2], 0, *TRACE[3:]]]), InvalidInputError),
    (of("traces", [TRACE[:5]]), InvalidInputError),
    (begin(b"short"), InvalidInputError),
    (begin(cell_mark=-1), InvalidInputError),
    (finish(record=RECORD[:8]), InvalidInputError),
    (finish(record=["unheard of", *RECORD[1:]]), InvalidInputError),
    (finish(record=["active", *RECORD[1:]]), InvariantError),
    (finish(record=[*RECORD[:4], 0, *RECORD[5:]]), InvariantError),
    (finish(record=[*RECORD[:8], 0]), InvalidInputError),
    (finish(record=[*RECORD[:5], ["a", "a"], *RECORD[6:]]), InvalidInputError),
    (finish(record=[*RECORD[:6], b"\x90", *RECORD[7:]]), InvalidInputError),
    (finish(record=["completed", "not/an/id", *RECORD[2:]]), InmemError),
])  # fmt: skip
def test_what_breaks_a_rule_is_refused(
    bench: Bench, client: Client, op: list[Any], error: type[InmemError]
) -> None:
    results_of(client.send(begin()))
    before = bench.records(), list(bench.store.items(Table.FENCES))
    found = error_of(client.send(op))
    assert isinstance(found, error), found
    assert len(found.message) < 400
    assert (bench.records(), list(bench.store.items(Table.FENCES))) == before


def test_a_mark_is_as_before_when_publishing_fails(bench: Bench, client: Client) -> None:
    """In memory as in the image: a writer that thought otherwise would open a run, or close it, for ever."""
    results_of(client.send(begin(), of("entries", [ENTRY])))
    for op in (finish(kv=1), call("import.abort", HOME, "r", TOKEN), begin(OTHER)):
        bench.store.plan.append(True)
        assert error_of(client.send(op)).code == "store_full"
        assert isinstance(error_of(client.send(put(kv_key("r", "x"), 1))), BusyError)
    bench.store.plan.append(True)
    assert error_of(client.send(begin(run="free"))).code == "store_full"
    assert client.send(put(kv_key("free", "k"), 1)).status == 0
    results_of(client.send(finish(kv=1)))


COUNTS = {"kv": 1, "cells": 2, "events": 3, "traces": 4}


def test_the_form_of_a_mark() -> None:
    mark = Mark(TOKEN, {**COUNTS, "notes": 500}, RUN)
    value = importing.pack(5, mark)
    assert importing.unpack(value) == mark
    assert value.hex() == (
        "0000000000000005" "02" + TOKEN.hex() + "0019" + RUN.hex()
        + "85" "a26b7601" "a563656c6c7302" "a66576656e747303" "a674726163657304" "a56e6f746573cd01f4"
    )
    assert importing.is_mark(value) and not importing.is_mark((5).to_bytes(8, "big"))
    assert len(fence_of(RUN)) == 16
    bads = [b"", value[:26], value[:40], value[:-1], value + b"\0", value[:8] + b"\3" + value[9:]]
    bads += [importing.pack(5, Mark(TOKEN, counts, RUN)) for counts in ({"kv": -1}, {1: 1}, {"kv": "1"})]
    for bad in bads:
        with pytest.raises(ValueError, match="mark of an import"):
            importing.unpack(bad)


# What the first release wrote into tables, checkpoints and the log.
FORM_1 = bytes.fromhex(
    "0000000000000005" "01" + TOKEN.hex()
    + "0000000000000001" "0000000000000002" "0000000000000003" "0000000000000004" + RUN.hex()
)


def test_the_first_form_of_a_mark_is_read() -> None:
    assert importing.is_mark(FORM_1)
    assert importing.unpack(FORM_1) == Mark(TOKEN, COUNTS, RUN)
    with pytest.raises(ValueError, match="mark of an import"):
        importing.unpack(FORM_1[:56])


def test_an_import_that_an_earlier_writer_began_goes_on(bench: Bench, client: Client) -> None:
    client.send(begin(), of("entries", [ENTRY]))
    txn = bench.store.begin()
    form_1 = FORM_1[:25] + struct.pack(">4Q", 1, 0, 0, 0) + RUN
    txn.apply([(PUT, int(Table.FENCES), fence_of(RUN), form_1)])
    txn.publish(bench.store.position)
    bench.restart()
    results_of(client.send(of("cells", [CELL])))
    assert isinstance(error_of(client.send(finish(kv=1))), InvariantError)
    results_of(client.send(finish(kv=1, cells=1)))
    assert list(bench.store.items(Table.FENCES)) == []


@pytest.mark.parametrize("counts", [
    None, {}, [], [1, 0, 0], [1, 0, 0, 0, 0], [1, 0, 0, 0, {}, {}], [-1, 0, 0, 0], ["1", 0, 0, 0],
    [1, 0, 0, 0, {"notes": -1}], [1, 0, 0, 0, {1: 1}],
])  # fmt: skip
def test_counts_that_are_none_are_refused(bench: Bench, client: Client, counts: Any) -> None:
    client.send(begin(), of("entries", [ENTRY]))
    error = error_of(client.send(call("import.finish", HOME, "r", TOKEN, counts, None)))
    assert isinstance(error, InvalidInputError)
    with_others = [1, 0, 0, 0, {"notes": 1}]
    error = error_of(client.send(call("import.finish", HOME, "r", TOKEN, with_others, None)))
    assert isinstance(error, InvariantError)
    results_of(client.send(finish(kv=1)))
