"""Everything that `import inmem` offers, in one place.

Invariant: this defines nothing, and `inmem` loads it at the first use of a
name: the writer, the helpers and the command start without what they do not
need. Half of the time in which a killed writer is replaced was imports. Each
name is imported as itself, or strict type checkers take it for private here.
"""

# ruff: isort: skip_file

from inmem.database import (
    CheckpointReport as CheckpointReport,
    Database as Database,
    RepairReport as RepairReport,
    Status as Status,
    open as open,
)
from inmem.pending import Pending as Pending
from inmem.errors import (
    AlreadyExistsError as AlreadyExistsError,
    AppendOnlyError as AppendOnlyError,
    BusyError as BusyError,
    CellExistsError as CellExistsError,
    CellNotFoundError as CellNotFoundError,
    ClosedError as ClosedError,
    CommitRefusedError as CommitRefusedError,
    CommitUnknownError as CommitUnknownError,
    CommitsLostError as CommitsLostError,
    ConfigMismatchError as ConfigMismatchError,
    ConflictError as ConflictError,
    CorruptionError as CorruptionError,
    DatabaseGoneError as DatabaseGoneError,
    ForkError as ForkError,
    FormatVersionError as FormatVersionError,
    InmemError as InmemError,
    InvalidInputError as InvalidInputError,
    InvalidKeyError as InvalidKeyError,
    InvalidRunIdError as InvalidRunIdError,
    InvalidTransitionError as InvalidTransitionError,
    InvalidValueError as InvalidValueError,
    InvariantError as InvariantError,
    JobLostError as JobLostError,
    JobNotFoundError as JobNotFoundError,
    LeaseHeldError as LeaseHeldError,
    LeaseLostError as LeaseLostError,
    LimitError as LimitError,
    NotFoundError as NotFoundError,
    PermissionDeniedError as PermissionDeniedError,
    RetryableError as RetryableError,
    RunDeletedError as RunDeletedError,
    RunExistsError as RunExistsError,
    RunNotFoundError as RunNotFoundError,
    SnapshotTooOldError as SnapshotTooOldError,
    StepFailedError as StepFailedError,
    StoreFullError as StoreFullError,
    TraceExistsError as TraceExistsError,
    TraceNotFoundError as TraceNotFoundError,
    VersionMismatchError as VersionMismatchError,
    WaitTimeoutError as WaitTimeoutError,
    WriterUnavailableError as WriterUnavailableError,
)
from inmem.keys import (
    Key as Key,
    Namespace as Namespace,
    RunId as RunId,
    TypeTag as TypeTag,
)
from inmem.primitives.cells.rules import State as State
from inmem.primitives.events.rules import (
    Appended as Appended,
    ChainVerification as ChainVerification,
    Event as Event,
)
from inmem.primitives.runs.rules import (
    DeletedRun as DeletedRun,
    RunMetadata as RunMetadata,
    RunStats as RunStats,
    RunStatus as RunStatus,
    is_valid_transition as is_valid_transition,
)
from inmem.primitives.traces.rules import (
    Custom as Custom,
    Decision as Decision,
    ErrorTrace as ErrorTrace,
    Query as Query,
    Thought as Thought,
    ToolCall as ToolCall,
    Trace as Trace,
    TraceTree as TraceTree,
)
from inmem.primitives.events.facade import EventLog as EventLog, PendingAppend as PendingAppend
from inmem.primitives.kv.facade import (
    Change as Change,
    KVStore as KVStore,
    PendingNumber as PendingNumber,
    Versioned as Versioned,
)
from inmem.primitives.leases.facade import LeaseStore as LeaseStore
from inmem.primitives.leases.held import HeldLease as HeldLease
from inmem.primitives.leases.shown import Lease as Lease
from inmem.primitives.runs.facade import (
    CreateRunOptions as CreateRunOptions,
    RunIndex as RunIndex,
)
from inmem.primitives.runs.reads import RunQuery as RunQuery
from inmem.primitives.cells.facade import PendingVersion as PendingVersion, StateCell as StateCell
from inmem.primitives.traces.facade import NewTrace as NewTrace, TraceStore as TraceStore
from inmem.primitives.queues.job import JobId as JobId
from inmem.primitives.queues.shown import Job as Job, JobInfo as JobInfo
from inmem.primitives.queues.shown import QueueCounts as QueueCounts
from inmem.primitives.queues.held import HeldJob as HeldJob
from inmem.primitives.queues.facade import JobQueues as JobQueues
from inmem.primitives.queues.putting import PendingJobId as PendingJobId
from inmem.reports import BackupReport as BackupReport, CheckReport as CheckReport
from inmem.scopes import (
    Pipeline as Pipeline,
    RunScope as RunScope,
    Snapshot as Snapshot,
    Transaction as Transaction,
)
from inmem.transactional import transactional as transactional
from inmem.values import (
    Value as Value,
)
