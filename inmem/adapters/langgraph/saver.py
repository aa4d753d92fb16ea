"""The saver of checkpoints: `InmemSaver`. See `layout` for what is stored.

Invariant: a checkpoint is one commit with the values of its channels, and it
becomes visible with them. Whatever is read of a checkpoint is of one version.
Values are serialised before anything is sent, in the thread that hands them
over, so a program may change its state right after.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, Literal, NamedTuple, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

import inmem
from inmem.adapters.foreign import Parts, hashed
from inmem.adapters.langgraph.layout import (
    EMPTY,
    StoredCheckpoint,
    ThreadReads,
    ThreadWrites,
    Write,
    all_threads,
    checkpoint_key,
    index_of,
    thread_key,
    value_key,
    writes_prefix,
)
from inmem.aio import AsyncDatabase

T = TypeVar("T")

_PAGE: Final = 32  # checkpoints that one look of `list` loads
_PAGE_BYTES: Final = 4 * 1024 * 1024  # of parts in one commit
_GUARDED: Final = frozenset({"input", "loop"})  # sources of checkpoints that go on from their parent
_LEASE: Final = "@run"

Fence = Literal["parent", "lease"] | None


class _Place(NamedTuple):
    """What a config names."""

    thread_id: str
    namespace: str
    checkpoint_id: str | None


class _ToPut(NamedTuple):
    """What is put: entries, and before them the parts of long values."""

    entries: dict[str, Any]
    parts: list[tuple[str, bytes]]


class InmemSaver(BaseCheckpointSaver[str]):
    """Checkpoints of LangGraph in a store of inmem, for many processes on one thread at a time.

    `db` is a `Database`, for graphs that are invoked, or an `AsyncDatabase`,
    for graphs that are awaited; each has the methods of its kind. With a
    `Database` the awaited methods do their work in the loop, which takes
    some hundred microseconds each.

    `fence` says what becomes of two workers that resume one thread at once,
    of which LangGraph lets both succeed. None: both, and history forks.
    `"parent"`: who puts a checkpoint whose parent is not the newest one gets
    `InvariantError`; replays and `update_state` may still fork. `"lease"`:
    a thread is written within `with saver.lease(thread_id)` alone, which one
    worker at a time can enter; whoever has lost it gets `LeaseLostError`.

    >>> import inmem
    >>> from inmem.adapters.langgraph import InmemSaver
    >>> with inmem.open() as db:
    ...     saver = InmemSaver(db)
    ...     saver.get_tuple({"configurable": {"thread_id": "trip-7"}}) is None
    True
    """

    def __init__(
        self, db: inmem.Database | AsyncDatabase, *, fence: Fence = None, serde: SerializerProtocol | None = None
    ) -> None:
        super().__init__(serde=serde)
        if not isinstance(db, inmem.Database | AsyncDatabase):
            raise inmem.InvalidInputError(f"db must be a database, not {type(db).__name__}", argument="db")
        if fence not in (None, "parent", "lease"):
            raise inmem.InvalidInputError("fence must be None, 'parent' or 'lease'", argument="fence")
        self.db = db
        self._fence = fence
        self._leases: dict[str, Any] = {}  # of threads, while they are held

    def __repr__(self) -> str:
        return f"InmemSaver({self.db!r}, fence={self._fence!r})"

    def get_next_version(self, current: str | int | None, channel: None) -> str:
        """A version after another one, which no other worker makes: the chance is 1 in 10^16."""
        number = 0 if current is None else current if isinstance(current, int) else int(current.partition(".")[0])
        return f"{number + 1:032}.{random.random():016}"

    # --- how it is done: in one transaction, here or in a loop ------------------------------

    def _do(self, fn: Callable[[Any], T], thread_id: str | None = None) -> T:
        if not isinstance(self.db, inmem.Database):
            raise inmem.InvariantError(
                "this saver is of an AsyncDatabase: its methods are awaited", hint="Use ainvoke, aput and so on."
            )
        result: T = self.db.transact(self.db.shared("agent"), fn, lease=self._leases.get(thread_id or ""))
        return result

    async def _ado(self, fn: Callable[[Any], T], thread_id: str | None = None) -> T:
        if isinstance(self.db, inmem.Database):
            return self._do(fn, thread_id)
        result: T = await self.db.transact(self.db.shared("agent"), fn, lease=self._leases.get(thread_id or ""))
        return result

    @staticmethod
    def _reads(txn: Any, thread_id: str) -> ThreadReads | None:
        found = txn.kv.get(thread_key(thread_id))
        return None if found is None else ThreadReads(thread_id, txn.at(found["run_id"]))

    @staticmethod
    def _writes(txn: Any, thread_id: str) -> ThreadWrites | None:
        found = txn.kv.get(thread_key(thread_id))
        return None if found is None else ThreadWrites(thread_id, txn.at(found["run_id"]))

    @staticmethod
    def _begun(txn: Any, thread_id: str) -> ThreadWrites:
        """The run of a thread, made if need be."""
        key = thread_key(thread_id)
        found = txn.kv.get(key)
        if found is None:
            found = {"thread_id": thread_id, "run_id": str(inmem.RunId.new())}
            txn.kv.put(key, found)
            run = txn.at(found["run_id"])
            run.runs.create_run(tags=["langgraph"], metadata={"thread_id": thread_id})
        return ThreadWrites(thread_id, txn.at(found["run_id"]))

    # --- reading ------------------------------------------------------------------------

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that a config names, or the newest one of its namespace."""
        return self._loaded(self._do(self._getting(_place(config))))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """See `get_tuple`."""
        return self._loaded(await self._ado(self._getting(_place(config))))

    def _getting(self, place: _Place) -> Callable[[Any], StoredCheckpoint | None]:
        def get(txn: Any) -> StoredCheckpoint | None:
            thread = self._reads(txn, place.thread_id)
            if thread is None:
                return None
            found = place.checkpoint_id or thread.newest(place.namespace)
            entry = None if found is None else thread.entry(place.namespace, found)
            return None if entry is None else self._stored(thread, place.namespace, found or "", entry)

        return get

    def _stored(
        self, thread: ThreadReads, namespace: str, checkpoint_id: str, entry: dict[str, Any]
    ) -> StoredCheckpoint:
        checkpoint = thread.typed(entry["checkpoint"])
        versions = self.serde.loads_typed(checkpoint)["channel_versions"]
        return StoredCheckpoint(
            thread.thread_id, namespace, checkpoint_id, checkpoint, thread.typed(entry["metadata"]),
            entry["parent"], thread.values(namespace, versions), thread.writes(namespace, checkpoint_id),
        )

    def _loaded(self, stored: StoredCheckpoint | None) -> CheckpointTuple | None:
        if stored is None:
            return None
        checkpoint = self.serde.loads_typed(stored.checkpoint)
        values = {channel: self.serde.loads_typed(value) for channel, value in stored.values.items()}
        parent = None if stored.parent is None else _config(stored.thread_id, stored.namespace, stored.parent)
        return CheckpointTuple(
            config=_config(stored.thread_id, stored.namespace, stored.id),
            checkpoint=Checkpoint(**{**checkpoint, "channel_values": values}),
            metadata=self.serde.loads_typed(stored.metadata),
            parent_config=parent,
            pending_writes=self._loaded_writes(stored.writes),
        )

    def _loaded_writes(self, writes: Iterable[Write]) -> list[tuple[str, str, Any]]:
        return [(each.task_id, each.channel, self.serde.loads_typed(each.value)) for each in writes]

    def list(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, the newest of each namespace first; of all threads without a config.

        `filter` has metadata that are equal; `before` leaves those before a checkpoint.
        """
        looking = _Looking(self, config, filter, before, limit)
        while (page := looking.next_look()) is not None:
            yield from looking.taken(self._do(page))

    async def alist(
        self, config: RunnableConfig | None, *, filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None, limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """See `list`."""
        looking = _Looking(self, config, filter, before, limit)
        while (page := looking.next_look()) is not None:
            for found in looking.taken(await self._ado(page)):
                yield found

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What the ancestors of a checkpoint wrote to channels since these were stored whole. One transaction."""
        return self._histories(self._do(self._walking(_place(config), channels)), channels)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """See `get_delta_channel_history`."""
        return self._histories(await self._ado(self._walking(_place(config), channels)), channels)

    def _walking(self, place: _Place, channels: Sequence[str]) -> Callable[[Any], dict[str, _Walked]]:
        def walk(txn: Any) -> dict[str, _Walked]:
            found: dict[str, _Walked] = {channel: _Walked([], None) for channel in channels}
            thread = self._reads(txn, place.thread_id)
            if thread is None or not channels:
                return found
            target = place.checkpoint_id or thread.newest(place.namespace)
            for _, versions, writes in self._ancestors(thread, place.namespace, target):
                left = [channel for channel in channels if found[channel].seed is None]
                if not left:
                    break
                for channel in left:
                    of_it = [write for write in writes if write.channel == channel]
                    seed = thread.value(place.namespace, channel, versions.get(channel))
                    found[channel] = _Walked(of_it + found[channel].writes, seed)
            return found

        return walk

    def _ancestors(
        self, thread: ThreadReads, namespace: str, checkpoint_id: str | None
    ) -> Iterator[tuple[str, ChannelVersions, Sequence[Write]]]:
        """Id, channel versions and writes of the ancestors of a checkpoint, its parent first."""
        entry = None if checkpoint_id is None else thread.entry(namespace, checkpoint_id)
        while entry is not None and (parent := entry["parent"]) is not None:
            entry = thread.entry(namespace, parent)
            if entry is not None:
                checkpoint = self.serde.loads_typed(thread.typed(entry["checkpoint"]))
                yield parent, checkpoint["channel_versions"], thread.writes(namespace, parent)

    def _histories(
        self, walked: dict[str, _Walked], channels: Sequence[str]
    ) -> dict[str, DeltaChannelHistory]:
        found = {}
        for channel in channels:
            history = DeltaChannelHistory(writes=self._loaded_writes(walked[channel].writes))
            if (seed := walked[channel].seed) is not None:
                history["seed"] = self.serde.loads_typed(seed)
            found[channel] = history
        return found

    # --- writing ------------------------------------------------------------------------

    def put(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint with the values of its channels that are new: one commit.

        Raises:
            InvariantError: its parent is not the newest checkpoint, and `fence` is `"parent"`.
            LeaseLostError: another worker has the thread's lease.
        """
        place = _place(config)
        put = self._checkpoint(place, config, checkpoint, metadata, new_versions)
        for part in self._storing(place.thread_id, put.parts):
            self._do(part, place.thread_id)
        self._do(self._putting(place, checkpoint["id"], metadata.get("source"), put), place.thread_id)
        return _config(place.thread_id, place.namespace, checkpoint["id"])

    async def aput(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """See `put`."""
        place = _place(config)
        put = self._checkpoint(place, config, checkpoint, metadata, new_versions)
        for part in self._storing(place.thread_id, put.parts):
            await self._ado(part, place.thread_id)
        await self._ado(self._putting(place, checkpoint["id"], metadata.get("source"), put), place.thread_id)
        return _config(place.thread_id, place.namespace, checkpoint["id"])

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what a task wrote at a checkpoint, which may come later: one commit."""
        place, entries, parts = self._task(config, writes)
        for part in self._storing(place.thread_id, parts):
            self._do(part, place.thread_id)
        self._do(self._putting_writes(place, entries, task_id, task_path), place.thread_id)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """See `put_writes`."""
        place, entries, parts = self._task(config, writes)
        for part in self._storing(place.thread_id, parts):
            await self._ado(part, place.thread_id)
        await self._ado(self._putting_writes(place, entries, task_id, task_path), place.thread_id)

    def _checkpoint(
        self, place: _Place, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> _ToPut:
        parts: list[tuple[str, bytes]] = []
        rest: dict[str, Any] = {**checkpoint}
        values = rest.pop("channel_values")
        entries: dict[str, Any] = {f"n/{hashed(place.namespace)}": place.namespace}
        for channel, version in new_versions.items():
            value = self._entry(values[channel], parts) if channel in values else [EMPTY, b""]
            entries[value_key(place.namespace, channel, version)] = value
        entries[checkpoint_key(place.namespace, checkpoint["id"])] = {
            "checkpoint": self._entry(rest, parts),
            "metadata": self._entry(get_checkpoint_metadata(config, metadata), parts),
            "parent": place.checkpoint_id,
        }
        return _ToPut(entries, parts)

    def _task(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]]
    ) -> tuple[_Place, list[tuple[int, str, list[Any]]], list[tuple[str, bytes]]]:
        place = _place(config)
        if place.checkpoint_id is None:
            raise inmem.InvalidInputError("the config names no checkpoint_id to write at", argument="config")
        parts: list[tuple[str, bytes]] = []
        entries = [
            (index_of(channel, position), channel, self._entry(value, parts))
            for position, (channel, value) in enumerate(writes)
        ]
        return place, entries, parts

    def _entry(self, value: Any, parts: list[tuple[str, bytes]]) -> list[Any]:
        kind, data = self.serde.dumps_typed(value)
        entry, more = Parts.split(kind, data)
        parts.extend(more)
        return entry

    def _storing(self, thread_id: str, parts: list[tuple[str, bytes]]) -> Iterator[Callable[[Any], None]]:
        """Commits for parts of long values, before what names them."""
        for key, data in parts:

            def put(txn: Any, key: str = key, data: bytes = data) -> None:
                self._begun(txn, thread_id).kv.put(key, data)

            yield put

    def _putting(
        self, place: _Place, checkpoint_id: str, source: str | None, put: _ToPut
    ) -> Callable[[Any], None]:
        self._check_held(place.thread_id)

        def write(txn: Any) -> None:
            thread = self._begun(txn, place.thread_id)
            if self._fence == "parent" and source in _GUARDED:
                newest = thread.newest(place.namespace)
                if newest not in (None, place.checkpoint_id, checkpoint_id):
                    raise inmem.InvariantError(
                        f"another worker has gone on with thread {place.thread_id!r}: {newest} came after"
                        f" {place.checkpoint_id}",
                        hint="Stop this worker, or invoke the graph again from the newest checkpoint.",
                    )
            thread.kv.put_many(put.entries)

        return write

    def _putting_writes(
        self, place: _Place, entries: list[tuple[int, str, list[Any]]], task_id: str, task_path: str
    ) -> Callable[[Any], None]:
        self._check_held(place.thread_id)

        def write(txn: Any) -> None:
            thread = self._begun(txn, place.thread_id)
            thread.put_writes(place.namespace, place.checkpoint_id or "", task_id, task_path, entries)

        return write

    def _check_held(self, thread_id: str) -> None:
        if self._fence == "lease" and thread_id not in self._leases:
            raise inmem.InvariantError(
                f"thread {thread_id!r} is written without its lease", hint="with saver.lease(thread_id): ..."
            )

    # --- leases -------------------------------------------------------------------------

    @contextmanager
    def lease(
        self, thread_id: str, *, ttl_s: float = 30.0, wait_s: float | None = 0.0
    ) -> Iterator[inmem.HeldLease]:
        """Own a thread while a block runs: every put of this saver to it is refused once that is over.

        Raises:
            LeaseHeldError: another worker has it, and did not give it back within `wait_s` seconds.
        """
        assert isinstance(self.db, inmem.Database), "for an AsyncDatabase: async with saver.alease(thread_id)"
        with self.db.leases.hold(self._do(self._run_of(thread_id)), _LEASE, ttl_s=ttl_s, wait_s=wait_s) as held:
            self._leases[thread_id] = held
            try:
                yield held
            finally:
                del self._leases[thread_id]

    @asynccontextmanager
    async def alease(
        self, thread_id: str, *, ttl_s: float = 30.0, wait_s: float | None = 0.0
    ) -> AsyncIterator[Any]:
        """See `lease`."""
        assert isinstance(self.db, AsyncDatabase), "for a Database: with saver.lease(thread_id)"
        run_id = await self._ado(self._run_of(thread_id))
        async with self.db.leases.hold(run_id, _LEASE, ttl_s=ttl_s, wait_s=wait_s) as held:
            self._leases[thread_id] = held
            try:
                yield held
            finally:
                del self._leases[thread_id]

    def _run_of(self, thread_id: str) -> Callable[[Any], str]:
        def run_of(txn: Any) -> str:
            self._begun(txn, thread_id)
            run_id: str = txn.kv.get(thread_key(thread_id))["run_id"]
            return run_id

        return run_of

    # --- deletion, copies ---------------------------------------------------------------

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread. Its id may be used again; a worker that still has it writes nothing more."""
        run_id = self._do(_forgetting(thread_id))
        if run_id is not None:
            assert isinstance(self.db, inmem.Database)
            self.db.runs.delete_run(run_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """See `delete_thread`."""
        run_id = await self._ado(_forgetting(thread_id))
        if run_id is not None:
            deleted = self.db.runs.delete_run(run_id)
            if not isinstance(deleted, inmem.DeletedRun):
                await deleted

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints whose metadata have one of these `run_id`, with their writes.

        What a delta channel of a later checkpoint is made of may be among them: it is then lost.
        """
        for thread_id in self._do(all_threads):
            self._do(self._deleting(thread_id, frozenset(run_ids)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """See `delete_for_runs`."""
        for thread_id in await self._ado(all_threads):
            await self._ado(self._deleting(thread_id, frozenset(run_ids)))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints with their ancestors and writes; a new thread is visible when all is there."""
        run_id = str(inmem.RunId.new())
        for checkpoint in self._do(self._all_of(source_thread_id)):
            self._do(self._copying(source_thread_id, target_thread_id, run_id, checkpoint))
        self._do(_naming(target_thread_id, run_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See `copy_thread`."""
        run_id = str(inmem.RunId.new())
        for checkpoint in await self._ado(self._all_of(source_thread_id)):
            await self._ado(self._copying(source_thread_id, target_thread_id, run_id, checkpoint))
        await self._ado(_naming(target_thread_id, run_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove all checkpoints of threads but the newest of each namespace, or with `"delete"` these too.

        Ancestors stay as far back as delta channels need them.
        """
        for thread_id in thread_ids:
            if _check_strategy(strategy) == "delete":
                self.delete_thread(thread_id)
            else:
                self._do(self._pruning(thread_id))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """See `prune`."""
        for thread_id in thread_ids:
            if _check_strategy(strategy) == "delete":
                await self.adelete_thread(thread_id)
            else:
                await self._ado(self._pruning(thread_id))

    def _versions(self, thread: ThreadReads) -> Iterator[tuple[str, ChannelVersions]]:
        """Namespace and channel versions of all checkpoints."""
        for namespace in thread.namespaces():
            for checkpoint_id in thread.ids(namespace):
                entry = thread.entry(namespace, checkpoint_id)
                if entry is not None:
                    checkpoint = self.serde.loads_typed(thread.typed(entry["checkpoint"]))
                    yield namespace, checkpoint["channel_versions"]

    def _deleting(self, thread_id: str, run_ids: frozenset[str]) -> Callable[[Any], None]:
        def delete(txn: Any) -> None:
            thread = self._writes(txn, thread_id)
            if thread is None:
                return
            gone = [
                (namespace, checkpoint_id)
                for namespace in thread.namespaces() for checkpoint_id in thread.ids(namespace)
                if (entry := thread.entry(namespace, checkpoint_id)) is not None
                and self.serde.loads_typed(thread.typed(entry["metadata"])).get("run_id") in run_ids
            ]
            for namespace, checkpoint_id in gone:
                thread.delete(namespace, checkpoint_id)
            if gone:
                thread.sweep(self._versions(thread))

        return delete

    def _pruning(self, thread_id: str) -> Callable[[Any], None]:
        def prune(txn: Any) -> None:
            thread = self._writes(txn, thread_id)
            if thread is None:
                return
            for namespace in thread.namespaces():
                kept = self._kept(thread, namespace)
                for checkpoint_id in thread.ids(namespace):
                    if checkpoint_id not in kept:
                        thread.delete(namespace, checkpoint_id)
            thread.sweep(self._versions(thread))

        return prune

    def _kept(self, thread: ThreadReads, namespace: str) -> set[str]:
        """The newest checkpoint, and its ancestors back to where each delta channel was stored whole."""
        newest = thread.newest(namespace)
        entry = None if newest is None else thread.entry(namespace, newest)
        if newest is None or entry is None:
            return set()
        kept = {newest}
        metadata = self.serde.loads_typed(thread.typed(entry["metadata"]))
        checkpoint = self.serde.loads_typed(thread.typed(entry["checkpoint"]))
        left = {
            channel for channel in metadata.get("counters_since_delta_snapshot", ())
            if thread.value(namespace, channel, checkpoint["channel_versions"].get(channel)) is None
        }
        for ancestor, versions, _ in self._ancestors(thread, namespace, newest):
            if not left:
                break
            kept.add(ancestor)
            left = {
                channel for channel in left if thread.value(namespace, channel, versions.get(channel)) is None
            }
        return kept

    def _all_of(self, thread_id: str) -> Callable[[Any], list[tuple[str, str]]]:
        def all_of(txn: Any) -> list[tuple[str, str]]:
            thread = self._reads(txn, thread_id)
            return [] if thread is None else [
                (namespace, checkpoint_id)
                for namespace in thread.namespaces() for checkpoint_id in reversed(thread.ids(namespace))
            ]

        return all_of

    def _copying(
        self, source_id: str, target_id: str, run_id: str, checkpoint: tuple[str, str]
    ) -> Callable[[Any], None]:
        namespace, checkpoint_id = checkpoint

        def copy(txn: Any) -> None:
            source = self._reads(txn, source_id)
            entry = None if source is None else source.entry(namespace, checkpoint_id)
            if source is None or entry is None:
                return  # deleted meanwhile
            target = self._writes(txn, target_id) or ThreadWrites(target_id, txn.at(run_id))
            versions = self.serde.loads_typed(source.typed(entry["checkpoint"]))["channel_versions"]
            keys = [value_key(namespace, channel, version) for channel, version in versions.items()]
            found = source.kv.get_many(keys)
            found |= dict(source.kv.list_with_values(writes_prefix(namespace, checkpoint_id)))
            found[checkpoint_key(namespace, checkpoint_id)] = entry
            found[f"n/{hashed(namespace)}"] = namespace
            target.kv.put_many(found | source.kv.get_many(_parts_named(found)))

        return copy


class _Walked(NamedTuple):
    """What a walk has found of a delta channel."""

    writes: list[Write]
    seed: tuple[str, bytes] | None


class _Looking:
    """A walk through checkpoints, a page of them in each transaction."""

    def __init__(
        self, saver: InmemSaver, config: RunnableConfig | None, wanted: dict[str, Any] | None,
        before: RunnableConfig | None, limit: int | None,
    ) -> None:
        self._saver = saver
        configurable = config["configurable"] if config else {}
        self._thread_ids: list[str] | None = None
        if "thread_id" in configurable:
            self._thread_ids = [configurable["thread_id"]]
        self._namespace: str | None = configurable.get("checkpoint_ns")
        self._only: str | None = configurable.get("checkpoint_id")
        self._wanted = wanted or {}
        self._before = get_checkpoint_id(before) if before else None
        self._left = limit
        self._places: list[tuple[str, str, str | None]] | None = None  # thread, namespace, before which id

    def next_look(self) -> Callable[[Any], list[StoredCheckpoint]] | None:
        """What reads the next page; None at the end."""
        if self._places == [] or (self._left is not None and self._left <= 0):
            return None
        return self._look

    def _look(self, txn: Any) -> list[StoredCheckpoint]:
        found: list[StoredCheckpoint] = []
        places = self._all_places(txn) if self._places is None else [*self._places]
        while places and len(found) < _PAGE:
            thread_id, namespace, before = places.pop()
            thread = self._saver._reads(txn, thread_id)
            ids = [] if thread is None else self._ids(thread, namespace, before)
            for checkpoint_id in ids:
                assert thread is not None
                entry = thread.entry(namespace, checkpoint_id)
                if entry is not None and self._matches(thread, entry):
                    found.append(self._saver._stored(thread, namespace, checkpoint_id, entry))
            if len(ids) == _PAGE:
                places.append((thread_id, namespace, ids[-1]))
        self._next = places
        return found

    def taken(self, found: list[StoredCheckpoint]) -> Iterator[CheckpointTuple]:
        """The checkpoints of a page, as far as they are wanted."""
        self._places = self._next
        for stored in found:
            if self._left is not None:
                if self._left <= 0:
                    return
                self._left -= 1
            loaded = self._saver._loaded(stored)
            assert loaded is not None
            yield loaded

    def _all_places(self, txn: Any) -> list[tuple[str, str, str | None]]:
        """The last one is the next one."""
        places: list[tuple[str, str, str | None]] = []
        for thread_id in all_threads(txn) if self._thread_ids is None else self._thread_ids:
            thread = self._saver._reads(txn, thread_id)
            if thread is not None:
                namespaces = thread.namespaces() if self._namespace is None else [self._namespace]
                places += [(thread_id, namespace, self._before) for namespace in namespaces]
        return places[::-1]

    def _ids(self, thread: ThreadReads, namespace: str, before: str | None) -> list[str]:
        if self._only is None:
            return thread.ids(namespace, before=before, limit=_PAGE)
        return [self._only] if before is None or self._only < before else []

    def _matches(self, thread: ThreadReads, entry: dict[str, Any]) -> bool:
        if not self._wanted:
            return True
        metadata = self._saver.serde.loads_typed(thread.typed(entry["metadata"]))
        return all(metadata.get(name) == value for name, value in self._wanted.items())


def _place(config: RunnableConfig) -> _Place:
    configurable = config.get("configurable", {})
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise inmem.InvalidInputError("the config names no thread_id", argument="config")
    return _Place(str(thread_id), configurable.get("checkpoint_ns", ""), get_checkpoint_id(config))


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {
        "thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id
    }}


def _forgetting(thread_id: str) -> Callable[[Any], str | None]:
    def forget(txn: Any) -> str | None:
        found = txn.kv.get(thread_key(thread_id))
        if found is None:
            return None
        txn.kv.delete(thread_key(thread_id))
        run_id: str = found["run_id"]
        return run_id

    return forget


def _naming(thread_id: str, run_id: str) -> Callable[[Any], None]:
    """A copied thread becomes visible, unless it was there before and got the copies itself."""

    def name(txn: Any) -> None:
        run = txn.at(run_id)
        if txn.kv.get(thread_key(thread_id)) is None and run.kv.count("n/"):
            txn.kv.put(thread_key(thread_id), {"thread_id": thread_id, "run_id": run_id})
            run.runs.create_run(tags=["langgraph"], metadata={"thread_id": thread_id})

    return name


def _parts_named(entries: dict[str, Any]) -> Iterator[str]:
    from inmem.adapters.langgraph.layout import parts_of

    for key, entry in entries.items():
        if key.startswith("b/"):
            yield from parts_of(entry)
        elif key.startswith("w/"):
            yield from parts_of(entry["value"])
        elif key.startswith("c/"):
            yield from parts_of(entry["checkpoint"])
            yield from parts_of(entry["metadata"])


def _check_strategy(strategy: str) -> str:
    if strategy not in ("keep_latest", "delete"):
        raise inmem.InvalidInputError("strategy must be 'keep_latest' or 'delete'", argument="strategy")
    return strategy
