"""The saver of checkpoints: `InmemSaver`. See `layout` for what is stored.

Invariant: a checkpoint is one commit with the values of its channels, and it
becomes visible with them. Whatever is read of a checkpoint is of one version.
Values are serialised before anything is sent, in the thread that hands them
over, so a program may change its state right after.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, Literal, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

import inmem
from inmem.adapters.langgraph.copying import copies
from inmem.adapters.langgraph.layout import all_threads
from inmem.adapters.langgraph.listing import CheckpointListing
from inmem.adapters.langgraph.naming import forget, name_copy, named_run, run_of
from inmem.adapters.langgraph.transactions import Transactions, Work
from inmem.adapters.langgraph.work import SaverWork, config_of, place_of
from inmem.aio import AsyncDatabase

T = TypeVar("T")

Fence = Literal["parent", "lease"] | None
_LEASE: Final = "@run"


class InmemSaver(BaseCheckpointSaver[str]):
    """Checkpoints of LangGraph in a store of inmem, for many processes that share threads.

    `db` is a `Database`, for graphs that are invoked, or an `AsyncDatabase`,
    for graphs that are awaited. With a `Database` the awaited methods work
    too: they do their work in the loop, some hundred microseconds each. With
    an `AsyncDatabase` the others work in other threads, where steps run that
    are not awaited.

    `fence` says what becomes of two workers that resume one thread at once,
    of which LangGraph lets both succeed. None: both, and history forks.
    `"parent"`: who puts a checkpoint whose parent is not the newest one gets
    `InvariantError`; replays and `update_state` may fork all the same.
    `"lease"`: a thread is written within `with saver.lease(thread_id)` alone,
    which one worker at a time can enter; who has lost it gets `LeaseLostError`.

    >>> import inmem
    >>> from inmem.adapters.langgraph import InmemSaver
    >>> with inmem.open() as db:
    ...     saver = InmemSaver(db)
    ...     saver.get_tuple({"configurable": {"thread_id": "trip-7"}}) is None
    True

    Raises:
        InvalidInputError: an argument is wrong.
    """

    def __init__(
        self, db: inmem.Database | AsyncDatabase, *, fence: Fence = None,
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self._transactions = Transactions(db)
        if fence not in (None, "parent", "lease"):
            problem = f"fence must be None, 'parent' or 'lease', not {fence!r}"
            raise inmem.InvalidInputError(problem, argument="fence")
        self.db = db
        self._fence = fence
        self._work = SaverWork(self.serde, fence=fence)
        self._leases: dict[str, Any] = {}  # of threads, while they are held

    def __repr__(self) -> str:
        return f"InmemSaver({self.db!r}, fence={self._fence!r})"

    def get_next_version(self, current: str | int | None, channel: None) -> str:
        """A version after another one, which no other worker makes: the chance is 1 in 10^16."""
        if isinstance(current, str):
            current = int(current.partition(".")[0])
        return f"{(current or 0) + 1:032}.{random.random():016}"

    # --- in one transaction, by a thread or a loop --------------------------------------------

    def _do(self, fn: Callable[[Any], T], written: str = "") -> T:
        """Do a piece of work; `written` is the thread that it changes, if it needs its lease."""
        return self._transactions.do(fn, self._leases.get(written))

    async def _ado(self, fn: Callable[[Any], T], written: str = "") -> T:
        return await self._transactions.ado(fn, self._leases.get(written))

    def _take(self, work: Work[T], written: str = "") -> T:
        """Take the steps of some work."""
        return self._transactions.take(work, self._leases.get(written))

    async def _atake(self, work: Work[T], written: str = "") -> T:
        return await self._transactions.atake(work, self._leases.get(written))

    def _owned(self, thread_id: str) -> str:
        """The thread, to be written. With a fence of leases it must be held."""
        if self._fence == "lease" and thread_id not in self._leases:
            raise inmem.InvariantError(
                f"thread {thread_id!r} is written without its lease", hint="with saver.lease(thread_id): ..."
            )
        return thread_id

    # --- reading ------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that a config names, or the newest one of its namespace."""
        stored = self._take(self._work.get(place_of(config)))
        return None if stored is None else self._work.loaded(stored)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See `get_tuple`."""
        stored = await self._atake(self._work.get(place_of(config)))
        return None if stored is None else self._work.loaded(stored)

    def list(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, the newest of each namespace first; of all threads without a config.

        `filter` has metadata that are equal; `before` leaves those before a checkpoint.
        """
        listing = CheckpointListing(self._work, config, filter, before, limit)
        while (look := listing.next_look()) is not None:
            yield from listing.taken(self._do(look))

    async def alist(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """See `list`."""
        listing = CheckpointListing(self._work, config, filter, before, limit)
        while (look := listing.next_look()) is not None:
            for found in listing.taken(await self._ado(look)):
                yield found

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What the ancestors of a checkpoint wrote to channels since these were stored whole."""
        return self._work.histories(self._do(self._work.walk(place_of(config), channels)))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """See `get_delta_channel_history`."""
        return self._work.histories(await self._ado(self._work.walk(place_of(config), channels)))

    def list_lone(self, thread_id: str) -> Sequence[RunnableConfig]:
        """Checkpoints that came without the writes of their steps: a crash came between the two.

        The thread goes on well from such a one. But a replay from the
        checkpoint before runs the step's tasks again, and what they wrote to
        a delta channel is lost. With `durability="exit"` this is so by design.
        """
        return self._do(self._work.lone(thread_id))

    async def alist_lone(self, thread_id: str) -> Sequence[RunnableConfig]:
        """See `list_lone`."""
        return await self._ado(self._work.lone(thread_id))

    # --- writing ------------------------------------------------------------------------

    def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint with the values of its channels that are new: one commit.

        Values over 8 MiB go before it, in parts.

        Raises:
            InvariantError: its parent is not the newest checkpoint, and `fence` is `"parent"`.
            LeaseLostError: another worker has the thread's lease.
        """
        place, work = place_of(config), self._work
        prepared = work.prepared(place, config, checkpoint, metadata, new_versions)
        put = work.put(prepared, checkpoint["id"], metadata.get("source"))
        self._take(put, self._owned(place.thread_id))
        return config_of(place.thread_id, place.namespace, checkpoint["id"])

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See `put`."""
        place, work = place_of(config), self._work
        prepared = work.prepared(place, config, checkpoint, metadata, new_versions)
        put = work.put(prepared, checkpoint["id"], metadata.get("source"))
        await self._atake(put, self._owned(place.thread_id))
        return config_of(place.thread_id, place.namespace, checkpoint["id"])

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote at a checkpoint, which may come later: one commit."""
        place, work = place_of(config), self._work
        prepared = work.prepared_writes(place, writes, task_id, task_path)
        self._take(work.put_writes(prepared), self._owned(place.thread_id))

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """See `put_writes`."""
        place, work = place_of(config), self._work
        prepared = work.prepared_writes(place, writes, task_id, task_path)
        await self._atake(work.put_writes(prepared), self._owned(place.thread_id))

    # --- leases -------------------------------------------------------------------------

    @contextmanager
    def lease(
        self, thread_id: str, *, ttl_s: float = 30.0, wait_s: float | None = 0.0
    ) -> Iterator[inmem.HeldLease]:
        """Own a thread while a block runs: what this saver puts there is refused once that is over.

        Raises:
            LeaseHeldError: another worker has it, and did not give it back within `wait_s` seconds.
        """
        if not isinstance(self.db, inmem.Database):
            raise inmem.InvariantError(
                "this saver has an AsyncDatabase", hint="async with saver.alease(thread_id), or a Database."
            )
        run_id = self._do(run_of(thread_id))
        with self.db.leases.hold(run_id, _LEASE, ttl_s=ttl_s, wait_s=wait_s) as held:
            self._leases[thread_id] = held
            try:
                yield held
            finally:
                del self._leases[thread_id]

    @asynccontextmanager
    async def alease(
        self, thread_id: str, *, ttl_s: float = 30.0, wait_s: float | None = 0.0
    ) -> AsyncIterator[Any]:
        """See `lease`; for an `AsyncDatabase`."""
        if not isinstance(self.db, AsyncDatabase):
            raise inmem.InvariantError(
                "this saver has a Database", hint="with saver.lease(thread_id), or an AsyncDatabase."
            )
        run_id = await self._ado(run_of(thread_id))
        async with self.db.leases.hold(run_id, _LEASE, ttl_s=ttl_s, wait_s=wait_s) as held:
            self._leases[thread_id] = held
            try:
                yield held
            finally:
                del self._leases[thread_id]

    # --- deletion, copies ---------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread. Its id may be used again; a worker that still has it writes nothing more."""
        if not isinstance(self.db, inmem.Database):
            return self._transactions.wait(self.adelete_thread(thread_id))
        run_id = self._do(named_run(thread_id))
        if run_id is not None:
            with suppress(inmem.RunDeletedError, inmem.RunNotFoundError):  # somebody else did it
                self.db.runs.delete_run(run_id)
            self._do(forget(thread_id, run_id))
        return None

    async def adelete_thread(self, thread_id: str) -> None:
        """See `delete_thread`."""
        if isinstance(self.db, inmem.Database):
            return self.delete_thread(thread_id)
        run_id = await self._ado(named_run(thread_id))
        if run_id is not None:
            with suppress(inmem.RunDeletedError, inmem.RunNotFoundError):
                await self.db.runs.delete_run(run_id)
            await self._ado(forget(thread_id, run_id))
        return None

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints whose metadata have one of these `run_id`, with their writes.

        What a delta channel of a later checkpoint is made of may be among them: it is then lost.
        """
        for thread_id in self._do(all_threads):
            self._do(self._work.delete(thread_id, run_ids))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See `delete_for_runs`."""
        for thread_id in await self._ado(all_threads):
            await self._ado(self._work.delete(thread_id, run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints with their ancestors and writes; a new thread is visible when all is there.

        A thread that was there before must not be pruned while others are copied into it.
        """
        run_id = str(inmem.RunId.new())
        self._take(copies(source_thread_id, target_thread_id, run_id))
        self._do(name_copy(target_thread_id, run_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See `copy_thread`."""
        run_id = str(inmem.RunId.new())
        await self._atake(copies(source_thread_id, target_thread_id, run_id))
        await self._ado(name_copy(target_thread_id, run_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove all checkpoints of threads but the newest of each namespace, or with `"delete"` these too.

        Ancestors stay as far back as delta channels need them.
        """
        _check_strategy(strategy)
        for thread_id in thread_ids:
            if strategy == "delete":
                self.delete_thread(thread_id)
            else:
                self._do(self._work.prune(thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """See `prune`."""
        _check_strategy(strategy)
        for thread_id in thread_ids:
            if strategy == "delete":
                await self.adelete_thread(thread_id)
            else:
                await self._ado(self._work.prune(thread_id))


def _check_strategy(strategy: str) -> None:
    if strategy not in ("keep_latest", "delete"):
        raise inmem.InvalidInputError(
            f"strategy must be 'keep_latest' or 'delete', not {strategy!r}", argument="strategy"
        )
