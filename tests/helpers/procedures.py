"""Commit procedures without a committer: called on a dictionary, one commit at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from committing import NS, START_US

from inmem import values
from inmem.commit.workspace import Workspace
from inmem.errors import InmemError
from inmem.keys import Key, TypeTag
from inmem.primitives.cells import procedures as cell_procedures
from inmem.primitives.events.procedures import append as event_append
from inmem.primitives.leases import procedures as lease_procedures
from inmem.primitives.queues import procedures as queue_procedures
from inmem.primitives.runs.procedures import create
from inmem.primitives.server import INDEX_TAGS, entries_of
from inmem.primitives.traces import procedures as trace_procedures
from inmem.record import payload_of
from inmem.storage.environment import Table
from inmem.storage.wal.format import DELETE, PUT

HOME = NS.prefix()
RUN = NS.run_prefix("r")
EMPTY = values.encode({})
BODY = values.encode({"content": "x", "confidence": None})

BAD_PREFIXES: list[Any] = [
    None, 7, True, "text", [], {}, b"", b"a\0b", b"\0", b"x" * 190, b"x" * 10**6, b"\xff/\xfe",
    "\u00e9".encode(),
]
BAD_NAMES: list[Any] = [
    None, 7, 1.5, True, "text", [b"a"], {}, b"", b"\0", b"a\0b", b"\xff\xfe", b"\xed\xa0\x80", b"x" * 321,
    "\u00e9".encode() * 161, b"x" * 10**6,
]
BAD_IDS: list[Any] = [
    None, 7, 0, True, b"bytes", [], {}, "", " ", "a/b", "a\0", "r\u00e9", "r\n", "@agent", "x" * 65,
    "x" * 10**6,
]
BAD_TAGS: list[Any] = [
    None, 7, "text", b"bytes", {}, {"a": 1}, [1], [None], [b"a"], [["a"]], [""], ["a\0"], ["x" * 129],
    ["\u00e9" * 65], ["a", "a"], ["ok", ""],
]
BAD_MAPS: list[Any] = [
    None, 7, "text", [], {}, b"", b"\xc1", b"\x80\x80", b"\x90", b"\xc0", b"\xdd\xff\xff\xff\xff",
    b"\x81\x01\x01", b"\x81\x90\x01", b"\x81\xa1\xff\x01", b"\x91" * 5000, b"\x81\xa1k" * 5000,
]


class _Base:
    def __init__(self, records: dict[bytes, bytes]) -> None:
        self._records = records

    def get(self, key: bytes) -> bytes | None:
        return self._records.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        for key in sorted(self._records, reverse=reverse):
            if start <= key < end:
                yield key, self._records[key]


class Stored:
    """What is stored, and the commits that change it."""

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.fences: set[bytes] = set()
        self.version = 0
        self.now = START_US

    def workspace(self) -> Workspace:
        """That of the next commit."""
        return Workspace(
            _Base(dict(self.records)), set(self.fences), version=self.version + 1, now_us=self.now, chain=0
        )

    def commit(self, some: Workspace) -> None:
        """Apply what a commit does."""
        self.version += 1
        for op in some.ops:
            if op[0] == PUT and op[1] == int(Table.FENCES):
                self.fences.add(op[2])
            elif op[0] == PUT:
                self.records[op[2]] = op[3]
            elif op[0] == DELETE:
                self.records.pop(op[2], None)
            else:
                self.records = {k: r for k, r in self.records.items() if not op[2] <= k < op[3]}

    def run(self, procedure: Callable[..., Any], *arguments: Any) -> Any:
        """One procedure as one commit."""
        some = self.workspace()
        result = procedure(some, *arguments)
        self.commit(some)
        return result

    def refused(
        self, error: type[InmemError], procedure: Callable[..., Any], *arguments: Any, names: str = ""
    ) -> Any:
        """The error of one procedure, which has changed nothing, not even in its workspace."""
        some = self.workspace()
        with pytest.raises(error) as caught:
            procedure(some, *arguments)
        assert (some.ops, some.buckets, some.new_fences) == ([], set(), [])
        if names:
            assert names in (getattr(caught.value, "argument", None) or ""), caught.value
        assert len(str(caught.value)) < 500
        return caught.value

    def payload(self, key: bytes) -> bytes | None:
        record = self.records.get(key)
        return None if record is None else payload_of(record)

    def indices(self) -> tuple[set[bytes], set[bytes]]:
        """The index entries that are stored, and those that the primary records ask for."""
        stored, expected = set(), set()
        for key, record in self.records.items():
            prefix, tag, rest = Key(key).split_key()
            if tag in INDEX_TAGS:
                assert payload_of(record) == b""
                stored.add(key)
            else:
                expected.update(entries_of(prefix, tag, rest, payload_of(record)))
        return stored, expected

    def assert_indices(self) -> None:
        stored, expected = self.indices()
        assert stored == expected


def made(stored: Stored, run_id: str, parent: str = "", tags: tuple[str, ...] = (), **metadata: Any) -> Any:
    return stored.run(create, HOME, run_id, parent, list(tags), values.encode(metadata))


def fill(stored: Stored, run_id: str, namespace: bytes = HOME, record: bool = True) -> None:
    """Something of every primitive and every index."""
    prefix = namespace + b"/" + run_id.encode()
    for name in (b"k", b"l"):
        some = stored.workspace()
        some.put(b"%b\0%c%b" % (prefix, TypeTag.KV, name), values.encode(1))
        stored.commit(some)
    stored.run(event_append, prefix, [[b"t", values.encode(i), 0] for i in range(3)])
    stored.run(cell_procedures.assign, prefix, b"c", values.encode(1))
    stored.run(cell_procedures.assign, prefix, b"gone", values.encode(1))
    stored.run(cell_procedures.delete, prefix, b"gone")
    stored.run(trace_procedures.record, prefix, [
        ["up", "", 1, 4, "Thought", ["x", "y"], BODY, EMPTY],
        ["down", "up", 2, 4, "Thought", ["x"], BODY, EMPTY],
    ])
    queue_procedures.put(some := stored.workspace(), [prefix, b"q"], [
        [EMPTY, delay_us, 5, key, 5] for delay_us, key in ((0, b"k"), (0, b""), (0, b""), (9, b"l"))
    ])
    stored.commit(some)
    token, _, numbers, _ = stored.run(queue_procedures.claim, prefix, b"q", "w", 1_000_000, 2, 1)
    stored.run(queue_procedures.nack, prefix, b"q", numbers[1], token, 1, 0, "broke", False)
    for claim in (1, 2):  # the second one waits
        stored.run(lease_procedures.acquire, prefix, b"l", "holder", 500, 5000, claim)
    if record:
        stored.run(create, namespace, run_id, "", ["x", "y"], EMPTY)
