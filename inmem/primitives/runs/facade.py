"""RunIndex: the life of runs, and finding them.

Invariant: a status changes only as the table in `rules` allows, decided
in the writer on the status of that moment; records and indices of runs live
under the namespace, apart from what the runs store.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
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
from inmem.keys import RunId
from inmem.primitives._common import check_flag, check_metadata, check_tags, encoded
from inmem.primitives.byrun import ByRun, Host, OfRun, by_run
from inmem.primitives.leases.shown import Lease
from inmem.primitives.runs import rules
from inmem.primitives.runs.owners import OWNER, check_older, failing, finding
from inmem.primitives.runs.pruning import TERMINAL as TERMINAL
from inmem.primitives.runs.pruning import check_ended, check_kept, pruning
from inmem.primitives.runs.reads import RunQuery, RunReads
from inmem.primitives.runs.rules import DeletedRun, RunMetadata, RunStats, RunStatus
from inmem.record import expires_at
from inmem.stepping import FacadeWaits, Steps

_EMPTY: Final = values.encode({})
_COUNTS: Final = 4  # attempts at counting a large run that others write into; then the writer counts it
_PAGE_RECORDS: Final = 1024
_PAGE_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class CreateRunOptions:
    """What `create_run_with_options` takes; see `RunIndex.create_run`."""

    run_id: str | OfRun | None = None
    parent_run: str | OfRun | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, Any] | None = field(default=None)
    exist_ok: bool = False


class Runs(RunReads):
    """The run of a scope, and finding others."""

    __slots__ = ("_sink",)

    def __init__(self, host: Host, view: View, sink: Sink, namespace: bytes, run_id: str) -> None:
        super().__init__(host, view, namespace, run_id)
        self._sink = sink

    def create_run(
        self, *, parent_run: str | OfRun | None = None, tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None, exist_ok: bool = False,
    ) -> RunMetadata:
        """Create a run, active, and return its record. Cost: one round trip.

        `metadata` is a mapping with `str` keys. With `exist_ok` a run that
        exists is left as it is, whatever else is given, and its record returned.

        Raises:
            RunExistsError: the id is taken.
            RunNotFoundError: there is no such parent.
            RunDeletedError: a run of this id was deleted: the id is never used again.
            InvalidInputError: an argument is wrong.
        """
        run_id = str(self._own())
        parent = None if parent_run is None else str(self._id_of(parent_run, "parent_run"))
        if parent == run_id:
            raise InvalidRunIdError("parent_run is the run itself", argument="parent_run")
        labels, described = check_tags(tags), check_metadata(metadata)
        packed = encoded(self._sink, described, "metadata")
        arguments = [self._namespace, run_id, parent or "", labels, packed]
        procedure = "run.ensure" if check_flag(exist_ok, "exist_ok") else "run.create"

        def created(result: int | bytes) -> RunMetadata:
            if isinstance(result, bytes):
                return rules.unpack(run_id, result)
            return rules.created(run_id, parent, tuple(labels), values.decode(packed), result)

        run: RunMetadata = self._sink.ask(procedure, arguments, created)
        return run

    def update_status(self, status: RunStatus, *, error: str | None = None) -> RunMetadata:
        """Change a run's status and return its record. Cost: one round trip.

        Raises:
            InvalidTransitionError: the table does not allow it; nothing is changed.
            RunNotFoundError: the run was never created.
        """
        return self._update(status=rules.check_status(status, "status"), error=_error(error))

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

        One atomic commit over all primitives and indices. It cannot be undone:
        the id is closed, and later writes to it get RunDeletedError. It works on
        runs that were never created, too. Cost: 10 ms for 10,000 records. A
        larger run is counted here first, 1 µs a record. Its space is freed in
        the time after the commit, a million records in some seconds. Other
        commits wait 20 ms at most.

        Raises:
            RunNotFoundError: no record, and nothing stored.
            RunDeletedError: it was deleted before.
            InvariantError: called in a transaction, of which it cannot be a part.
        """
        deleted: DeletedRun = self._sink.drive(self._deletion(self._own()))
        return deleted

    def _deletion(self, run_id: str) -> Steps[DeletedRun]:
        def deleted(counts: builtins.list[Any]) -> DeletedRun:
            return DeletedRun(run_id, *counts)

        def delete(procedure: str, *given: Any) -> Any:
            return self._sink.ask(procedure, [self._namespace, run_id, *given], deleted, alone="delete_run")

        given: builtins.list[Any] = []
        for _ in range(_COUNTS):
            try:
                removed: DeletedRun = yield delete("run.remove", given)
                return removed
            except (LimitError, ConflictError) as error:
                # Too much for the writer to count; or it was written to while it was counted here.
                if isinstance(error, LimitError) and error.what != rules.TO_COUNT:
                    raise
            try:
                given = self._count()
            except SnapshotTooOldError:
                break  # so large that it cannot be counted in one snapshot
        removed = yield delete("run.delete")
        return removed

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
        packed = _EMPTY if metadata is None else encoded(self._sink, dict(metadata), "metadata")
        arguments = [
            self._namespace, str(run_id), status.value if status else "", error, builtins.list(tags), packed
        ]

        def changed(payload: bytes) -> RunMetadata:
            return rules.unpack(run_id, payload)

        run: RunMetadata = self._sink.ask("run.update", arguments, changed)
        return run


class RunRuns(Runs):
    """The run of a scope outside a transaction: each change is a commit of its own."""

    __slots__ = ("_waits",)

    def __init__(
        self, host: Host, view: View, sink: Sink, namespace: bytes, run_id: str, waits: FacadeWaits
    ) -> None:
        super().__init__(host, view, sink, namespace, run_id)
        self._waits = waits

    def wait(
        self, *, until: RunStatus | Iterable[RunStatus] = TERMINAL, timeout_s: float | None = None
    ) -> RunMetadata:
        """Sleep until the run has one of some statuses, by default one that it cannot work on in; its record.

        The run need not have been created yet. See `Database.wait`.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     run = db.runs.create_run(run_id="triage-7")
        ...     run = db.runs.complete_run("triage-7")
        ...     str(db.runs.wait("triage-7", timeout_s=5).status)
        'completed'

        Raises:
            WaitTimeoutError: it had none of them for `timeout_s` seconds.
            RunDeletedError: the run was deleted.
        """
        self._own()
        wanted = rules.check_statuses(until, "until")

        def look(view: Any) -> RunMetadata | None:
            run: RunMetadata | None = view.runs.get_run()
            return run if run is not None and run.status in wanted else None

        run: RunMetadata = self._waits.wait(look, timeout_s, _itself)
        return run

    def claim(
        self, *, ttl_s: float | timedelta, holder: str | None = None,
        wait_s: float | timedelta | None = 0.0,
    ) -> Lease:
        """Own the run for `ttl_s` seconds: acquire its lease `@run`; that `Lease`.

        See `leases.acquire`, whose arguments and errors these are. It is
        renewed, released and checked as any lease.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     run = db.runs.create_run(run_id="triage-7")
        ...     lease = db.runs.claim("triage-7", ttl_s=30)
        ...     run = db.transact("triage-7", lambda txn: txn.runs.complete_run(), lease=lease)
        ...     run.status
        <RunStatus.COMPLETED: 'completed'>
        """
        leases = self._host.run(self._own()).leases
        lease: Lease = leases.acquire(OWNER, ttl_s=ttl_s, holder=holder, wait_s=wait_s)
        return lease

    def stale(self, older_than_s: float | timedelta = 0) -> builtins.list[Lease]:
        """The leases of active runs that ran out so long ago, the first of them first. See `claim`.

        A run that nobody has claimed, or whose owner has released it, is not
        among them. Cost: about 30 µs for each active run.
        """
        leases: builtins.list[Lease] = self._waits.wait(
            finding(self._view, check_older(older_than_s)), None, operator.itemgetter(0)
        )
        return leases

    def fail_stale(
        self, *, error: str = "its owner has left", older_than_s: float | timedelta = 0
    ) -> builtins.list[str]:
        """Fail the runs that `stale` finds; their ids. Cost: that of `stale`, and a transaction for each.

        Each transaction checks run and lease again, so an owner that renews in
        between keeps its run. It releases the lease: if the owner wakes up
        later, its commits under the lease are refused.
        """
        older_us = check_older(older_than_s)
        steps = failing(self._host, self._view, _required_error(error), older_us)
        failed: builtins.list[str] = self._waits.drive(steps)
        return failed

    def prune(
        self, *, status: RunStatus | Iterable[RunStatus] = TERMINAL, older_than_s: float | timedelta = 0,
        keep_last: int = 0,
    ) -> builtins.list[DeletedRun]:
        """Delete runs that have ended, for good; what that removed, in the order of their last changes.

        Of the runs of some statuses, by default of all that end a run, those
        that were last changed more than `older_than_s` ago, but for the
        `keep_last` of them that were changed last. Each is deleted as by
        `delete_run`, in a commit of its own. Cost: about 10 µs for each run
        of these statuses, and that of the deletions.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     for name in ("one", "two", "three"):
        ...         run = db.runs.create_run(run_id=name)
        ...         run = db.runs.complete_run(name)
        ...     [gone.run_id for gone in db.runs.prune(keep_last=1)], db.runs.list_runs()
        (['one', 'two'], ['three'])

        Raises:
            InvalidInputError: a status of runs that may be worked on, or another argument is wrong.
        """
        ended = check_ended(rules.check_statuses(status, "status"))
        older_us, kept = check_older(older_than_s), check_kept(keep_last)
        steps = pruning(self._host, self._view, ended, older_us, kept)
        deleted: builtins.list[DeletedRun] = self._waits.drive(steps)
        return deleted


class RunIndex(ByRun[RunRuns]):
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
        self, *, run_id: str | OfRun | None = None, parent_run: str | OfRun | None = None,
        tags: Sequence[str] = (), metadata: Mapping[str, Any] | None = None, exist_ok: bool = False,
    ) -> RunMetadata:
        """Create a run, active, and return its record. Cost: one round trip.

        Without a `run_id` a time-ordered one is made. `metadata` is a mapping
        with `str` keys; for an id of `RunId.from_external` it gets what that
        was made of, as `external_id`. With `exist_ok` a run that exists is
        left as it is, whatever else is given, and its record returned.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     run = db.runs.create_run(run_id=inmem.RunId.from_external("user@example.com/7"))
        ...     run.run_id, run.metadata
        ('user-example.com-7-4e94765c59578e67fcc4', {'external_id': 'user@example.com/7'})

        Raises:
            RunExistsError: the id is taken.
            RunNotFoundError: there is no such parent.
            RunDeletedError: a run of this id was deleted: the id is never used again.
            InvalidInputError: an argument is wrong.
        """
        runs = self._of(RunId.new() if run_id is None else run_id)
        if isinstance(run_id, RunId) and run_id.external is not None:
            metadata = {"external_id": run_id.external} | check_metadata(metadata)
        return runs.create_run(
            parent_run=parent_run, tags=tags, metadata=metadata, exist_ok=exist_ok
        )

    def create_run_with_options(self, options: CreateRunOptions) -> RunMetadata:
        """Like `create_run`, with all arguments in one object."""
        if not isinstance(options, CreateRunOptions):
            raise InvalidInputError("options must be CreateRunOptions", argument="options")
        return self.create_run(
            run_id=options.run_id, parent_run=options.parent_run, tags=options.tags,
            metadata=options.metadata, exist_ok=options.exist_ok,
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
    wait = by_run(RunRuns.wait)
    claim = by_run(RunRuns.claim)

    def get_run(self, run_id: str | OfRun) -> RunMetadata | None:
        """A run's record, None if it was never created. Cost: about 5 µs."""
        return self._of(run_id).get_run()

    def get_child_runs(
        self, run_id: str | OfRun, *, limit: int | None = None,
        start_after: str | OfRun | RunMetadata | None = None, reverse: bool = False,
    ) -> builtins.list[RunMetadata]:
        """The runs that were created with this run as their parent, archived ones too. See `query_runs`."""
        return self._of(run_id).get_child_runs(limit=limit, start_after=start_after, reverse=reverse)

    def query_runs(self, query: RunQuery | None = None, **conditions: Any) -> builtins.list[RunMetadata]:
        """Runs that match every condition, in order of creation.

        Takes a `RunQuery` or its fields as keywords. Archived runs are left
        out unless `include_archived` or `status=ARCHIVED` is given. Cost:
        linear in the runs of the narrowest condition (parent, first tag,
        status), not in their data; with a `limit` in those up to the last one.

        Raises:
            RunNotFoundError: there is no run with the id to start after.
        """
        return self._any().query_runs(query, **conditions)

    def iter_runs(self, query: RunQuery | None = None, **conditions: Any) -> Iterator[RunMetadata]:
        """Stream what `query_runs` finds, in bounded memory, with a new snapshot for each 512 runs.

        A run that is there all the time comes once. Raises as `query_runs` does.
        """
        return self._any().iter_runs(query, **conditions)

    def list_runs(
        self, *, limit: int | None = None, start_after: str | OfRun | RunMetadata | None = None,
        reverse: bool = False, include_archived: bool = False, include_uncreated: bool = False,
    ) -> builtins.list[str]:
        """Ids of all runs in byte order: those of what `query_runs` finds. Cost: about 5 µs a run.

        `start_after` continues after a run, or its id (before it, if `reverse`).
        With `include_uncreated` those too that hold data and were never
        created; a run that is being imported is one of these.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     version = db.kv.put("used", "key", 1)
        ...     db.runs.list_runs(), db.runs.list_runs(include_uncreated=True)
        ([], ['used'])
        """
        return self._any().list_runs(
            limit=limit, start_after=start_after, reverse=reverse, include_archived=include_archived,
            include_uncreated=include_uncreated,
        )

    def get_stats(self) -> RunStats:
        """How many runs there are, by status. Cost: about 0.3 µs a run."""
        return self._any().get_stats()

    def stale(self, older_than_s: float | timedelta = 0) -> builtins.list[Lease]:
        return self._any().stale(older_than_s)

    def fail_stale(
        self, *, error: str = "its owner has left", older_than_s: float | timedelta = 0
    ) -> builtins.list[str]:
        return self._any().fail_stale(error=error, older_than_s=older_than_s)

    def prune(
        self, *, status: RunStatus | Iterable[RunStatus] = TERMINAL, older_than_s: float | timedelta = 0,
        keep_last: int = 0,
    ) -> builtins.list[DeletedRun]:
        return self._any().prune(status=status, older_than_s=older_than_s, keep_last=keep_last)

    for _same in (stale, fail_stale, prune):
        _same.__doc__ = getattr(RunRuns, _same.__name__).__doc__
    del _same

    def _any(self) -> RunRuns:
        return self._of("-")  # the call concerns all runs: any run's facade will do


def _itself(run: RunMetadata) -> RunMetadata:
    return run


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
