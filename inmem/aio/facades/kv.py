"""The facades of kv for asyncio: written by `python -m inmem.aio.generate`, and not by hand."""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Generic

from inmem.aio.wrapping import AsyncFacade, Each, documented
from inmem.pending import Pending
from inmem.primitives.byrun import ByRun, by_run
from inmem.primitives.kv import rules
from inmem.primitives.kv.facade import (
    KV,
    B,
    KVReads,
    KVStore,
    KVWrites,
    N,
    PendingNumber,
    PipedKV,
    PipelineKV,
    RunKV,
    T,
    TransactionKV,
    V,
)
from inmem.primitives.kv.versioned import Versioned
from inmem.primitives.kv.watching import Change


@documented(KVReads)
class AsyncKVReads(AsyncFacade):
    __slots__ = ()

    async def get(self, key: str, default: Any = None) -> Any:
        return self._sync.get(key, default)

    async def get_versioned(self, key: str) -> Versioned | None:
        result: Versioned | None = self._sync.get_versioned(key)
        return result

    async def exists(self, key: str) -> bool:
        result: bool = self._sync.exists(key)
        return result

    async def ttl(self, key: str) -> float | None:
        result: float | None = self._sync.ttl(key)
        return result

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        result: dict[str, Any] = self._sync.get_many(keys)
        return result

    async def list(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[str]:
        result: builtins.list[str] = self._sync.list(
            prefix, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def list_with_values(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[tuple[str, Any]]:
        result: builtins.list[tuple[str, Any]] = self._sync.list_with_values(
            prefix, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    async def list_versioned(
        self, prefix: str | None = None, *, limit: int | None = None, start_after: str | None = None,
        reverse: bool = False,
    ) -> builtins.list[tuple[str, Versioned]]:
        result: builtins.list[tuple[str, Versioned]] = self._sync.list_versioned(
            prefix, limit=limit, start_after=start_after, reverse=reverse
        )
        return result

    def iter(
        self, prefix: str | None = None, *, start_after: str | None = None, reverse: bool = False
    ) -> AsyncIterator[tuple[str, Any]]:
        return Each(self._sync.iter(prefix, start_after=start_after, reverse=reverse))

    async def count(self, prefix: str | None = None) -> int:
        result: int = self._sync.count(prefix)
        return result


@documented(KVWrites)
class AsyncKVWrites(AsyncFacade, Generic[V, N, B]):
    __slots__ = ()

    async def put(self, key: str, value: Any, *, ttl: float | timedelta | None = None) -> V:
        result: V = await self._sync.put(key, value, ttl=ttl)
        return result

    async def put_with_ttl(self, key: str, value: Any, ttl: float | timedelta) -> V:
        result: V = await self._sync.put_with_ttl(key, value, ttl)
        return result

    async def put_many(self, mapping: Mapping[str, Any], *, ttl: float | timedelta | None = None) -> V:
        result: V = await self._sync.put_many(mapping, ttl=ttl)
        return result

    async def add(self, key: str, delta: rules.Number = 1, *, initial: rules.Number = 0) -> N:
        result: N = await self._sync.add(key, delta, initial=initial)
        return result

    async def merge(self, key: str, fields: Mapping[str, Any]) -> V:
        result: V = await self._sync.merge(key, fields)
        return result

    async def delete(self, key: str) -> B:
        result: B = await self._sync.delete(key)
        return result

    async def discard(self, key: str) -> V:
        result: V = await self._sync.discard(key)
        return result

    async def clear(self, prefix: str | None = None) -> N:
        result: N = await self._sync.clear(prefix)
        return result


@documented(KV)
class AsyncKV(AsyncKVReads, AsyncKVWrites[V, N, B]):
    __slots__ = ()


@documented(RunKV)
class AsyncRunKV(AsyncKV[int, rules.Number, bool]):
    __slots__ = ()

    async def clear(self, prefix: str | None = None) -> int:
        result: int = await self._sync.clear(prefix)
        return result

    async def wait(
        self, key: str, *, after: int | None = None, timeout_s: float | None = None
    ) -> Versioned | None:
        result: Versioned | None = await self._sync.wait(key, after=after, timeout_s=timeout_s)
        return result

    def watch(
        self, prefix: str | None = None, *, since: int | None = None, timeout_s: float | None = None
    ) -> AsyncIterator[Change]:
        result: AsyncIterator[Change] = self._sync.watch(prefix, since=since, timeout_s=timeout_s)
        return result

    async def transaction(self, fn: Callable[[Any], T]) -> T:
        result: T = await self._sync.transaction(fn)
        return result


@documented(TransactionKV)
class AsyncTransactionKV(AsyncKV[None, PendingNumber, bool]):
    __slots__ = ()


@documented(PipedKV)
class AsyncPipedKV(AsyncKVWrites[None, PendingNumber, Pending[bool]]):
    __slots__ = ()


@documented(KVStore)
class AsyncKVStore(ByRun[AsyncRunKV]):
    __slots__ = ()

    KIND = "kv"

    get = by_run(AsyncRunKV.get)
    get_versioned = by_run(AsyncRunKV.get_versioned)
    exists = by_run(AsyncRunKV.exists)
    ttl = by_run(AsyncRunKV.ttl)
    get_many = by_run(AsyncRunKV.get_many)
    list = by_run(AsyncRunKV.list)
    list_with_values = by_run(AsyncRunKV.list_with_values)
    list_versioned = by_run(AsyncRunKV.list_versioned)
    iter = by_run(AsyncRunKV.iter)
    count = by_run(AsyncRunKV.count)
    put = by_run(AsyncRunKV.put)
    put_with_ttl = by_run(AsyncRunKV.put_with_ttl)
    put_many = by_run(AsyncRunKV.put_many)
    add = by_run(AsyncRunKV.add)
    merge = by_run(AsyncRunKV.merge)
    delete = by_run(AsyncRunKV.delete)
    discard = by_run(AsyncRunKV.discard)
    clear = by_run(AsyncRunKV.clear)
    transaction = by_run(AsyncRunKV.transaction)
    wait = by_run(AsyncRunKV.wait)
    watch = by_run(AsyncRunKV.watch)


@documented(PipelineKV)
class AsyncPipelineKV(ByRun[AsyncPipedKV]):
    __slots__ = ()

    KIND = "kv"

    put = by_run(AsyncPipedKV.put)
    put_with_ttl = by_run(AsyncPipedKV.put_with_ttl)
    put_many = by_run(AsyncPipedKV.put_many)
    add = by_run(AsyncPipedKV.add)
    merge = by_run(AsyncPipedKV.merge)
    delete = by_run(AsyncPipedKV.delete)
    discard = by_run(AsyncPipedKV.discard)
    clear = by_run(AsyncPipedKV.clear)
