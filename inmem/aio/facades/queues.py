"""The facades of queues for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, Literal, NoReturn

from inmem.aio.wrapping import AsyncFacade, documented
from inmem.pending import Pending
from inmem.primitives.byrun import ByRun, by_its_run, by_run
from inmem.primitives.queues.facade import (
    LEASE_S,
    JobQueues,
    PipedQueues,
    PipelineQueues,
    Queues,
    RunQueues,
    TransactionQueues,
)
from inmem.primitives.queues.held import HeldJob
from inmem.primitives.queues.job import JobId
from inmem.primitives.queues.putting import I, PendingJobId, QueuePuts
from inmem.primitives.queues.reads import QueueReads
from inmem.primitives.queues.shown import Job, JobInfo, QueueCounts


@documented(QueueReads)
class AsyncQueueReads(AsyncFacade):
    __slots__ = ()

    async def get(self, job_id: str) -> JobInfo | None:
        result: JobInfo | None = self._sync.get(job_id)
        return result

    async def counts(self, queue: str) -> QueueCounts:
        result: QueueCounts = self._sync.counts(queue)
        return result

    async def peek(
        self, queue: str, *, limit: int = 1, start_after: JobInfo | None = None
    ) -> builtins.list[JobInfo]:
        result: builtins.list[JobInfo] = self._sync.peek(queue, limit=limit, start_after=start_after)
        return result

    async def dead(
        self, queue: str, *, limit: int | None = None, start_after: JobInfo | None = None
    ) -> builtins.list[JobInfo]:
        result: builtins.list[JobInfo] = self._sync.dead(queue, limit=limit, start_after=start_after)
        return result

    async def list(self) -> builtins.list[str]:
        result: builtins.list[str] = self._sync.list()
        return result

    async def has_ready(self, queue: str) -> bool:
        result: bool = self._sync.has_ready(queue)
        return result

    async def holds(self, job: Job) -> bool:
        result: bool = self._sync.holds(job)
        return result


@documented(QueuePuts)
class AsyncQueuePuts(AsyncFacade, Generic[I]):
    __slots__ = ()

    async def put(
        self, queue: str, payload: Any, *, delay_s: float = 0.0, priority: int = 0, key: str | None = None,
        max_attempts: int | None = None,
    ) -> I:
        result: I = await self._sync.put(
            queue, payload, delay_s=delay_s, priority=priority, key=key, max_attempts=max_attempts
        )
        return result

    async def put_many(
        self, queue: str, payloads: Iterable[Any], *, delay_s: float = 0.0, priority: int = 0,
        max_attempts: int | None = None,
    ) -> list[I]:
        result: list[I] = await self._sync.put_many(
            queue, payloads, delay_s=delay_s, priority=priority, max_attempts=max_attempts
        )
        return result


@documented(Queues)
class AsyncQueues(AsyncQueueReads, AsyncQueuePuts[I]):
    __slots__ = ()

    async def ack(self, job: Job, result: Any = None) -> None:
        returned: None = await self._sync.ack(job, result)
        return returned

    async def nack(
        self, job: Job, *, delay_s: float | None = None, error: str | None = None, retry: bool = True
    ) -> None:
        result: None = await self._sync.nack(job, delay_s=delay_s, error=error, retry=retry)
        return result

    async def extend(self, job: Job, lease_s: float = LEASE_S) -> Job:
        result: Job = await self._sync.extend(job, lease_s)
        return result

    async def requeue(self, job_id: str) -> None:
        result: None = await self._sync.requeue(job_id)
        return result


@documented(RunQueues)
class AsyncRunQueues(AsyncQueues[JobId]):
    __slots__ = ()

    async def claim(
        self, queue: str, *, lease_s: float = LEASE_S, wait_s: float | None = 0.0, limit: Literal[1] = 1,
        worker: str | None = None,
    ) -> Job | None:
        result: Job | None = await self._sync.claim(
            queue, lease_s=lease_s, wait_s=wait_s, limit=limit, worker=worker
        )
        return result

    async def claim_many(
        self, queue: str, limit: int, *, lease_s: float = LEASE_S, wait_s: float | None = 0.0,
        worker: str | None = None,
    ) -> builtins.list[Job]:
        result: builtins.list[Job] = await self._sync.claim_many(
            queue, limit, lease_s=lease_s, wait_s=wait_s, worker=worker
        )
        return result

    def consume(
        self, queue: str, *, lease_s: float = LEASE_S, stop: Any = None, worker: str | None = None,
        wait_s: float | None = None,
    ) -> AsyncIterator[HeldJob]:
        result: AsyncIterator[HeldJob] = self._sync.consume(
            queue, lease_s=lease_s, stop=stop, worker=worker, wait_s=wait_s
        )
        return result

    async def purge(self, queue: str, *, state: str | None = None) -> int:
        result: int = await self._sync.purge(queue, state=state)
        return result


@documented(TransactionQueues)
class AsyncTransactionQueues(AsyncQueues[PendingJobId]):
    __slots__ = ()

    async def claim(self, *_: object, **__: object) -> NoReturn:
        TransactionQueues.claim(self._sync, *_, **__)

    async def claim_many(self, *_: object, **__: object) -> NoReturn:
        TransactionQueues.claim_many(self._sync, *_, **__)

    def consume(self, *_: object, **__: object) -> AsyncIterator[HeldJob]:
        result: AsyncIterator[HeldJob] = self._sync.consume(*_, **__)
        return result

    async def purge(self, *_: object, **__: object) -> NoReturn:
        TransactionQueues.purge(self._sync, *_, **__)


@documented(PipedQueues)
class AsyncPipedQueues(AsyncQueuePuts[PendingJobId]):
    __slots__ = ()

    async def ack(self, job: Job, result: Any = None) -> Pending[None]:
        returned: Pending[None] = await self._sync.ack(job, result)
        return returned


@documented(JobQueues)
class AsyncJobQueues(ByRun[AsyncRunQueues]):
    __slots__ = ()

    KIND = "queues"

    put = by_run(AsyncRunQueues.put)
    put_many = by_run(AsyncRunQueues.put_many)
    claim = by_run(AsyncRunQueues.claim)
    claim_many = by_run(AsyncRunQueues.claim_many)
    consume = by_run(AsyncRunQueues.consume)
    ack = by_its_run(AsyncRunQueues.ack)
    nack = by_its_run(AsyncRunQueues.nack)
    extend = by_its_run(AsyncRunQueues.extend)
    holds = by_its_run(AsyncRunQueues.holds)
    get = by_run(AsyncRunQueues.get)
    counts = by_run(AsyncRunQueues.counts)
    peek = by_run(AsyncRunQueues.peek)
    dead = by_run(AsyncRunQueues.dead)
    requeue = by_run(AsyncRunQueues.requeue)
    purge = by_run(AsyncRunQueues.purge)
    list = by_run(AsyncRunQueues.list)
    has_ready = by_run(AsyncRunQueues.has_ready)


@documented(PipelineQueues)
class AsyncPipelineQueues(ByRun[AsyncPipedQueues]):
    __slots__ = ()

    KIND = "queues"

    put = by_run(AsyncPipedQueues.put)
    put_many = by_run(AsyncPipedQueues.put_many)
    ack = by_its_run(AsyncPipedQueues.ack)
