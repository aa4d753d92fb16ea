"""The runs of a namespace: which there are, and which match some conditions.

A run is there if it has a record, or data, or both; one whose import is not
finished is not there yet.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from typing import Final

from inmem.errors import SnapshotTooOldError
from inmem.keys import Namespace, TypeTag, encode_label, fence_of, range_of
from inmem.primitives import import_mark
from inmem.primitives.runs.rules import RunMetadata, RunStatus, run_key
from inmem.reading.moment import Moment, readable
from inmem.reading.run import StoredRun, metadata_of
from inmem.reading.source import Source
from inmem.storage.environment import Table
from inmem.values import text_of

_PAGE: Final = 200  # runs of one moment
_PLACE_BYTES: Final = 8 + 65  # time of creation, and more than any run id


class RunFinder:
    """Runs that match some conditions, from the narrowest index that these allow.

    `since` and `until` are microseconds and about when a run was created.
    """

    def __init__(
        self, source: Source, namespace: Namespace, *, status: RunStatus | None = None,
        tags: tuple[str, ...] = (), parent: str | None = None, since: int = 0, until: int | None = None,
        archived: bool = False,
    ) -> None:
        self._source = source
        self._namespace = namespace
        self._status = status
        self._tags = frozenset(tags)
        self._parent = parent
        self._archived = archived or status is RunStatus.ARCHIVED
        self._since = since.to_bytes(8, "big")
        self._until = b"\xff" * _PLACE_BYTES if until is None else until.to_bytes(8, "big")
        if parent is not None:
            names = [(TypeTag.RUN_BY_PARENT, parent.encode())]
        elif tags:
            names = [(TypeTag.RUN_BY_TAG, encode_label(tags[0], "tag"))]
        else:
            names = [(TypeTag.RUN_BY_STATUS, s.value.encode()) for s in RunStatus if status in (None, s)]
        self._heads = [b"%b\0%c%b\0" % (namespace.prefix(), tag, name) for tag, name in names]

    def find(
        self, *, oldest_first: bool = False, start_after: RunMetadata | None = None
    ) -> Iterator[RunMetadata]:
        """All that match, in order of creation; a page at a time, each of one moment.

        A run keeps its place whatever becomes of it, so none is missed or
        found twice because its status changes between two pages.
        """
        first, last = self._since, self._until
        if start_after is not None:
            place = start_after.created_at.to_bytes(8, "big") + start_after.run_id.encode()
            first, last = (max(first, place + b"\0"), last) if oldest_first else (first, min(last, place))
        while first < last:
            try:
                with self._source.moment() as moment:
                    places = list(itertools.islice(self._places(moment, first, last, oldest_first), _PAGE))
                    found = [self._run(moment, place[8:]) for place in places]
            except SnapshotTooOldError:
                continue
            yield from (run for run in found if run is not None and self._matches(run))
            if len(places) < _PAGE:
                return
            first, last = (places[-1] + b"\0", last) if oldest_first else (first, places[-1])

    def _places(self, moment: Moment, first: bytes, last: bytes, oldest_first: bool) -> Iterator[bytes]:
        def under(head: bytes) -> Iterator[bytes]:
            for key, _ in moment.walk(head + first, head + last, reverse=not oldest_first):
                yield key[len(head) :]

        return heapq.merge(*map(under, self._heads), reverse=not oldest_first)

    def _run(self, moment: Moment, run_id: bytes) -> RunMetadata | None:
        with readable(f"run {run_id.decode(errors='backslashreplace')}"):
            return metadata_of(moment, self._namespace, run_id.decode())

    def _matches(self, run: RunMetadata) -> bool:
        return (
            (self._status is None or run.status is self._status)
            and (self._archived or run.status is not RunStatus.ARCHIVED)
            and self._tags <= set(run.tags)
            and (self._parent is None or run.parent_run == self._parent)
        )


def run_ids(source: Source, namespace: Namespace) -> Iterator[str]:
    """The runs that have a record or data, in order. Cost: about 5 µs a run, whatever it stores."""
    run_id: str | None = ""
    while True:
        with source.moment() as moment:
            run_id = run_after(moment, namespace, run_id or "")
        if run_id is None:
            return
        yield run_id


def uncreated_runs(source: Source, namespace: Namespace, among: int | None = None) -> Iterator[str]:
    """The runs that hold data and have no record, in order; those that are being imported are none yet.

    With `among` only so many runs are looked at. Cost: about 10 µs a run.
    """
    importing: list[str] | None = None
    for run_id in itertools.islice(run_ids(source, namespace), among):
        if metadata_of(source, namespace, run_id) is None:
            if importing is None:
                with source.moment() as moment:
                    importing = unfinished(moment, namespace)
            if run_id not in importing:
                yield run_id


def run_after(moment: Moment, namespace: Namespace, run_id: str) -> str | None:
    """The first run after one, of all that have a record or data; None at the end. Cost: about 5 µs."""
    found = []
    start, end = range_of(namespace.prefix(), TypeTag.RUN)
    record = moment.first(start + run_id.encode() + b"\0", end)
    if record is not None:
        found.append(text_of(record[0][len(start) :]))
    head = namespace.prefix() + b"/"
    at = head + run_id.encode() + b"\1" if run_id else head
    while True:
        entry = next(moment.records(at, namespace.prefix() + b"0"), None)  # `0` comes after `/`
        if entry is None:
            break
        name = entry[0][: entry[0].index(0)]
        if not name.endswith(b"@"):  # what runs share is no run
            found.append(text_of(name[len(head) :]))
            break
        at = name + b"\1"
    return min(found, default=None)


class Unfinished(Exception):
    """A run is being imported."""


def exists(moment: Moment, namespace: Namespace, run_id: str) -> bool:
    """Whether there is a run, with a record or without.

    Raises:
        Unfinished: it is being imported. Such a run has no record yet.
    """
    if moment.get(run_key(namespace.prefix(), run_id)) is not None:
        return True
    if StoredRun(moment, namespace, run_id).is_empty():
        return False
    if run_id in unfinished(moment, namespace):
        raise Unfinished
    return True


def is_whole(moment: Moment, namespace: Namespace, run_id: str) -> bool:
    """Whether there is a run; one that is being imported is none yet."""
    try:
        return exists(moment, namespace, run_id)
    except Unfinished:
        return False


def is_deleted(moment: Moment, run: StoredRun) -> bool:
    """Whether a run was deleted. Cost: linear in the runs that ever were."""
    digest, fences = fence_of(run.prefix), moment.rows(Table.FENCES)
    return any(bytes(fence) == digest and not import_mark.is_mark(value) for fence, value in fences)


def unfinished(moment: Moment, namespace: Namespace) -> list[str]:
    """The runs whose import is not finished, in order. Cost: linear in the runs that were ever deleted."""
    head = namespace.prefix() + b"/"
    prefixes = (import_mark.unpack(v).prefix for _, v in moment.rows(Table.FENCES) if import_mark.is_mark(v))
    return sorted(text_of(prefix[len(head) :]) for prefix in prefixes if prefix.startswith(head))
