"""The attributes of handles for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inmem.aio.facades.cells import AsyncCellReads, AsyncRunCells, AsyncStateCell, AsyncTransactionCells
from inmem.aio.facades.events import (
    AsyncEventLog,
    AsyncEventReads,
    AsyncPipedEvents,
    AsyncPipelineEvents,
    AsyncRunEvents,
    AsyncTransactionEvents,
)
from inmem.aio.facades.kv import (
    AsyncKVReads,
    AsyncKVStore,
    AsyncPipedKV,
    AsyncPipelineKV,
    AsyncRunKV,
    AsyncTransactionKV,
)
from inmem.aio.facades.leases import AsyncLeaseReads, AsyncLeaseStore, AsyncRunLeases, AsyncTransactionLeases
from inmem.aio.facades.queues import (
    AsyncJobQueues,
    AsyncPipedQueues,
    AsyncPipelineQueues,
    AsyncQueueReads,
    AsyncRunQueues,
    AsyncTransactionQueues,
)
from inmem.aio.facades.runs import AsyncRunIndex, AsyncRunReads, AsyncRunRuns, AsyncRuns
from inmem.aio.facades.traces import AsyncRunTraces, AsyncTraceReads, AsyncTraces, AsyncTraceStore
from inmem.engines.base import Sink, View
from inmem.primitives.byrun import Host
from inmem.primitives.facades import PipelinedFacades, ScopeFacades, SnapshotFacades, TransactionFacades
from inmem.steps import FacadeWaits


class AsyncDatabaseFacades:
    """Of a database: the run comes first."""

    def __init__(self, database: Host) -> None:
        self.kv = AsyncKVStore(database)
        self.events = AsyncEventLog(database)
        self.cells = AsyncStateCell(database)
        self.traces = AsyncTraceStore(database)
        self.leases = AsyncLeaseStore(database)
        self.runs = AsyncRunIndex(database)
        self.queues = AsyncJobQueues(database)


class AsyncScopeFacades:
    """Of a run: each write is a commit of its own."""

    __slots__ = ("cells", "events", "kv", "leases", "queues", "runs", "traces")

    def __init__(
        self, host: Host, view: View, sink: Sink, prefix: bytes, namespace: bytes, run_id: str,
        transact: Callable[..., Any], waits: FacadeWaits,
    ) -> None:
        sync = ScopeFacades(host, view, sink, prefix, namespace, run_id, transact, waits)
        self.kv = AsyncRunKV(sync.kv)
        self.events = AsyncRunEvents(sync.events)
        self.cells = AsyncRunCells(sync.cells)
        self.traces = AsyncRunTraces(sync.traces)
        self.leases = AsyncRunLeases(sync.leases)
        self.runs = AsyncRunRuns(sync.runs)
        self.queues = AsyncRunQueues(sync.queues)


class AsyncSnapshotFacades:
    """Of a run at one moment: no writes."""

    __slots__ = ("cells", "events", "kv", "leases", "queues", "runs", "traces")

    def __init__(self, host: Host, view: View, prefix: bytes, namespace: bytes, run_id: str) -> None:
        sync = SnapshotFacades(host, view, prefix, namespace, run_id)
        self.kv = AsyncKVReads(sync.kv)
        self.events = AsyncEventReads(sync.events)
        self.cells = AsyncCellReads(sync.cells)
        self.traces = AsyncTraceReads(sync.traces)
        self.leases = AsyncLeaseReads(sync.leases)
        self.runs = AsyncRunReads(sync.runs)
        self.queues = AsyncQueueReads(sync.queues)


class AsyncTransactionFacades:
    """Of a run in a transaction."""

    __slots__ = ("cells", "events", "kv", "leases", "queues", "runs", "traces")

    def __init__(
        self, host: Host, view: View, sink: Sink, prefix: bytes, namespace: bytes, run_id: str
    ) -> None:
        sync = TransactionFacades(host, view, sink, prefix, namespace, run_id)
        self.kv = AsyncTransactionKV(sync.kv)
        self.events = AsyncTransactionEvents(sync.events)
        self.cells = AsyncTransactionCells(sync.cells)
        self.traces = AsyncTraces(sync.traces)
        self.leases = AsyncTransactionLeases(sync.leases)
        self.runs = AsyncRuns(sync.runs)
        self.queues = AsyncTransactionQueues(sync.queues)


class AsyncPipelineFacades:
    """Of a pipeline: the run comes first."""

    def __init__(self, pipeline: Host) -> None:
        self.kv = AsyncPipelineKV(pipeline)
        self.events = AsyncPipelineEvents(pipeline)
        self.queues = AsyncPipelineQueues(pipeline)


class AsyncPipelinedFacades:
    """Of a run in a pipeline: no reads."""

    __slots__ = ("events", "kv", "queues")

    def __init__(self, sink: Sink, prefix: bytes) -> None:
        sync = PipelinedFacades(sink, prefix)
        self.kv = AsyncPipedKV(sync.kv)
        self.events = AsyncPipedEvents(sync.events)
        self.queues = AsyncPipedQueues(sync.queues)
