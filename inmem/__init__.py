"""inmem: a transactional, in-memory, durable store shared by many processes on one machine.

One writer process owns the store and serializes commits; every other process
reads shared snapshots directly from memory. Start with `inmem.open`.
"""

import _thread
import sys
import typing

# Python says so since 3.12, without a word of its own for it. What is refused here would end the process.
if not getattr(_thread, "daemon_threads_allowed", lambda: True)():
    raise ImportError(
        "inmem cannot be used in an isolated subinterpreter (InterpreterPoolExecutor): the modules for "
        "libzmq and LMDB do not support it. Use threads or processes."
    )

from inmem.version import __version__

if typing.TYPE_CHECKING:
    from inmem import aio as aio
    from inmem.exports import *

__all__ = [
    "AlreadyExistsError",
    "AppendOnlyError",
    "Appended",
    "BackupReport",
    "BusyError",
    "CellExistsError",
    "CellNotFoundError",
    "ChainVerification",
    "Change",
    "CheckReport",
    "CheckpointReport",
    "ClosedError",
    "CommitRefusedError",
    "CommitUnknownError",
    "CommitsLostError",
    "ConfigMismatchError",
    "ConflictError",
    "CorruptionError",
    "CreateRunOptions",
    "Custom",
    "Database",
    "DatabaseGoneError",
    "Decision",
    "DeletedRun",
    "ErrorTrace",
    "Event",
    "EventLog",
    "ForkError",
    "FormatVersionError",
    "HeldJob",
    "HeldLease",
    "InmemError",
    "InvalidInputError",
    "InvalidKeyError",
    "InvalidRunIdError",
    "InvalidTransitionError",
    "InvalidValueError",
    "InvariantError",
    "Job",
    "JobId",
    "JobInfo",
    "JobLostError",
    "JobNotFoundError",
    "JobQueues",
    "KVStore",
    "Key",
    "Lease",
    "LeaseHeldError",
    "LeaseLostError",
    "LeaseStore",
    "LimitError",
    "Namespace",
    "NewTrace",
    "NotFoundError",
    "Pending",
    "PendingAppend",
    "PendingJobId",
    "PendingNumber",
    "PendingVersion",
    "PermissionDeniedError",
    "Pipeline",
    "Query",
    "QueueCounts",
    "RepairReport",
    "RetryableError",
    "RunDeletedError",
    "RunExistsError",
    "RunId",
    "RunIndex",
    "RunMetadata",
    "RunNotFoundError",
    "RunQuery",
    "RunScope",
    "RunStats",
    "RunStatus",
    "Snapshot",
    "SnapshotTooOldError",
    "State",
    "StateCell",
    "Status",
    "StepFailedError",
    "StoreFullError",
    "Thought",
    "ToolCall",
    "Trace",
    "TraceExistsError",
    "TraceNotFoundError",
    "TraceStore",
    "TraceTree",
    "Transaction",
    "TypeTag",
    "Value",
    "VersionMismatchError",
    "Versioned",
    "WaitTimeoutError",
    "WriterUnavailableError",
    "__version__",
    "is_valid_transition",
    "open",
    "transactional",
]


if not typing.TYPE_CHECKING:  # to a type checker a name that is not listed is an error, and not `Any`

    def __getattr__(name: str) -> typing.Any:
        """Load the exports at the first use of one; see `inmem.exports`."""
        if name == "aio":
            import inmem.aio

            return inmem.aio
        if name not in __all__:  # also asked for modules of the package, which Python then imports
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import inmem.exports

        exports = sys.modules["inmem.exports"]
        globals().update((each, getattr(exports, each)) for each in __all__ if each != "__version__")
        return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
