"""RunIndex: the life of runs, and finding them.

Invariant: a status changes only as the table in `model.run` allows, decided
in the writer on the status of that moment; records and indices of runs live
under the namespace, apart from what the runs store.
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from inmem import values
from inmem.client.transaction import Reader, Transaction
from inmem.errors import (
    InvalidInputError,
    InvalidRunIdError,
    InvariantError,
    RunExistsError,
    RunNotFoundError,
)
from inmem.keys import RunId, TypeTag, check_run_id, range_of, shorten
from inmem.model import run as rules
from inmem.model.run import DeletedRun, RunMetadata, RunStats, RunStatus
from inmem.primitives._common import Autocommit, Host, check_limit, check_metadata, check_tags
from inmem.record import pack, payload_of

_EMPTY: Final = values.encode({})
_PLACE_BYTES: Final = 8 + 65  # time of creation, and more than any run id


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
    """Reads of a namespace's runs, through any kind of reader; `run_id` is the scope's own."""

    __slots__ = ("_namespace", "_reader", "_run_id")

    def __init__(self, reader: Reader, namespace: bytes, run_id: str) -> None:
        self._reader = reader
        self._namespace = namespace
        self._run_id = run_id

    def _own(self) -> str:
        return check_run_id(self._run_id)  # a shared scope is no run

    def get_run(self, run_id: str | None = None) -> RunMetadata | None:
        """A run's record; without an id this scope's. See `RunIndex.get_run`."""
        return self._get(self._reader, self._own() if run_id is None else check_run_id(run_id))

    def _get(self, reader: Reader, run_id: str) -> RunMetadata | None:
        record = reader.read(rules.run_key(self._namespace, run_id))
        return None if record is None else rules.unpack(run_id, payload_of(record))

    def query_runs(self, query: RunQuery | None = None, **conditions: Any) -> builtins.list[RunMetadata]:
        """Runs that match. See `RunIndex.query_runs`."""
        wanted = _query(query, conditions)
        found: builtins.list[RunMetadata] = []
        if wanted.limit == 0:
            return found
        with self._reader.view() as view:
            candidates = self._candidates(view, wanted)
            for run_id in reversed(candidates) if wanted.reverse else candidates:
                run = self._get(view, run_id)
                if run is not None and _matches(run, wanted):
                    found.append(run)
                    if len(found) == wanted.limit:
                        break
        return found

    def _candidates(self, view: Reader, wanted: RunQuery) -> builtins.list[str]:
        """Ids from the narrowest index that a condition allows, in order of creation."""
        if wanted.parent_run is not None:
            return self._by(view, TypeTag.RUN_BY_PARENT, wanted.parent_run, wanted)
        if wanted.tags:
            return self._by(view, TypeTag.RUN_BY_TAG, wanted.tags[0], wanted)
        statuses = [s for s in RunStatus if wanted.status in (None, s)]
        places = [p for s in statuses for p in self._places(view, TypeTag.RUN_BY_STATUS, s.value, wanted)]
        return [place[8:].decode() for place in sorted(places)]

    def _by(self, view: Reader, tag: TypeTag, name: str, wanted: RunQuery) -> builtins.list[str]:
        return [place[8:].decode() for place in self._places(view, tag, name, wanted)]

    def _places(self, view: Reader, tag: TypeTag, name: str, wanted: RunQuery) -> builtins.list[bytes]:
        """Time of creation and id of the index entries under a name."""
        head = b"%b\0%c%b\0" % (self._namespace, tag, name.encode())
        start, end = head, head + b"\xff" * _PLACE_BYTES
        if wanted.created_after is not None:
            start = head + wanted.created_after.to_bytes(8, "big")
        if wanted.created_before is not None:
            end = head + wanted.created_before.to_bytes(8, "big")
        return [key[len(head) :] for key, _ in view.scan(start, end)] if start < end else []

    def list_runs(
        self, *, limit: int | None = None, reverse: bool = False, include_archived: bool = False
    ) -> builtins.list[str]:
        """Ids of the runs. See `RunIndex.list_runs`."""
        check_limit(limit)
        start, end = range_of(self._namespace, TypeTag.RUN)
        skip = len(self._namespace) + 2
        found = self._reader.scan(start, end, reverse=bool(reverse))
        return [
            run_id for key, record in found
            if (run := rules.unpack(run_id := key[skip:].decode(), payload_of(record)))
            and (include_archived or run.status is not RunStatus.ARCHIVED)
        ][:limit]

    def get_child_runs(
        self, run_id: str | None = None, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[RunMetadata]:
        """The runs that name a run as their parent. See `RunIndex.get_child_runs`."""
        parent = self._own() if run_id is None else check_run_id(run_id)
        return self.query_runs(parent_run=parent, limit=limit, reverse=reverse, include_archived=True)

    def get_stats(self) -> RunStats:
        """How many runs there are. See `RunIndex.get_stats`."""
        with self._reader.view() as view:
            counts = {
                status: view.count(*_under(self._namespace, TypeTag.RUN_BY_STATUS, status.value))
                for status in RunStatus
            }
        return RunStats(sum(counts.values()), counts)


class RunChanges(RunReads, ABC):
    """What can be done to this scope's run; when it happens is for the subclass."""

    __slots__ = ()

    @abstractmethod
    def _update(
        self, *, status: RunStatus | None = None, error: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        """Change status, error, tags (to add) and metadata (to merge)."""

    def update_status(self, status: RunStatus, *, error: str | None = None) -> RunMetadata:
        """Change this run's status. See `RunIndex.update_status`."""
        return self._update(status=_status(status), error=_error(error))

    def complete_run(self) -> RunMetadata:
        """Active to completed."""
        return self._update(status=RunStatus.COMPLETED)

    def fail_run(self, error: str) -> RunMetadata:
        """Active to failed, with what went wrong."""
        return self._update(status=RunStatus.FAILED, error=_required_error(error))

    def cancel_run(self) -> RunMetadata:
        """Active or paused to cancelled."""
        return self._update(status=RunStatus.CANCELLED)

    def pause_run(self) -> RunMetadata:
        """Active to paused."""
        return self._update(status=RunStatus.PAUSED)

    def resume_run(self) -> RunMetadata:
        """Paused to active."""
        return self._update(status=RunStatus.ACTIVE)

    def archive_run(self) -> RunMetadata:
        """To archived: hidden from queries, its data readable."""
        return self._update(status=RunStatus.ARCHIVED)

    def add_tags(self, tags: Sequence[str]) -> RunMetadata:
        """Add tags to this run. See `RunIndex.add_tags`."""
        return self._update(tags=check_tags(tags))

    def update_metadata(self, metadata: Mapping[str, Any]) -> RunMetadata:
        """Merge metadata into this run's. See `RunIndex.update_metadata`."""
        return self._update(metadata=_required_metadata(metadata))


class ScopedRuns(RunChanges):
    """Runs outside a transaction: each change is a commit of its own, on this scope's run."""

    __slots__ = ("_commit",)

    def __init__(self, reader: Reader, commit: Autocommit, namespace: bytes, run_id: str) -> None:
        super().__init__(reader, namespace, run_id)
        self._commit = commit

    def create_run(
        self, *, parent_run: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        """Create this run. See `RunIndex.create_run`."""
        run_id, parent, labels, described = _creation(self._own(), parent_run, tags, metadata)
        run: RunMetadata = self._commit.call(
            "run.create", self._namespace, run_id, parent or "", labels, values.encode(described, "metadata"),
            convert=lambda now_us: rules.created(run_id, parent, tuple(labels), described, now_us),
        )
        return run

    def delete_run(self) -> DeletedRun:
        """Remove this run for good. See `RunIndex.delete_run`."""
        run_id = self._own()
        deleted: DeletedRun = self._commit.call(
            "run.delete", self._namespace, run_id, convert=lambda counts: DeletedRun(run_id, *counts)
        )
        return deleted

    def _update(
        self, *, status: RunStatus | None = None, error: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        run_id = self._own()
        arguments = _change(self._namespace, run_id, status, error, tags, metadata)
        run: RunMetadata = self._commit.call(
            "run.update", *arguments, convert=lambda payload: rules.unpack(run_id, payload)
        )
        return run


class TransactionRuns(RunChanges):
    """Runs inside a transaction: changes wait for the commit."""

    __slots__ = ("_txn",)

    def __init__(self, txn: Transaction, namespace: bytes, run_id: str) -> None:
        super().__init__(txn, namespace, run_id)
        self._txn = txn

    def create_run(
        self, *, parent_run: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        """Create this run at commit. See `RunIndex.create_run`."""
        run_id, parent, labels, described = _creation(self._own(), parent_run, tags, metadata)
        if self._get(self._txn, run_id) is not None:
            raise RunExistsError(f"run {run_id} exists", run_id=run_id)
        if parent is not None and self._get(self._txn, parent) is None:
            raise RunNotFoundError(f"there is no run {parent} to be the parent", run_id=parent)
        encoded = values.encode(described, "metadata")
        self._txn.call("run.create", [self._namespace, run_id, parent or "", labels, encoded], _ignore)
        run = rules.created(run_id, parent, tuple(labels), described, self._txn.now_us())
        self._show(None, run)
        return run

    def delete_run(self) -> DeletedRun:
        """Not possible here: a deletion cannot be taken back, and is atomic by itself.

        Raises:
            InvariantError: always.
        """
        raise InvariantError(
            "delete_run cannot be part of a transaction", hint="Call db.runs.delete_run outside of it."
        )

    def _update(
        self, *, status: RunStatus | None = None, error: str | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> RunMetadata:
        run_id = self._own()
        old = self._get(self._txn, run_id)
        if old is None:
            raise RunNotFoundError(f"there is no run {run_id}", run_id=run_id)
        arguments = _change(self._namespace, run_id, status, error, tags, metadata)
        new = rules.changed(
            old, self._txn.now_us(), status=status, error=error, tags=tuple(tags),
            metadata=None if metadata is None else dict(metadata),
        )
        self._show(old, new)
        self._txn.call("run.update", arguments, _ignore)
        return new

    def _show(self, old: RunMetadata | None, new: RunMetadata) -> None:
        run_id, txn = new.run_id.encode(), self._txn
        payload = rules.pack(new)  # first: what is merged may have become too big
        if old is not None:
            for index_key in rules.index_keys(self._namespace, run_id, rules.pack(old)):
                txn.show(index_key, None)
        for index_key in rules.index_keys(self._namespace, run_id, payload):
            txn.show(index_key, pack(0, 0, 0, b""))
        txn.show(rules.run_key(self._namespace, new.run_id), pack(0, 0, 0, payload))


class RunIndex:
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

    __slots__ = ("_database",)

    def __init__(self, database: Host) -> None:
        self._database = database

    def __repr__(self) -> str:
        return f"RunIndex({self._database!r})"

    def _scope(self, run_id: str) -> ScopedRuns:
        scope: ScopedRuns = self._database.run(run_id).runs
        return scope

    def _any(self) -> ScopedRuns:
        return self._scope("-")  # for what concerns all runs, whose scope asks does not matter

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
        scope = self._scope(RunId.new() if run_id is None else run_id)
        return scope.create_run(parent_run=parent_run, tags=tags, metadata=metadata)

    def create_run_with_options(self, options: CreateRunOptions) -> RunMetadata:
        """Like `create_run`, with all arguments in one object."""
        if not isinstance(options, CreateRunOptions):
            raise InvalidInputError("options must be CreateRunOptions", argument="options")
        return self.create_run(
            run_id=options.run_id, parent_run=options.parent_run, tags=options.tags, metadata=options.metadata
        )

    def get_run(self, run_id: str) -> RunMetadata | None:
        """A run's record, None if it was never created. Cost: about 5 µs."""
        return self._scope(run_id).get_run()

    def update_status(self, run_id: str, status: RunStatus, *, error: str | None = None) -> RunMetadata:
        """Change a run's status and return its record. Cost: one round trip.

        Raises:
            InvalidTransitionError: the table does not allow it; nothing is changed.
            RunNotFoundError: the run was never created.
        """
        return self._scope(run_id).update_status(status, error=error)

    def complete_run(self, run_id: str) -> RunMetadata:
        """Active to completed; errors of `update_status`."""
        return self._scope(run_id).complete_run()

    def fail_run(self, run_id: str, error: str) -> RunMetadata:
        """Active to failed, with what went wrong; errors of `update_status`."""
        return self._scope(run_id).fail_run(error)

    def cancel_run(self, run_id: str) -> RunMetadata:
        """Active or paused to cancelled; errors of `update_status`."""
        return self._scope(run_id).cancel_run()

    def pause_run(self, run_id: str) -> RunMetadata:
        """Active to paused; errors of `update_status`."""
        return self._scope(run_id).pause_run()

    def resume_run(self, run_id: str) -> RunMetadata:
        """Paused to active; errors of `update_status`."""
        return self._scope(run_id).resume_run()

    def archive_run(self, run_id: str) -> RunMetadata:
        """To archived, a soft delete: hidden from queries by default, data readable, no way back."""
        return self._scope(run_id).archive_run()

    def add_tags(self, run_id: str, tags: Sequence[str]) -> RunMetadata:
        """Add tags; those that the run has already stay as they are."""
        return self._scope(run_id).add_tags(tags)

    def update_metadata(self, run_id: str, metadata: Mapping[str, Any]) -> RunMetadata:
        """Merge a mapping into the run's metadata, key by key."""
        return self._scope(run_id).update_metadata(metadata)

    def query_runs(self, query: RunQuery | None = None, **conditions: Any) -> builtins.list[RunMetadata]:
        """Runs that match every condition, in order of creation.

        Takes a `RunQuery` or its fields as keywords. Archived runs are left
        out unless `include_archived` or `status=ARCHIVED` is given. Cost:
        linear in the runs of the narrowest condition (parent, first tag,
        status), not in their data.
        """
        return self._any().query_runs(query, **conditions)

    def list_runs(
        self, *, limit: int | None = None, reverse: bool = False, include_archived: bool = False
    ) -> builtins.list[str]:
        """Ids of all runs in byte order. Cost: about 5 µs a run, whatever they store."""
        return self._any().list_runs(limit=limit, reverse=reverse, include_archived=include_archived)

    def get_child_runs(
        self, run_id: str, *, limit: int | None = None, reverse: bool = False
    ) -> builtins.list[RunMetadata]:
        """The runs that were created with this run as their parent, archived ones too."""
        return self._scope(run_id).get_child_runs(limit=limit, reverse=reverse)

    def delete_run(self, run_id: str) -> DeletedRun:
        """Remove a run for good with all that it stores; how much that was.

        One atomic commit over all primitives and indices, which cannot be
        taken back: the id is fenced, and whoever writes into it later gets
        RunDeletedError. Works on runs that were never created too. Cost:
        about 1 µs a record, during which other commits wait.

        Raises:
            RunNotFoundError: no record, and nothing stored.
            RunDeletedError: it was deleted before.
        """
        return self._scope(run_id).delete_run()

    def get_stats(self) -> RunStats:
        """How many runs there are, by status. Cost: about 0.3 µs a run."""
        return self._any().get_stats()


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


def _change(
    namespace: bytes, run_id: str, status: RunStatus | None, error: str | None, tags: Sequence[str],
    metadata: Mapping[str, Any] | None,
) -> builtins.list[Any]:
    """The arguments of the procedure."""
    encoded = _EMPTY if metadata is None else values.encode(dict(metadata), "metadata")
    return [namespace, str(run_id), status.value if status else "", error, list(tags), encoded]


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


def _ignore(_: Any) -> None:
    """The record was known before."""


