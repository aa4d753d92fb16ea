"""RunIndex: the life of runs, and finding them.

Invariant: a status changes only as the table in `rules` allows, decided
in the writer on the status of that moment; records and indices of runs live
under the namespace, apart from what the runs store.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from inmem import values
from inmem.engines.base import Sink, View
from inmem.errors import (
    ConflictError,
    InvalidInputError,
    InvalidRunIdError,
    LimitError,
    SnapshotTooOldError,
)
from inmem.keys import RunId, TypeTag, check_run_id, range_of, shorten
from inmem.primitives._byrun import ByRun, by_run
from inmem.primitives._common import check_limit, check_metadata, check_tags
from inmem.primitives.runs import rules
from inmem.primitives.runs.rules import DeletedRun, RunMetadata, RunStats, RunStatus
from inmem.record import expires_at, payload_of

_EMPTY: Final = values.encode({})
_PLACE_BYTES: Final = 8 + 65  # time of creation, and more than any run id
_COUNTS: Final = 4  # attempts at counting a large run that others write into; then the writer counts it
_PAGE_RECORDS: Final = 1024
_PAGE_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CreateRunOptions:
    """What `create_run_with_options` takes; see `RunIndex.create_run`."""

    run_id: str | None = None
    parent_run: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = field(default=None)


@dataclass(frozen=True, slots=True)
class RunQuery:
    """What `query_runs` looks for: runs that match every condition given.

    `created_after` and `created_before` are microseconds, the range half-open.
    """

    status: RunStatus | None = None
    tags: Sequence[str] = ()
    created_after: int | None = None
    created_before: int | None = None
    parent_run: str | None = None
    limit: int | None = None
    reverse: bool = False
    include_archived: bool = False


class RunReads:
    """Reads of a namespace's runs; `run_id` is the scope's own."""

    __slots__ = ("_namespace", "_run_id", "_view")

    def __init__(self, view: View, namespace: bytes, run_id: str) -> None:
        self._view = view
        self._namespace = namespace
        self._run_id = run_id

    def _own(self) -> str:
        return check_run_id(self._run_id)  # a shared scope is no run

    def get_run(self, run_id: str | None = None) -> RunMetadata | None:
        """A run's record, without an id this scope's; None if it was never created. Cost: about 5 µs."""
        return self._get(self._view, self._own() if run_id is None else check_run_id(run_id))

    def _get(self, view: View, run_id: str) -> RunMetadata | None:
        record = view.read(rules.run_key(self._namespace, run_id))
        return None if record is None else rules.unpack(run_id, payload_of(record))

    def query_runs(self, query: RunQuery | None = None, **conditions: Any) -> builtins.list[RunMetadata]:
        """Runs that match every condition, in order of creation.

        Takes a `RunQuery` or its fields as keywords. Archived runs are left
        out unless `include_archived` or `status=ARCHIVED` is given. Cost:
        linear in the runs of the narrowest condition (parent, first tag,
        status), not in their data.
        """
        wanted = _query(query, conditions)
        found: builtins.list[RunMetadata] = []
        if wanted.limit == 0:
            return found
        with self._view.moment() as view:
            candidates = self._candidates(view, wanted)
            for run_id in reversed(candidates) if wanted.reverse else candidates:
                run = self._get(view, run_id)
                if run is not None and _matches(run, wanted):
                    found.append(run)
                    if len(found) == wanted.limit:
                        break
        return found

    def _candidates(self, view: View, wanted: RunQuery) -> builtins.list[str]:
        """Ids from the narrowest index that a condition allows, in order of creation."""
        if wanted.parent_run is not None:
            return self._by(view, TypeTag.RUN_BY_PARENT, wanted.parent_run, wanted)
        if wanted.tags:
            return self._by(view, TypeTag.RUN_BY_TAG, wanted.tags[0], wanted)
        statuses = [s for s in RunStatus if wanted.status in (None, s)]
        places = [p for s in statuses for p in self._places(view, TypeTag.RUN_BY_STATUS, s.value, wanted)]
        return [place[8:].decode() for place in sorted(places)]

    def _by(self, view: View, tag: TypeTag, name: str, wanted: RunQuery) -> builtins.list[str]:
        return [place[8:].decode() for place in self._places(view, tag, name, wanted)]

    def _places(self, view: View, tag: TypeTag, name: str, wanted: RunQuery) -> builtins.list[bytes]:
        """Time of creation and id of the index entries under a name."""
        head = b"%b\0%c%b\0" % (self._namespace, tag, name.encode())
        start, end = head, head + b"\xff" * _PLACE_BYTES
        if wanted.created_after is not None:
            start = head + wanted.created_after.to_bytes(8, "big")
        if wanted.created_before is not None:
            end = head + wanted.created_before.to_bytes(8, "big")
        return [key[len(head) :] for key, _ in view.scan(start, end)] if start < end else []

    def list_runs(
        self, *, limit: int | None = None, reverse: bool = False, include_archived: bool = False,
        include_uncreated: bool = False,
    ) -> builtins.list[str]:
        """Ids of all runs in byte order. Cost: about 5 µs a run, whatever they store.

        With `include_uncreated` those too that hold data and were never
        created; a run that is being imported is one of these.
        """
        check_limit(limit)
        start, end = range_of(self._namespace, TypeTag.RUN)
        skip = len(self._namespace) + 2
        with self._view.moment() as view:
            statuses = {
                run_id: rules.unpack(run_id, payload_of(record)).status
                for run_id, record in ((k[skip:].decode(), r) for k, r in view.scan(start, end))
            }
            used = self._used(view) if include_uncreated else []
        found = [r for r, status in statuses.items() if include_archived or status != RunStatus.ARCHIVED]
        found += [run_id for run_id in used if run_id not in statuses]
        return sorted(found, reverse=bool(reverse))[:limit]

    def _used(self, view: View) -> builtins.list[str]:
        """Ids of the runs that hold data: one look into the store for each."""
        head = self._namespace + b"/"
        # Written like keys, so that a transaction can note them. A `0` comes after `/`.
        at, end = head + b"\0\1", self._namespace + b"0\0\1"
        found = []
        while item := view.scan(at, end, limit=1):
            name = item[0][0].partition(b"\0")[0]
            if not name.endswith(b"@"):  # what runs share is no run
                found.append(name[len(head) :].decode())
            at = name + b"\0\xff"
        return found

    def get_child_runs(
        self, run_id: str | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[RunMetadata]:
        """The runs that were created with this run as their parent, archived ones too."""
        parent = self._own() if run_id is None else check_run_id(run_id)
        return self.query_runs(parent_run=parent, limit=limit, reverse=reverse, include_archived=True)

    def get_stats(self) -> RunStats:
        """How many runs there are, by status. Cost: about 0.3 µs a run."""
        with self._view.moment() as view:
            counts = {
                status: view.count(*_under(self._namespace, TypeTag.RUN_BY_STATUS, status.value))
                for status in RunStatus
            }
        return RunStats(sum(counts.values()), counts)


class Runs(RunReads):
    """The run of a scope, and finding others."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, namespace: bytes, run_id: str) -> None:
        super().__init__(view, namespace, run_id)
        self._sink = sink

    def create_run(
        self, *, parent_run: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        """Create a run, active, and return its record. Cost: one round trip.

        `metadata` is a mapping with `str` keys.

        Raises:
            RunExistsError: the id is taken.
            RunNotFoundError: there is no such parent.
            RunDeletedError: a run of this id was deleted: the id is never used again.
            InvalidInputError: an argument is wrong.
        """
        run_id, parent, labels, described = _creation(self._own(), parent_run, tags, metadata)
        arguments = [self._namespace, run_id, parent or "", labels, values.encode(described, "metadata")]

        def created(now_us: int) -> RunMetadata:
            return rules.created(run_id, parent, tuple(labels), described, now_us)

        run: RunMetadata = self._sink.ask("run.create", arguments, created)
        return run

    def update_status(self, status: RunStatus, *, error: str | None = None) -> RunMetadata:
        """Change a run's status and return its record. Cost: one round trip.

        Raises:
            InvalidTransitionError: the table does not allow it; nothing is changed.
            RunNotFoundError: the run was never created.
        """
        return self._update(status=_status(status), error=_error(error))

    def complete_run(self) -> RunMetadata:
        """Active to completed; errors of `update_status`."""
        return self._update(status=RunStatus.COMPLETED)

    def fail_run(self, error: str) -> RunMetadata:
        """Active to failed, with what went wrong; errors of `update_status`."""
        return self._update(status=RunStatus.FAILED, error=_required_error(error))

    def cancel_run(self) -> RunMetadata:
        """Active or paused to cancelled; errors of `update_status`."""
        return self._update(status=RunStatus.CANCELLED)

    def pause_run(self) -> RunMetadata:
        """Active to paused; errors of `update_status`."""
        return self._update(status=RunStatus.PAUSED)

    def resume_run(self) -> RunMetadata:
        """Paused to active; errors of `update_status`."""
        return self._update(status=RunStatus.ACTIVE)

    def archive_run(self) -> RunMetadata:
        """To archived, a soft delete: hidden from queries by default, data readable, no way back."""
        return self._update(status=RunStatus.ARCHIVED)

    def add_tags(self, tags: Sequence[str]) -> RunMetadata:
        """Add tags; those that the run has already stay as they are."""
        return self._update(tags=check_tags(tags))

    def update_metadata(self, metadata: Mapping[str, Any]) -> RunMetadata:
        """Merge a mapping into the run's metadata, key by key."""
        return self._update(metadata=_required_metadata(metadata))

    def delete_run(self) -> DeletedRun:
        """Remove a run for good with all that it stores; how much that was.

        One atomic commit over all primitives and indices, which cannot be
        taken back: the id is fenced, and whoever writes into it later gets
        RunDeletedError. Works on runs that were never created too. Cost: 10 ms
        for 10,000 records. A larger run is counted here first, 1 µs a
        record, and its space comes back in the time after the commit, a
        million records in some seconds. Other commits wait 20 ms at most.

        Raises:
            RunNotFoundError: no record, and nothing stored.
            RunDeletedError: it was deleted before.
            InvariantError: called in a transaction, of which it cannot be a part.
        """
        run_id = self._own()

        def deleted(counts: builtins.list[Any]) -> DeletedRun:
            return DeletedRun(run_id, *counts)

        def delete(procedure: str, *given: Any) -> DeletedRun:
            found: DeletedRun = self._sink.ask(
                procedure, [self._namespace, run_id, *given], deleted, alone="delete_run"
            )
            return found

        given: builtins.list[Any] = []
        for _ in range(_COUNTS):
            try:
                return delete("run.remove", given)
            except (LimitError, ConflictError) as error:
                # Too much for the writer to count; or it was written to while it was counted here.
                if isinstance(error, LimitError) and error.what != rules.TO_COUNT:
                    raise
            try:
                given = self._count()
            except SnapshotTooOldError:
                break  # so large that it cannot be counted in one snapshot
        return delete("run.delete")

    def _count(self) -> builtins.list[Any]:
        """A version, the earliest expiry met or 0, and how many records each type tag has then."""
        start = self._namespace + b"/" + self._own().encode() + b"\0"
        tag_at, end = len(start), start[:-1] + b"\1"
        counts: dict[int, int] = {}
        earliest = 0
        with self._view.moment() as view:
            while page := view.scan(start, end, limit=_PAGE_RECORDS, max_bytes=_PAGE_BYTES):
                start = page[-1][0] + b"\0"
                for key, record in page:
                    counts[key[tag_at]] = counts.get(key[tag_at], 0) + 1
                    if expiry := expires_at(record):
                        earliest = min(earliest or expiry, expiry)
            return [view.version, earliest, builtins.list(counts.items())]

    def _update(
        self, *, status: RunStatus | None = None, error: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        """Change status, error, tags (to add) and metadata (to merge)."""
        run_id = self._own()
        encoded = _EMPTY if metadata is None else values.encode(dict(metadata), "metadata")
        arguments = [
            self._namespace, str(run_id), status.value if status else "", error, builtins.list(tags), encoded
        ]

        def changed(payload: bytes) -> RunMetadata:
            return rules.unpack(run_id, payload)

        run: RunMetadata = self._sink.ask("run.update", arguments, changed)
        return run


class RunIndex(ByRun[Runs]):
    """The runs of a namespace: creation, status, tags, queries, deletion.

    Primitives may be used in a run that was never created; creating it makes
    it findable and gives it a status.

    >>> import inmem
    >>> with inmem.open() as db:
    ...     run = db.runs.create_run(run_id="triage-7", tags=["nightly"])
    ...     run = db.runs.complete_run("triage-7")
    ...     [(r.run_id, str(r.status)) for r in db.runs.query_runs(tags=["nightly"])]
    [('triage-7', 'completed')]
    """

    __slots__ = ()

    KIND = "runs"

    def create_run(
        self, *, run_id: str | None = None, parent_run: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        """Create a run, active, and return its record. Cost: one round trip.

        Without a `run_id` a time-ordered one is made. `metadata` is a mapping
        with `str` keys.

        Raises:
            RunExistsError: the id is taken.
            RunNotFoundError: there is no such parent.
            RunDeletedError: a run of this id was deleted: the id is never used again.
            InvalidInputError: an argument is wrong.
        """
        runs = self._of(RunId.new() if run_id is None else run_id)
        return runs.create_run(parent_run=parent_run, tags=tags, metadata=metadata)

    def create_run_with_options(self, options: CreateRunOptions) -> RunMetadata:
        """Like `create_run`, with all arguments in one object."""
        if not isinstance(options, CreateRunOptions):
            raise InvalidInputError("options must be CreateRunOptions", argument="options")
        return self.create_run(
            run_id=options.run_id, parent_run=options.parent_run, tags=options.tags, metadata=options.metadata
        )

    update_status = by_run(Runs.update_status)
    complete_run = by_run(Runs.complete_run)
    fail_run = by_run(Runs.fail_run)
    cancel_run = by_run(Runs.cancel_run)
    pause_run = by_run(Runs.pause_run)
    resume_run = by_run(Runs.resume_run)
    archive_run = by_run(Runs.archive_run)
    add_tags = by_run(Runs.add_tags)
    update_metadata = by_run(Runs.update_metadata)
    delete_run = by_run(Runs.delete_run)

    def get_run(self, run_id: str) -> RunMetadata | None:
        """A run's record, None if it was never created. Cost: about 5 µs."""
        return self._of(run_id).get_run()

    def get_child_runs(
        self, run_id: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[RunMetadata]:
        """The runs that were created with this run as their parent, archived ones too."""
        return self._of(run_id).get_child_runs(limit=limit, reverse=reverse)

    def query_runs(self, query: RunQuery | None = None, **conditions: Any) -> builtins.list[RunMetadata]:
        """Runs that match every condition, in order of creation.

        Takes a `RunQuery` or its fields as keywords. Archived runs are left
        out unless `include_archived` or `status=ARCHIVED` is given. Cost:
        linear in the runs of the narrowest condition (parent, first tag,
        status), not in their data.
        """
        return self._any().query_runs(query, **conditions)

    def list_runs(
        self, *, limit: int | None = None, reverse: bool = False, include_archived: bool = False,
        include_uncreated: bool = False,
    ) -> builtins.list[str]:
        """Ids of all runs in byte order. Cost: about 5 µs a run, whatever they store.

        With `include_uncreated` those too that hold data and were never
        created; a run that is being imported is one of these.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     version = db.kv.put("used", "key", 1)
        ...     db.runs.list_runs(), db.runs.list_runs(include_uncreated=True)
        ([], ['used'])
        """
        return self._any().list_runs(
            limit=limit, reverse=reverse, include_archived=include_archived,
            include_uncreated=include_uncreated,
        )

    def get_stats(self) -> RunStats:
        """How many runs there are, by status. Cost: about 0.3 µs a run."""
        return self._any().get_stats()

    def _any(self) -> Runs:
        return self._of("-")  # the call concerns all runs: any run's facade will do


def _under(namespace: bytes, tag: TypeTag, name: str) -> tuple[bytes, bytes]:
    head = b"%b\0%c%b\0" % (namespace, tag, name.encode())
    return head, head + b"\xff" * _PLACE_BYTES


def _creation(
    run_id: str, parent_run: str | None, tags: Sequence[str], metadata: Mapping[str, Any] | None
) -> tuple[str, str | None, builtins.list[str], dict[str, Any]]:
    parent = None if parent_run is None else str(check_run_id(parent_run, "parent_run"))
    if parent == run_id:
        raise InvalidRunIdError("parent_run is the run itself", argument="parent_run")
    described = check_metadata(metadata)
    values.encode(described, "metadata")
    return str(run_id), parent, check_tags(tags), described


def _status(status: object) -> RunStatus:
    return rules.check_status(status, "status")


def _error(error: object) -> str | None:
    if error is None:
        return None
    if type(error) is not str:
        raise InvalidInputError(f"error must be a str, not {type(error).__name__}", argument="error")
    values.encode(error, "error")
    return error


def _required_error(error: object) -> str:
    checked = _error(error)
    if not checked:
        raise InvalidInputError("error must say what went wrong", argument="error")
    return checked


def _required_metadata(metadata: object) -> dict[str, Any]:
    if metadata is None:
        raise InvalidInputError("metadata must be a mapping with str keys", argument="metadata")
    return check_metadata(metadata)


def _query(query: RunQuery | None, conditions: dict[str, Any]) -> RunQuery:
    if query is not None and (conditions or not isinstance(query, RunQuery)):
        raise InvalidInputError("give a RunQuery or keywords, not both", argument="query")
    try:
        wanted = query or RunQuery(**conditions)
    except TypeError:
        unknown = sorted(set(conditions) - set(RunQuery.__slots__))
        raise InvalidInputError(f"there is no condition {unknown[0]!r}", argument=unknown[0]) from None
    check_limit(wanted.limit)
    wanted = replace(wanted, tags=tuple(check_tags(wanted.tags)))
    for name in ("created_after", "created_before"):
        value = getattr(wanted, name)
        if value is not None and (type(value) is not int or not 0 <= value < 1 << 63):
            raise InvalidInputError(
                f"{name} must be an int of microseconds, not {shorten(value)}", argument=name
            )
    if wanted.parent_run is not None:
        check_run_id(wanted.parent_run, "parent_run")
    if wanted.status is not None:
        _status(wanted.status)
    return wanted


def _matches(run: RunMetadata, wanted: RunQuery) -> bool:
    if run.status is RunStatus.ARCHIVED and not wanted.include_archived and wanted.status is None:
        return False
    return (
        (wanted.status is None or run.status == wanted.status)
        and set(wanted.tags) <= set(run.tags)
        and (wanted.parent_run is None or run.parent_run == wanted.parent_run)
    )
