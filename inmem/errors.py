"""The error tree: every way a call can fail, with what to do about it.

Invariant: each failure has exactly one class, and each class one stable
`code`. This module knows nothing of storage, sockets or primitives.

    InmemError
    ├── InvalidInputError (ValueError)    raised before anything is sent
    │   └── InvalidKeyError, InvalidValueError, InvalidRunIdError
    ├── NotFoundError (KeyError)          the thing named does not exist
    │   └── RunNotFoundError, CellNotFoundError, TraceNotFoundError, JobNotFoundError
    ├── AlreadyExistsError                the name is taken
    │   └── RunExistsError, CellExistsError, TraceExistsError
    ├── InvariantError                    the store's rules forbid it
    │   ├── AppendOnlyError, InvalidTransitionError, RunDeletedError
    │   └── VersionMismatchError, LeaseLostError, JobLostError
    ├── RetryableError                    nothing happened; try again
    │   └── ConflictError, SnapshotTooOldError, BusyError, LeaseHeldError
    ├── CommitUnknownError                it may or may not have happened
    ├── CommitsLostError                  the server has lost what it had acknowledged
    ├── WaitTimeoutError (TimeoutError)   what was waited for did not come in time
    ├── StepFailedError                   a step of a durable program, or the program, has failed for good
    ├── WriterUnavailableError            no writer could be reached or started
    ├── DatabaseGoneError                 the directory of a handle is not there any more
    ├── StoreFullError                    the quota or the memory is used up
    ├── LimitError                        one thing is too big
    ├── CommitRefusedError                it ended a writer
    ├── CorruptionError                   stored bytes are not what was written
    ├── FormatVersionError                another version of inmem wrote this
    ├── ConfigMismatchError               stored settings differ from the wish
    ├── PermissionDeniedError             owner or mode forbid it
    ├── ForkError                         a handle crossed a fork it cannot survive
    └── ClosedError                       the handle was closed
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, ClassVar

__all__ = [
    "AlreadyExistsError", "AppendOnlyError", "BusyError", "CellExistsError", "CellNotFoundError",
    "ClosedError", "CommitRefusedError", "CommitUnknownError", "CommitsLostError", "ConfigMismatchError",
    "ConflictError",
    "CorruptionError", "DatabaseGoneError", "ForkError", "FormatVersionError", "InmemError",
    "InvalidInputError", "InvalidKeyError", "InvalidRunIdError", "InvalidTransitionError",
    "InvalidValueError", "InvariantError", "JobLostError", "JobNotFoundError", "LeaseHeldError",
    "LeaseLostError", "LimitError", "NotFoundError", "PermissionDeniedError", "RetryableError",
    "RunDeletedError", "RunExistsError", "RunNotFoundError", "SnapshotTooOldError", "StepFailedError",
    "StoreFullError", "TraceExistsError", "TraceNotFoundError", "VersionMismatchError", "WaitTimeoutError",
    "WriterUnavailableError",
]


class InmemError(Exception):
    """Base of every error that inmem raises on purpose.

    Attributes:
        code: a stable string, safe to match on and to log.
        retryable: True when the same call may succeed if simply made again.
        hint: one sentence on what to do. Tracebacks show it below the message.

    Fields of a subclass are keyword arguments and attributes; an omitted
    field is `None`. Errors pickle with all of their fields.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = "See the message."
    field_names: ClassVar[tuple[str, ...]] = ()

    hint: str
    is_foreign: bool = False  # a signal handler raised it during a commit, which may have been applied

    def __init__(self, message: str, *, hint: str | None = None, **fields: Any) -> None:
        super().__init__(message)
        if unknown := fields.keys() - set(self.field_names):
            raise TypeError(f"{type(self).__name__} has no field {sorted(unknown)[0]!r}")
        self.message = message
        self.hint = self.default_hint if hint is None else hint
        if self.hint != InmemError.default_hint:
            self.add_note(self.hint)  # so that a traceback shows it
        for name in self.field_names:
            setattr(self, name, fields.get(name))

    @property
    def fields(self) -> dict[str, Any]:
        """The error's own fields by name."""
        return {name: getattr(self, name) for name in self.field_names}

    def __str__(self) -> str:
        # KeyError would show the repr of its argument; all errors read alike.
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.fields)


def _rebuild(cls: type[InmemError], message: str, hint: str, fields: dict[str, Any]) -> InmemError:
    return cls(message, hint=hint, **fields)


class InvalidInputError(InmemError, ValueError):
    """An argument is wrong. Nothing was sent and nothing is stored."""

    code = "invalid_input"
    default_hint = "Correct the argument that the message names."
    field_names: ClassVar[tuple[str, ...]] = ("argument",)
    argument: str | None


class InvalidKeyError(InvalidInputError):
    """A key, name, tag or identifier is empty, too long or has a forbidden character."""

    code = "invalid_key"


class InvalidValueError(InvalidInputError):
    """A value cannot be stored with its type kept; `path` says where inside it."""

    code = "invalid_value"
    default_hint = "Store None, bool, int (64-bit), float, str, bytes, list, or dict with str keys."
    field_names: ClassVar[tuple[str, ...]] = ("argument", "path")
    path: str | None


class InvalidRunIdError(InvalidInputError):
    """A run id is not 1-64 characters of `[A-Za-z0-9._:-]`."""

    code = "invalid_run_id"
    default_hint = "Use RunId.new(), 1-64 of A-Z a-z 0-9 . _ : -, or RunId.from_external(text) for other ids"


class NotFoundError(InmemError, KeyError):
    """The thing that was named does not exist."""

    code = "not_found"
    default_hint = "Create it first, or check its name."


class RunNotFoundError(NotFoundError):
    """The run has no record: it was never created with `create_run`."""

    code = "run_not_found"
    field_names: ClassVar[tuple[str, ...]] = ("run_id",)
    run_id: str | None


class CellNotFoundError(NotFoundError):
    """The cell does not exist in this run."""

    code = "cell_not_found"
    default_hint = "Create the cell with init() or set()."
    field_names: ClassVar[tuple[str, ...]] = ("name",)
    name: str | None


class TraceNotFoundError(NotFoundError):
    """The trace does not exist in this run."""

    code = "trace_not_found"
    default_hint = "Record the parent first, or earlier in the same transaction."
    field_names: ClassVar[tuple[str, ...]] = ("trace_id",)
    trace_id: str | None


class JobNotFoundError(NotFoundError):
    """There is no such job: it was never there, is done without a result, or was purged."""

    code = "job_not_found"
    field_names: ClassVar[tuple[str, ...]] = ("job_id",)
    job_id: str


class AlreadyExistsError(InmemError):
    """The name is taken; nothing was changed."""

    code = "already_exists"
    default_hint = "Use another name, or read what is there."


class RunExistsError(AlreadyExistsError):
    """A run with this id was created before."""

    code = "run_exists"
    field_names: ClassVar[tuple[str, ...]] = ("run_id",)
    run_id: str | None


class CellExistsError(AlreadyExistsError):
    """`init` found the cell in existence; use `set` or `cas` to change it."""

    code = "cell_exists"
    default_hint = "Use set() to overwrite or cas() to change it."
    field_names: ClassVar[tuple[str, ...]] = ("name", "version")
    name: str | None
    version: int | None


class TraceExistsError(AlreadyExistsError):
    """A trace with this id is in the run already."""

    code = "trace_exists"
    field_names: ClassVar[tuple[str, ...]] = ("trace_id",)
    trace_id: str | None


class InvariantError(InmemError):
    """The request is well formed, but a rule of the store forbids it."""

    code = "invariant"


class AppendOnlyError(InvariantError):
    """Events are never changed or removed one by one."""

    code = "append_only"
    default_hint = "Append a correcting event; only delete_run removes a log, with its run."


class InvalidTransitionError(InvariantError):
    """The run's status does not allow this change; see `is_valid_transition`."""

    code = "invalid_transition"
    default_hint = "Check is_valid_transition(from_status, to_status) first."
    field_names: ClassVar[tuple[str, ...]] = ("from_status", "to_status")
    from_status: Any
    to_status: Any


class RunDeletedError(InvariantError):
    """The run was deleted for good: nothing is stored in it ever again."""

    code = "run_deleted"
    default_hint = "Stop this worker, or go on in a new run."
    field_names: ClassVar[tuple[str, ...]] = ("run_id",)
    run_id: str | None


class VersionMismatchError(InvariantError):
    """`cas` expected another version; unlike ConflictError the caller chose it."""

    code = "version_mismatch"
    default_hint = "Read the cell again and decide anew, or use transition()."
    field_names: ClassVar[tuple[str, ...]] = ("expected", "actual")
    expected: int
    actual: int


class LeaseLostError(InvariantError):
    """The lease is not held any more: it ran out and was taken, or was released. Nothing was stored."""

    code = "lease_lost"
    default_hint = "Stop what the lease was for, and acquire it anew."
    field_names: ClassVar[tuple[str, ...]] = ("name", "token")
    name: str
    token: int


class JobLostError(InvariantError):
    """The claim of the job has ended, or ran out and the job was taken again. Nothing was stored."""

    code = "job_lost"
    default_hint = "Drop what was done for the job: whoever has it now does it."
    field_names: ClassVar[tuple[str, ...]] = ("job_id", "token")
    job_id: str
    token: int


class RetryableError(InmemError):
    """Nothing was applied; the same work may succeed when done again."""

    code = "retryable"
    retryable = True
    default_hint = "Run the transaction again, or use transact(), which does."


class ConflictError(RetryableError):
    """Something the transaction read was changed before it committed.

    `is_next` is true after many conflicts in a row: for a few milliseconds the
    writer keeps other transactions from the key, so that an attempt that is
    made at once wins. `transact` does that by itself.
    """

    code = "conflict"
    field_names: ClassVar[tuple[str, ...]] = ("key", "read_version", "committed_version", "is_next")
    key: Any
    read_version: int | None
    committed_version: int | None
    is_next: bool | None


class SnapshotTooOldError(RetryableError):
    """The snapshot was held beyond `snapshot_max_age_s`, or its image is gone."""

    code = "snapshot_too_old"
    default_hint = "Read, close the snapshot, do the slow work, then use transact()."
    field_names: ClassVar[tuple[str, ...]] = ("age_s", "max_age_s")
    age_s: float | None
    max_age_s: float | None


class StepFailedError(InmemError):
    """A step of a durable program has failed as often as it may, or the program has. See `inmem.steps`."""

    code = "step_failed"
    default_hint = "What was recorded stays. Go on in a new run."
    field_names: ClassVar[tuple[str, ...]] = ("step",)
    step: str | None


class BusyError(RetryableError):
    """Something is in use as far as it may be: work in flight, slots, or a turn. Nothing was applied."""

    code = "busy"
    default_hint = "Wait for what is under way, then try again."
    field_names: ClassVar[tuple[str, ...]] = ("what", "limit")
    what: str | None
    limit: int | None


class LeaseHeldError(RetryableError):
    """Another holder has the lease. `expires_at`: until when at least, microseconds since the epoch."""

    code = "lease_held"
    default_hint = "Try again later, or give wait_s."
    field_names: ClassVar[tuple[str, ...]] = ("name", "holder", "expires_at")
    name: str
    holder: str
    expires_at: int


class CommitUnknownError(InmemError):
    """The deadline passed before an answer came: it may or may not have happened.

    `resend()` asks again under the same identity, so the commit takes effect
    at most once however often it is called. `transact` never reruns its
    function on this error.
    """

    code = "commit_unknown"
    default_hint = "Call resend() on this error: it resolves the commit, exactly once."
    field_names: ClassVar[tuple[str, ...]] = ("commit_id",)
    commit_id: str | None

    resender: Callable[[float | None], Any] | None = None  # set where it is raised: what `resend` calls

    def resend(self, timeout_s: float | None = None) -> Any:
        """Wait for, or ask again for, the outcome of this commit.

        Returns what the original call would have returned and raises what it
        would have raised. Cost: one round trip. `timeout_s` (seconds)
        defaults to the database's deadline.

        Raises:
            CommitUnknownError: the outcome is still not known.
            ClosedError: the error came from another process, or its database
                was closed.
        """
        if self.resender is None:
            raise ClosedError(
                "this commit can only be resolved in the process that sent it",
                hint="Call resend() where the error was first raised.",
            )
        return self.resender(timeout_s)


class CommitsLostError(InmemError):
    """The server has lost commits that it had acknowledged: `lost` of this session, the last of `version`.

    The commit that finds it out is not made; the next one goes on with what is stored.
    """

    code = "commits_lost"
    default_hint = "Read again what was written last, then go on; let commits wait for a synchronous standby."
    field_names: ClassVar[tuple[str, ...]] = ("lost", "version")
    lost: int
    version: int


class WaitTimeoutError(InmemError, builtins.TimeoutError):
    """What was waited for did not come within `timeout_s`, or `wait_s`. Nothing was changed."""

    code = "wait_timeout"
    default_hint = "Wait again, or do something else first."


class WriterUnavailableError(InmemError):
    """No writer answers and none could be started. Nothing was applied."""

    code = "writer_unavailable"
    retryable = True
    default_hint = "See writer.log in the data directory, or run `inmem serve -d DIR`."
    field_names: ClassVar[tuple[str, ...]] = ("path",)
    path: str | None


class DatabaseGoneError(InmemError):
    """The directory behind this handle was removed, moved, or made anew."""

    code = "database_gone"
    default_hint = "Open the store where it is now with inmem.open(): only that may create one."
    field_names: ClassVar[tuple[str, ...]] = ("path",)
    path: str | None


class StoreFullError(InmemError):
    """The quota or the shared memory is used up. Reads and deletes still work."""

    code = "store_full"
    default_hint = "Delete data or runs. quota_bytes is fixed at creation: for more, export to another store."
    field_names: ClassVar[tuple[str, ...]] = ("used_bytes", "quota_bytes")
    used_bytes: int | None
    quota_bytes: int | None


class LimitError(InmemError):
    """One thing exceeds a fixed limit: `what`, its `size` and the `limit`."""

    code = "limit"
    default_hint = "Split it into smaller parts."
    field_names: ClassVar[tuple[str, ...]] = ("what", "size", "limit")
    what: str | None
    size: int | None
    limit: int | None


class CommitRefusedError(InmemError):
    """Deciding this commit ended writers, or would have: it is refused for good, and nothing of it is stored.

    `writers` is how many ended while they decided it.
    """

    code = "commit_refused"
    default_hint = "Do not send it again as it is; see writer.log in the data directory, and report it."
    field_names: ClassVar[tuple[str, ...]] = ("writers",)
    writers: int | None


class CorruptionError(InmemError):
    """Stored bytes fail their checks at `offset` (bytes) of `file`."""

    code = "corruption"
    default_hint = "Keep the directory as it is; restore a backup, or try: inmem salvage."
    field_names: ClassVar[tuple[str, ...]] = ("file", "offset")
    file: str | None
    offset: int | None


class FormatVersionError(InmemError):
    """The directory or the writer speaks another version of the format."""

    code = "format_version"
    default_hint = "Use the inmem release that created this directory."
    field_names: ClassVar[tuple[str, ...]] = ("found", "supported")
    found: Any
    supported: Any


class ConfigMismatchError(InmemError):
    """A setting asked for differs from the one stored in the directory."""

    code = "config_mismatch"
    default_hint = "Leave the setting out to use the stored one."
    field_names: ClassVar[tuple[str, ...]] = ("setting", "stored", "requested")
    setting: str | None
    stored: Any
    requested: Any


class PermissionDeniedError(InmemError):
    """A file or directory has an owner, a mode or a kind that is not safe."""

    code = "permission_denied"
    default_hint = "Data directories belong to one user: owner you, mode 0700, no symlink."
    field_names: ClassVar[tuple[str, ...]] = ("path",)
    path: str | None


class ForkError(InmemError):
    """The database was in use when this process forked, and cannot be reopened here."""

    code = "fork"
    default_hint = "Start the child with spawn, or fork outside transactions and snapshots."
    field_names: ClassVar[tuple[str, ...]] = ()


class ClosedError(InmemError):
    """The database, snapshot, transaction or pipeline was closed."""

    code = "closed"
    default_hint = "Open it again with inmem.open()."


def type_name(value: object) -> str:
    """The name of a value's type, with its module where it would be taken for one of Python's own."""
    kind = type(value)
    is_other = kind.__module__ != "builtins" and hasattr(builtins, kind.__name__)
    return f"{kind.__module__}.{kind.__name__}" if is_other else kind.__name__
