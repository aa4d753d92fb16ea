"""inmem: a transactional, in-memory, durable store shared by many processes on one machine.

One writer process owns the store and serializes commits; every other process
reads shared snapshots directly from memory. Start with `inmem.open`.
"""

from inmem.database import Database, Status, open
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
from inmem.model.event_log import Appended, ChainVerification, Event
from inmem.primitives.event_log import EventLog, PendingAppend
from inmem.primitives.kv import KVStore, PendingNumber, Versioned
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
    "ClosedError",
    "CommitUnknownError",
    "ConfigMismatchError",
    "ConflictError",
    "CorruptionError",
    "Database",
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
    "NotFoundError",
    "PendingAppend",
    "PendingNumber",
    "PermissionDeniedError",
    "Pipeline",
    "RetryableError",
    "RunDeletedError",
    "RunExistsError",
    "RunId",
    "RunNotFoundError",
    "RunScope",
    "Snapshot",
    "SnapshotTooOldError",
    "Status",
    "StoreFullError",
    "TraceExistsError",
    "TraceNotFoundError",
    "Transaction",
    "TypeTag",
    "Value",
    "VersionMismatchError",
    "Versioned",
    "WriterUnavailableError",
    "__version__",
    "open",
    "transactional",
]
