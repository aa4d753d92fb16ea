"""Footprints: a procedure looks at and changes nothing that its footprint does not say.

A transaction puts a call off because of what its footprint says. One that says
too little would show a transaction what the writer does not come to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from inmem import values
from inmem.commit.footprint import Footprint, Range, exactly, overlap
from inmem.commit.workspace import Workspace
from inmem.errors import InmemError
from inmem.keys import Key, Namespace, TypeTag, range_of
from inmem.primitives.runs import rules as run
from inmem.primitives.server import FOOTPRINTS, PROCEDURES

NS = Namespace()
RUN = NS.run_prefix("r")
KEY = bytes(Key.kv(NS, "r", "k"))
ONE, FIELDS = values.encode(1), values.encode({"a": 1})
TRACE = ["t", "", 0, 4, "Thought", ["tag"], values.encode({"content": "x", "confidence": None}), b"\x80"]

JOB: tuple[str, list[Any]] = ("queue.put", [[RUN, b"q"], [[ONE, 0, 5, b"key", 5]]])
CLAIMED = [JOB, ("queue.claim", [RUN, b"q", "w", 5000, 1, 7])]
HELD: list[Any] = [RUN, b"q", 0, 1, 7]
TAKEN = ("lease.acquire", [RUN, b"l", "holder", 500, 0, 7])  # as version 1, at 1000
WAITS = ("lease.acquire", [RUN, b"l", "next", 500, 5000, 8])

# Each call, after others that bring about what it can meet.
CALLS: dict[str, list[tuple[list[tuple[str, list[Any]]], list[Any]]]] = {
    "kv.add": [([], [KEY, 1, 0]), ([("kv.add", [KEY, 1, 0])], [KEY, 2, 0])],
    "kv.merge": [([], [KEY, FIELDS]), ([("kv.merge", [KEY, FIELDS])], [KEY, FIELDS])],
    "kv.clear": [([], [RUN, b"", False]), ([("kv.add", [KEY, 1, 0])], [RUN, b"", False])],
    "kv.delete": [([], [KEY]), ([("kv.add", [KEY, 1, 0])], [KEY])],
    "event.append": [
        ([], [RUN, [[b"t", ONE, 0]]]),
        ([("event.append", [RUN, [[b"t", ONE, 0], [b"u", ONE, 5]]])], [RUN, [[b"u", ONE, 0]]]),
    ],
    "cell.set": [
        ([], [RUN, b"c", ONE]), ([("cell.set", [RUN, b"c", ONE])], [RUN, b"c", ONE]),
        ([("cell.set", [RUN, b"c", ONE]), ("cell.delete", [RUN, b"c"])], [RUN, b"c", ONE]),
    ],
    "cell.init": [([], [RUN, b"c", ONE]), ([("cell.init", [RUN, b"c", ONE])], [RUN, b"c", ONE])],
    "cell.ensure": [([], [RUN, b"c", ONE]), ([("cell.init", [RUN, b"c", ONE])], [RUN, b"c", ONE])],
    "cell.cas": [([], [RUN, b"c", 1, ONE]), ([("cell.init", [RUN, b"c", ONE])], [RUN, b"c", 1, ONE])],
    "cell.delete": [([], [RUN, b"c"]), ([("cell.init", [RUN, b"c", ONE])], [RUN, b"c"])],
    "queue.put": [
        ([], [[RUN, b"q"], [[ONE, 0, 5, b"key", 5], [ONE, 9, 5, b"", 5]]]), ([JOB], JOB[1]),
    ],
    "queue.ack": [([], [*HELD, None]), (CLAIMED, [*HELD, None]), (CLAIMED, [*HELD, ONE])],
    "queue.nack": [
        (CLAIMED, [*HELD, None, "broke", True]), (CLAIMED, [*HELD, 0, "", True]),
        (CLAIMED, [*HELD, 0, "", False]),
    ],
    "queue.extend": [(CLAIMED, [*HELD, 5000])],
    "queue.requeue": [
        ([], [RUN, b"q", 0]), ([*CLAIMED, ("queue.nack", [*HELD, 0, "", False])], [RUN, b"q", 0]),
    ],
    "lease.check": [([], [RUN, b"l", 1, 1000]), ([TAKEN], [RUN, b"l", 1, 1000])],
    "lease.renew": [([], [RUN, b"l", 1, 1000, 0]), ([TAKEN], [RUN, b"l", 1, 1000, 9])],
    "lease.release": [
        ([], [RUN, b"l", 1, 1000]), ([TAKEN], [RUN, b"l", 1, 1000]), ([TAKEN, WAITS], [RUN, b"l", 1, 1000]),
    ],
    "trace.record": [
        ([], [RUN, [TRACE]]), ([("trace.record", [RUN, [TRACE]])], [RUN, [["u", "t", *TRACE[2:]]]]),
    ],
    "run.create": [
        ([], [NS.prefix(), "r", "", ["tag"], b"\x80"]),
        ([("run.create", [NS.prefix(), "up", "", [], b"\x80"])], [NS.prefix(), "r", "up", [], b"\x80"]),
    ],
    "run.ensure": [
        ([], [NS.prefix(), "r", "", ["tag"], b"\x80"]),
        ([("run.create", [NS.prefix(), "up", "", [], b"\x80"])], [NS.prefix(), "r", "up", [], b"\x80"]),
        ([("run.create", [NS.prefix(), "r", "", [], b"\x80"])], [NS.prefix(), "r", "", [], b"\x80"]),
    ],
    "run.update": [
        ([("run.create", [NS.prefix(), "r", "", [], b"\x80"])],
         [NS.prefix(), "r", "completed", None, ["new"], b"\x80"]),
    ],
}
# Changed by procedures of the one primitive only, in step with its records.
INDICES = {
    "trace.record": [
        range_of(RUN, tag) for tag in (
            TypeTag.TRACE_BY_TYPE, TypeTag.TRACE_BY_TAG, TypeTag.TRACE_BY_PARENT, TypeTag.TRACE_BY_TIME
        )
    ],
    "run.create": [
        range_of(NS.prefix(), tag)
        for tag in (TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG, TypeTag.RUN_BY_PARENT)
    ],
}
INDICES["run.update"] = INDICES["run.ensure"] = INDICES["run.create"]


class Watched:
    """Stored records, and what of them was looked at."""

    def __init__(self, records: dict[bytes, bytes]) -> None:
        self.records = records
        self.looked_at: list[Range] = []

    def get(self, key: bytes) -> bytes | None:
        self.looked_at.append(exactly(key))
        return self.records.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self.looked_at.append((start, end))
        for key in sorted(self.records, reverse=reverse):
            if start <= key < end:
                yield key, self.records[key]


def within(some: Range, ranges: tuple[Range, ...]) -> bool:
    return any(start <= some[0] and some[1] <= end for start, end in ranges)


@pytest.mark.parametrize(("name", "case"), [(n, i) for n, cases in CALLS.items() for i in range(len(cases))])
def test_a_procedure_keeps_to_its_footprint(name: str, case: int) -> None:
    before, arguments = CALLS[name][case]
    records: dict[bytes, bytes] = {}
    for earlier, its_arguments in before:
        workspace = Workspace(Watched(records), (), version=1, now_us=1000, chain=0)
        PROCEDURES[earlier](workspace, *its_arguments)
        records = {k: r for k, r in {**records, **workspace._changed}.items() if r is not None}
    base = Watched(records)
    workspace = Workspace(base, (), version=2, now_us=2000, chain=0)
    try:
        PROCEDURES[name](workspace, *arguments)
    except InmemError:
        assert not workspace.ops, "what is refused has changed nothing"
    footprint = FOOTPRINTS[name](*arguments)
    for looked_at in base.looked_at:
        assert within(looked_at, footprint.looks_at), Key(looked_at[0])
    for key in workspace._changed:
        assert within(exactly(key), (*footprint.changes, *INDICES.get(name, []))), Key(key)


def test_every_procedure_of_a_transaction_has_one_and_is_tried() -> None:
    assert set(FOOTPRINTS) == set(CALLS)
    alone = {  # commits of their own
        "run.delete", "run.remove", "index.mend", "index.repair",
        "queue.claim", "queue.give_back", "queue.purge", "lease.acquire", "lease.confirm", "lease.leave",
    }
    assert set(FOOTPRINTS) == {n for n in PROCEDURES if not n.startswith("import.")} - alone


def test_what_concerns_what() -> None:
    a, b = exactly(b"a"), exactly(b"b")
    call = Footprint((a, b), (a,))
    assert call.concerns((a,), ()), "it changes what is looked at"
    assert not call.concerns((b,), ()), "it does not change that"
    assert call.concerns((), (b,)), "it looks at what is changed"
    assert call.concerns((), (a,))
    assert not call.concerns((exactly(b"c"),), (exactly(b"c"),))
    assert overlap(((b"a", b"c"),), (b,)) and not overlap(((b"a", b"b"),), (b,))
    assert Footprint.of(a) == Footprint((a,), (a,))


def test_the_runs_of_a_namespace_are_one_footprint() -> None:
    key = run.run_key(NS.prefix(), "r")
    assert within(exactly(key), FOOTPRINTS["run.create"](NS.prefix(), "r", "", [], b"\x80").looks_at)
