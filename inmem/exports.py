"""Everything that `import inmem` offers, in one place.

Invariant: this defines nothing, and `inmem` loads it at the first use of a
name: the writer, the helpers and the command start without what they do not
need. Half of the time in which a killed writer is replaced was imports.
"""

from inmem.database import CheckpointReport, Database, RepairReport, Status, open
from inmem.engines.base import Pending
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
