"""The facade attributes of a database, and of what belongs to one run: a new primitive has a line in each.

Invariant: a primitive has the same name everywhere. A snapshot has its reading
half, a pipeline its writing half, if it has writes that need no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inmem.engines.base import Sink, View
from inmem.primitives.byrun import Host
from inmem.primitives.cells.facade import CellReads, RunCells, StateCell, TransactionCells
from inmem.primitives.events.facade import (
    EventLog,
    EventReads,
    PipedEvents,
    PipelineEvents,
    RunEvents,
    TransactionEvents,
)
from inmem.primitives.kv.facade import KVReads, KVStore, PipedKV, PipelineKV, RunKV, TransactionKV
from inmem.primitives.leases.facade import LeaseReads, LeaseStore, RunLeases, TransactionLeases
from inmem.primitives.queues.facade import (
    JobQueues,
    PipedQueues,
    PipelineQueues,
    RunQueues,
    TransactionQueues,
)
from inmem.primitives.queues.reads import QueueReads
from inmem.primitives.runs.facade import RunIndex, RunRuns, Runs
from inmem.primitives.runs.reads import RunReads
from inmem.primitives.traces.facade import RunTraces, TraceReads, Traces, TraceStore
from inmem.steps import FacadeWaits


class DatabaseFacades:
    """Of a database: the run comes first."""

    def __init__(self, database: Host) -> None:
        self.kv = KVStore(database)
        self.events = EventLog(database)
        self.cells = StateCell(database)
        self.traces = TraceStore(database)
        self.leases = LeaseStore(database)
        self.runs = RunIndex(database)
        self.queues = JobQueues(database)


class ScopeFacades:
    """Of a run: each write is a commit of its own."""

    __slots__ = ("cells", "events", "kv", "leases", "queues", "runs", "traces")

    def __init__(
        self, host: Host, view: View, sink: Sink, prefix: bytes, namespace: bytes, run_id: str,
        transact: Callable[..., Any], waits: FacadeWaits,
    ) -> None:
        self.kv = RunKV(view, sink, prefix, transact, waits)
        self.events = RunEvents(view, sink, prefix, waits)
        self.cells = RunCells(view, sink, prefix, waits)
        self.traces = RunTraces(view, sink, prefix, waits)
        self.leases = RunLeases(view, sink, prefix, run_id, transact, waits)
        self.runs = RunRuns(host, view, sink, namespace, run_id, waits)
        self.queues = RunQueues(view, sink, prefix, run_id, waits)


class SnapshotFacades:
    """Of a run at one moment: no writes."""

    __slots__ = ("cells", "events", "kv", "leases", "queues", "runs", "traces")

    def __init__(self, host: Host, view: View, prefix: bytes, namespace: bytes, run_id: str) -> None:
        self.kv = KVReads(view, prefix)
        self.events = EventReads(view, prefix)
        self.cells = CellReads(view, prefix)
        self.traces = TraceReads(view, prefix)
        self.leases = LeaseReads(view, prefix, run_id)
        self.runs = RunReads(host, view, namespace, run_id)
        self.queues = QueueReads(view, prefix)


class TransactionFacades:
    """Of a run in a transaction."""

    __slots__ = ("cells", "events", "kv", "leases", "queues", "runs", "traces")

    def __init__(
        self, host: Host, view: View, sink: Sink, prefix: bytes, namespace: bytes, run_id: str
    ) -> None:
        self.kv = TransactionKV(view, sink, prefix)
        self.events = TransactionEvents(view, sink, prefix)
        self.cells = TransactionCells(view, sink, prefix)
        self.traces = Traces(view, sink, prefix)
        self.leases = TransactionLeases(view, sink, prefix, run_id)
        self.runs = Runs(host, view, sink, namespace, run_id)
        self.queues = TransactionQueues(view, sink, prefix)


class PipelineFacades:
    """Of a pipeline: the run comes first."""

    def __init__(self, pipeline: Host) -> None:
        self.kv = PipelineKV(pipeline)
        self.events = PipelineEvents(pipeline)
        self.queues = PipelineQueues(pipeline)


class PipelinedFacades:
    """Of a run in a pipeline: no reads."""

    __slots__ = ("events", "kv", "queues")

    def __init__(self, sink: Sink, prefix: bytes) -> None:
        self.kv = PipedKV(sink, prefix)
        self.events = PipedEvents(sink, prefix)
        self.queues = PipedQueues(sink, prefix)
