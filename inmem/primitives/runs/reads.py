"""Reads of a namespace's runs: one, those that match conditions, all of them."""

from __future__ import annotations

import builtins
import heapq
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from inmem.engines.base import Item, View
from inmem.errors import InvalidInputError, RunNotFoundError
from inmem.host.interrupts import let_through
from inmem.keys import TypeTag, check_run_id, range_of, shorten
from inmem.primitives._common import check_limit, check_tags
from inmem.primitives._paging import CHUNK, past
from inmem.primitives.byrun import Host, OfRun
from inmem.primitives.runs import rules
from inmem.primitives.runs.rules import RunMetadata, RunStats, RunStatus
from inmem.record import payload_of
from inmem.values import text_of

_PLACE_BYTES: Final = 8 + 65  # time of creation, and more than any run id


@dataclass(frozen=True, slots=True)
class RunQuery:
    """What `query_runs` looks for: runs that match every condition given.

    `created_after` and `created_before` are microseconds, the range half-open.
    `start_after` continues after a run that was found, or its id (before it, if `reverse`).
    """

    status: RunStatus | None = None
    tags: Sequence[str] = ()
    created_after: int | None = None
    created_before: int | None = None
    parent_run: str | OfRun | None = None
    limit: int | None = None
    reverse: bool = False
    include_archived: bool = False
    start_after: str | OfRun | RunMetadata | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A `RunQuery` that was checked."""

    status: RunStatus | None
    tags: tuple[str, ...]
    created_after: int | None
    created_before: int | None
    parent: str | None
    limit: int | None
    reverse: bool
    include_archived: bool
    after: str | RunMetadata | None


class RunReads:
    """Reads of a namespace's runs; `run_id` is the scope's own."""

    __slots__ = ("_host", "_namespace", "_run_id", "_view")

    def __init__(self, host: Host, view: View, namespace: bytes, run_id: str) -> None:
        self._host = host
        self._view = view
        self._namespace = namespace
        self._run_id = run_id

    def _own(self) -> str:
        return check_run_id(self._run_id)  # a shared scope is no run

    def _id_of(self, run: str | OfRun, argument: str = "run_id") -> str:
        """The id of a run of this namespace, of which an id or the scope was given."""
        if not isinstance(getattr(run, "prefix", None), bytes):
            return check_run_id(run, argument)
        try:
            scope: OfRun = self._host.run(run)
        except InvalidInputError as error:
            let_through(error)
            raise InvalidInputError(f"{argument} is a scope of another database", argument=argument) from None
        if scope.namespace != self._namespace:
            raise InvalidInputError(f"{argument} is a run of another namespace", argument=argument)
        return check_run_id(scope.run_id, argument)

    def _query(self, query: RunQuery | None, conditions: dict[str, Any]) -> _Wanted:
        if query is not None and (conditions or not isinstance(query, RunQuery)):
            raise InvalidInputError("give a RunQuery or keywords, not both", argument="query")
        try:
            query = query or RunQuery(**conditions)
        except TypeError:
            unknown = sorted(set(conditions) - set(RunQuery.__slots__))
            raise InvalidInputError(f"there is no condition {unknown[0]!r}", argument=unknown[0]) from None
        parent, after = query.parent_run, query.start_after
        return _Wanted(
            None if query.status is None else rules.check_status(query.status, "status"),
            tuple(check_tags(query.tags)),
            _check_time(query.created_after, "created_after"),
            _check_time(query.created_before, "created_before"),
            None if parent is None else self._id_of(parent, "parent_run"),
            check_limit(query.limit),
            bool(query.reverse),
            bool(query.include_archived),
            after if after is None or isinstance(after, RunMetadata) else self._id_of(after, "start_after"),
        )

    def get_run(self, run_id: str | OfRun | None = None) -> RunMetadata | None:
        """A run's record, without an id this scope's; None if it was never created. Cost: about 5 µs."""
        return self._get(self._view, self._own() if run_id is None else self._id_of(run_id))

    def _get(self, view: View, run_id: str) -> RunMetadata | None:
        record = view.read(rules.run_key(self._namespace, run_id))
        return None if record is None else rules.unpack(run_id, payload_of(record))

    def query_runs(self, query: RunQuery | None = None, **conditions: Any) -> builtins.list[RunMetadata]:
        """Runs that match every condition, in order of creation.

        Takes a `RunQuery` or its fields as keywords. Archived runs are left
        out unless `include_archived` or `status=ARCHIVED` is given. Cost:
        linear in the runs of the narrowest condition (parent, first tag,
        status), not in their data; with a `limit` in those up to the last one.

        Raises:
            RunNotFoundError: there is no run with the id to start after.
        """
        wanted = self._query(query, conditions)
        with self._view.moment() as view:
            return [*islice(self._found(view, wanted), _stop(wanted))]

    def iter_runs(self, query: RunQuery | None = None, **conditions: Any) -> Iterator[RunMetadata]:
        """Stream what `query_runs` finds, in bounded memory.

        Takes a new snapshot for each 512 runs. A run that is there all the
        time comes once.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     runs = [db.runs.create_run(run_id=name) for name in ("one", "two", "three")]
        ...     [run.run_id for run in db.runs.iter_runs(start_after="one")]
        ['two', 'three']

        Raises:
            RunNotFoundError: there is no run with the id to start after.
        """
        return self._stream(self._query(query, conditions))

    def _stream(self, wanted: _Wanted) -> Iterator[RunMetadata]:
        left = wanted.limit
        while left != 0:
            size = CHUNK if left is None else min(left, CHUNK)
            with self._view.moment() as view:
                page = [*islice(self._found(view, wanted), size)]
            yield from page
            if len(page) < size:
                return
            left = None if left is None else left - size
            wanted = replace(wanted, after=page[-1])

    def _found(self, view: View, wanted: _Wanted) -> Iterator[RunMetadata]:
        after = self._place(view, wanted.after)
        for place in self._candidates(view, wanted, after):
            run = self._get(view, text_of(place[8:]))
            if run is not None and _matches(run, wanted):
                yield run

    def _place(self, view: View, after: str | RunMetadata | None) -> bytes | None:
        """Where a run is in the order of creation."""
        if isinstance(after, str):
            run_id, after = after, self._get(view, after)
            if after is None:
                raise RunNotFoundError(
                    f"there is no run {run_id} to start after", run_id=run_id,
                    hint="If it was deleted, start after its record (RunMetadata) instead of its id.",
                )
        if after is None:
            return None
        return after.created_at.to_bytes(8, "big") + after.run_id.encode()

    def _candidates(self, view: View, wanted: _Wanted, after: bytes | None) -> Iterator[bytes]:
        """Places from the narrowest index that a condition allows, in order of creation."""
        if wanted.parent is not None:
            return self._places(view, TypeTag.RUN_BY_PARENT, wanted.parent, wanted, after)
        if wanted.tags:
            return self._places(view, TypeTag.RUN_BY_TAG, wanted.tags[0], wanted, after)
        by_status = [
            self._places(view, TypeTag.RUN_BY_STATUS, status.value, wanted, after)
            for status in RunStatus if wanted.status in (None, status)
        ]
        return heapq.merge(*by_status, reverse=wanted.reverse)

    def _places(
        self, view: View, tag: TypeTag, name: str, wanted: _Wanted, after: bytes | None
    ) -> Iterator[bytes]:
        """Time of creation and id of the index entries under a name, as far as they are asked for."""
        head, end = _under(self._namespace, tag, name)
        start = head + (wanted.created_after or 0).to_bytes(8, "big")
        if wanted.created_before is not None:
            end = head + wanted.created_before.to_bytes(8, "big")
        start, end = past(start, end, None if after is None else head + after, wanted.reverse)
        for key, _ in _in_parts(view, start, end, wanted):
            yield key[len(head) :]

    def list_runs(
        self, *, limit: int | None = None, start_after: str | OfRun | RunMetadata | None = None,
        reverse: bool = False, include_archived: bool = False, include_uncreated: bool = False,
    ) -> builtins.list[str]:
        """Ids of all runs in byte order: those of what `query_runs` finds. Cost: about 5 µs a run.

        `start_after` continues after a run, or its id (before it, if `reverse`).
        With `include_uncreated` those too that hold data and were never
        created; a run that is being imported is one of these.
        """
        wanted = self._query(None, {
            "limit": limit, "start_after": start_after, "reverse": reverse,
            "include_archived": include_archived,
        })
        after = wanted.after.run_id if isinstance(wanted.after, RunMetadata) else wanted.after
        with self._view.moment() as view:
            found = self._created(view, wanted, after)
            if include_uncreated:
                found = heapq.merge(found, self._uncreated(view, wanted, after), reverse=bool(reverse))
            return [*islice(found, _stop(wanted))]

    def _created(self, view: View, wanted: _Wanted, after: str | None) -> Iterator[str]:
        head, end = range_of(self._namespace, TypeTag.RUN)
        start, end = past(head, end, None if after is None else head + after.encode(), wanted.reverse)
        for key, record in _in_parts(view, start, end, wanted):
            run = rules.unpack(text_of(key[len(head) :]), payload_of(record))
            if _matches(run, wanted):
                yield run.run_id

    def _uncreated(self, view: View, wanted: _Wanted, after: str | None) -> Iterator[str]:
        """Ids of the runs that hold data and have no record: one look into the store for each with data."""
        head = self._namespace + b"/"
        # Written like keys, so that a transaction can note them. A `0` comes after `/`.
        start, end = head + b"\0\1", self._namespace + b"0\0\1"
        name = None if after is None else head + after.encode()
        while True:
            if name is not None and wanted.reverse:
                end = name + b"\0\0"
            elif name is not None:
                start = name + b"\0\xff"
            item = view.scan(start, end, limit=1, reverse=wanted.reverse)
            if not item:
                return
            name = item[0][0].partition(b"\0")[0]
            run_id = text_of(name[len(head) :])
            if not name.endswith(b"@") and self._get(view, run_id) is None:  # what runs share is no run
                yield run_id

    def get_child_runs(
        self, run_id: str | OfRun | None = None, *, limit: int | None = None,
        start_after: str | OfRun | RunMetadata | None = None, reverse: bool = False,
    ) -> builtins.list[RunMetadata]:
        """The runs that were created with this run as their parent, archived ones too. See `query_runs`."""
        parent = self._own() if run_id is None else self._id_of(run_id)
        return self.query_runs(
            parent_run=parent, limit=limit, start_after=start_after, reverse=reverse, include_archived=True
        )

    def get_stats(self) -> RunStats:
        """How many runs there are, by status. Cost: about 0.3 µs a run."""
        with self._view.moment() as view:
            counts = {
                status: view.count(*_under(self._namespace, TypeTag.RUN_BY_STATUS, status.value))
                for status in RunStatus
            }
        return RunStats(sum(counts.values()), counts)


def _under(namespace: bytes, tag: TypeTag, name: str) -> tuple[bytes, bytes]:
    head = b"%b\0%c%b\0" % (namespace, tag, name.encode())
    return head, head + b"\xff" * _PLACE_BYTES


def _stop(wanted: _Wanted) -> int | None:
    return None if wanted.limit is None else min(wanted.limit, sys.maxsize)


def _in_parts(view: View, start: bytes, end: bytes, wanted: _Wanted) -> Iterator[Item]:
    """A range, read no further than it is asked for and some."""
    size = CHUNK if wanted.limit is None else min(wanted.limit, CHUNK)
    while page := view.scan(start, end, limit=size, reverse=bool(wanted.reverse)):
        yield from page
        start, end = past(start, end, page[-1][0], wanted.reverse)
        if len(page) < size:
            return
        size = min(2 * size, CHUNK)


def _check_time(value: int | None, argument: str) -> int | None:
    if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
        problem = f"{argument} must be an int of microseconds, not {shorten(value)}"
        raise InvalidInputError(problem, argument=argument)
    return value


def _matches(run: RunMetadata, wanted: _Wanted) -> bool:
    if run.status is RunStatus.ARCHIVED and not wanted.include_archived and wanted.status is None:
        return False
    return (
        (wanted.status is None or run.status == wanted.status)
        and set(wanted.tags) <= set(run.tags)
        and (wanted.parent is None or run.parent_run == wanted.parent)
    )
