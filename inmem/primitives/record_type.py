"""What the store has to know of a primitive's records to check, repair, delete, export and import them.

A primitive describes each of its type tags with one `RecordType`; `server`
has the table. Nothing here knows a primitive by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple, Protocol

from inmem.keys import MAX_NAME_BYTES
from inmem.primitives.line_fields import LineFields

Document = dict[str, Any]
RecordCheck = Callable[[bytes, bytes], str | None]
IndexKeys = Callable[[bytes, bytes, bytes], list[bytes]]


class RecordsOfRun(Protocol):
    """The live records of one run at one moment, as an export reads them."""

    @property
    def prefix(self) -> bytes: ...

    def record(self, tag: int, rest: bytes) -> bytes | None: ...

    def records(
        self, tag: int, prefix: bytes = b"", *, start_after: bytes | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]: ...


def _no_place(_chain: int, _before: int) -> list[Any]:
    return []


class LineForm(NamedTuple):
    """How records become lines of an export, and lines become records again.

    `documents` gives what the lines hold, in the order in which a parser
    accepts them, and raises ValueError for damage. `parser` makes a function
    that checks one line after another, and returns each as an item of the
    import procedure. `since` is the version of the export that has this kind
    of line. `place` gives further arguments of the procedure: from the chain
    of the run, and how many records of this kind came before.
    """

    kind: str
    procedure: str
    documents: Callable[[RecordsOfRun], Iterator[Document]]
    parser: Callable[[LineFields, int], Callable[[Document], list[Any]]]
    since: int
    place: Callable[[int, int], list[Any]] = _no_place


class RunCheck(Protocol):
    """Checks what records of several tags of one run must agree on. It is given them in key order."""

    def take(self, tag: int, rest: bytes, payload: bytes) -> str | None:
        """Look at one more, of any tag; what is wrong with it."""

    def finish(self, damaged: Collection[int]) -> list[str]:
        """What is wrong with the run. Of the indices `damaged` it is known that they are not complete."""


class RecordType(NamedTuple):
    """The records under one type tag.

    `check` makes a function for the records of one prefix, which are given to
    it in key order as name and payload; it returns what is wrong with one, and
    may raise anything if the bytes do not decode. `counted` is the name under
    which the records are counted, None for those that only serve others.
    `is_log` says that the records of a prefix are one log of events. `is_upkeep`
    says that a full store goes on to write them, as they end or hold on to work:
    new ones until a small reserve is used up, others for ever.
    Each has a record of the same name under the tag `goes_with`, and the other
    way round. Those under the tags of `handed_out` are for one taker each: a new one wakes
    one of those who wait for them. Their keys have a name and NUL after the tag.
    `check_run` makes a check of what it must agree on with records of other tags.
    """

    tag: int
    name: str
    check: Callable[[], RecordCheck]
    counted: str | None = None
    index_tags: frozenset[int] = frozenset()
    index_keys: IndexKeys | None = None
    lines: LineForm | None = None
    is_log: bool = False
    is_upkeep: bool = False
    goes_with: int | None = None
    handed_out: frozenset[int] = frozenset()
    check_run: Callable[[], RunCheck] | None = None


def check_each(check: RecordCheck) -> Callable[[], RecordCheck]:
    """For records that are checked one by one, whatever came before."""
    return lambda: check


def name_problem(rest: bytes) -> str | None:
    """What is wrong with the name of an entry, a cell, a trace or a run; raises if it is no UTF-8."""
    rest.decode()
    return "is no name" if not 0 < len(rest) <= MAX_NAME_BYTES or 0 in rest else None
