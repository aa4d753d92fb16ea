"""inmem: a transactional, in-memory, durable store shared by many processes on one machine.

One writer process owns the store and serializes commits; every other process
reads shared snapshots directly from memory. Start with `inmem.open`.
"""

from inmem.database import CheckpointReport, Database, RepairReport, Status, open
from inmem.errors import (
    AlreadyExistsError,
    AppendOnlyError,
    BusyError,
    CellExistsError,
    CellNotFoundError,
    ClosedError,
    CommitUnknownError,
    ConfigMismatchError,
    ConflictError,
    CorruptionError,
    ForkError,
    FormatVersionError,
    InmemError,
    InvalidInputError,
    InvalidKeyError,
    InvalidRunIdError,
    InvalidTransitionError,
    InvalidValueError,
    InvariantError,
    LimitError,
    NotFoundError,
    PermissionDeniedError,
    RetryableError,
    RunDeletedError,
    RunExistsError,
    RunNotFoundError,
    SnapshotTooOldError,
    StoreFullError,
    TraceExistsError,
    TraceNotFoundError,
    VersionMismatchError,
    WriterUnavailableError,
)
from inmem.keys import Key, Namespace, RunId, TypeTag
from inmem.maintenance.check import CheckReport
from inmem.model.cell import State
from inmem.model.event_log import Appended, ChainVerification, Event
from inmem.model.run import DeletedRun, RunMetadata, RunStats, RunStatus, is_valid_transition
from inmem.model.trace import Custom, Decision, ErrorTrace, Query, Thought, ToolCall, Trace, TraceTree
from inmem.primitives.event_log import EventLog, PendingAppend
from inmem.primitives.kv import KVStore, PendingNumber, Versioned
from inmem.primitives.run_index import CreateRunOptions, RunIndex, RunQuery
from inmem.primitives.state_cell import PendingVersion, StateCell
from inmem.primitives.trace_store import NewTrace, TraceStore
from inmem.scopes import Pipeline, RunScope, Snapshot, Transaction, transactional
from inmem.values import Value

__version__ = "0.1.0"

__all__ = [
    "AlreadyExistsError",
    "AppendOnlyError",
    "Appended",
    "BusyError",
    "CellExistsError",
    "CellNotFoundError",
    "ChainVerification",
    "CheckReport",
    "CheckpointReport",
    "ClosedError",
    "CommitUnknownError",
    "ConfigMismatchError",
    "ConflictError",
    "CorruptionError",
    "CreateRunOptions",
    "Custom",
    "Database",
    "Decision",
    "DeletedRun",
    "ErrorTrace",
    "Event",
    "EventLog",
    "ForkError",
    "FormatVersionError",
    "InmemError",
    "InvalidInputError",
    "InvalidKeyError",
    "InvalidRunIdError",
    "InvalidTransitionError",
    "InvalidValueError",
    "InvariantError",
    "KVStore",
    "Key",
    "LimitError",
    "Namespace",
    "NewTrace",
    "NotFoundError",
    "PendingAppend",
    "PendingNumber",
    "PendingVersion",
    "PermissionDeniedError",
    "Pipeline",
    "Query",
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
    "WriterUnavailableError",
    "__version__",
    "is_valid_transition",
    "open",
    "transactional",
]
