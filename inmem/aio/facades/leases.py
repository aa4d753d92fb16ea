"""The facades of leases for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

import builtins
from typing import Any, Generic, NoReturn

from inmem.aio.held import AsyncHeldLease
from inmem.aio.wrapping import AsyncFacade, documented
from inmem.pending import Pending
from inmem.primitives.byrun import ByRun, Host, by_run
from inmem.primitives.leases.calls import LeaseHolder
from inmem.primitives.leases.facade import (
    HOLD_S,
    B,
    LeaseReads,
    Leases,
    LeaseStore,
    RunLeases,
    Seconds,
    TransactionLeases,
)
from inmem.primitives.leases.shown import Lease


@documented(LeaseReads)
class AsyncLeaseReads(AsyncFacade):
    __slots__ = ()

    async def get(self, name: str) -> Lease | None:
        result: Lease | None = self._sync.get(name)
        return result

    async def list(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[Lease]:
        result: builtins.list[Lease] = self._sync.list(
            prefix, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def check(self, lease: Lease | LeaseHolder) -> None:
        result: None = self._sync.check(lease)
        return result


@documented(Leases)
class AsyncLeases(AsyncLeaseReads, Generic[B]):
    __slots__ = ()

    async def renew(self, lease: Lease | LeaseHolder, ttl_s: Seconds | None = None) -> Lease:
        result: Lease = await self._sync.renew(lease, ttl_s)
        return result

    async def release(self, lease: Lease | LeaseHolder) -> B:
        result: B = await self._sync.release(lease)
        return result


@documented(RunLeases)
class AsyncRunLeases(AsyncLeases[bool]):
    __slots__ = ()

    async def acquire(
        self, name: str, *, ttl_s: Seconds, holder: str | None = None, wait_s: Seconds | None = 0.0
    ) -> Lease:
        result: Lease = await self._sync.acquire(name, ttl_s=ttl_s, holder=holder, wait_s=wait_s)
        return result

    def hold(
        self, name: str, *, ttl_s: Seconds = HOLD_S, holder: str | None = None, wait_s: Seconds | None = 0.0
    ) -> AsyncHeldLease:
        return AsyncHeldLease(self._sync.hold(name, ttl_s=ttl_s, holder=holder, wait_s=wait_s))


@documented(TransactionLeases)
class AsyncTransactionLeases(AsyncLeases[Pending[bool]]):
    __slots__ = ()

    async def acquire(self, *_: object, **__: object) -> NoReturn:
        TransactionLeases.acquire(self._sync, *_, **__)

    async def check(self, lease: Lease | LeaseHolder) -> None:
        result: None = await self._sync.check(lease)
        return result


@documented(LeaseStore)
class AsyncLeaseStore(ByRun[AsyncRunLeases]):
    __slots__ = ("_sync",)

    KIND = "leases"

    def __init__(self, database: Host) -> None:
        super().__init__(database)
        self._sync: Any = LeaseStore(database)

    acquire = by_run(AsyncRunLeases.acquire)
    hold = by_run(AsyncRunLeases.hold)
    get = by_run(AsyncRunLeases.get)
    list = by_run(AsyncRunLeases.list)

    async def renew(self, lease: Lease | LeaseHolder, ttl_s: Seconds | None = None) -> Lease:
        result: Lease = await self._sync.renew(lease, ttl_s)
        return result

    async def release(self, lease: Lease | LeaseHolder) -> bool:
        result: bool = await self._sync.release(lease)
        return result

    async def check(self, lease: Lease | LeaseHolder) -> None:
        result: None = await self._sync.check(lease)
        return result
