"""What the saver does in the store, for threads and loops: functions of one transaction, or steps of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import _DeltaSnapshot

import inmem
from inmem.adapters.foreign import Packed
from inmem.adapters.langgraph.known import KnownThreads
from inmem.adapters.langgraph.layout import (
    StoredCheckpoint,
    checkpoint_key,
    checkpoint_prefix,
    checkpoints_prefix,
    index_of,
    is_ordered,
    namespace_key,
    thread_key,
    value_key,
    writes_key,
    writes_prefix,
)
from inmem.adapters.langgraph.naming import run_of
from inmem.adapters.langgraph.thread import Thread, found_in
from inmem.adapters.langgraph.transactions import Asked, Transacted, Work

_SMALL_BYTES: Final = 4096  # of a value that each checkpoint has again
_SMALL_BYTES_TOGETHER: Final = 16384
_PLAIN: Final = frozenset({bool, float, int, type(None)})  # and short texts: serialised with the checkpoint
_SHORT: Final = 256  # characters
_FIRST_LOOK: Final = 4  # records in which the newest checkpoint and its writes are looked for
_MOST_LOOKED: Final = 32
GOES_ON: Final = frozenset({"input", "loop"})  # sources of checkpoints that go on from their parent


class SavedPlace(NamedTuple):
    """What a config names."""

    thread_id: str
    namespace: str
    checkpoint_id: str | None


class Prepared(NamedTuple):
    """Entries to put, and the parts of long values that they name."""

    place: SavedPlace
    entries: dict[str, Any]
    packed: Packed


class Walked(NamedTuple):
    """What a walk has found of a delta channel."""

    writes: list[tuple[str, str, tuple[str, bytes]]]
    seed: tuple[Any] | None


def place_of(config: RunnableConfig) -> SavedPlace:
    """What a config names.

    Raises:
        InvalidInputError: no thread.
    """
    configurable = config.get("configurable", {})
    thread_id = configurable.get("thread_id")
    if thread_id is None:
        raise inmem.InvalidInputError("the config names no thread_id", argument="config")
    return SavedPlace(str(thread_id), configurable.get("checkpoint_ns", ""), get_checkpoint_id(config))


def config_of(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    """The config of a checkpoint."""
    return {"configurable": {
        "thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": checkpoint_id
    }}


class SaverWork:
    """The work of one saver. Values are serialised when it is made, and loaded after it was done."""

    def __init__(self, serde: SerializerProtocol, *, fence: str | None) -> None:
        self.serde = serde
        self._fence = fence
        self._known = KnownThreads()
        self._looked = _FIRST_LOOK

    def found(self, txn: Any, thread_id: str) -> Thread | None:
        """A thread, if there is one."""
        named = txn.kv.get(thread_key(thread_id))
        return None if named is None else Thread(thread_id, txn.at(named["run_id"]), self.serde)

    # --- reading ------------------------------------------------------------------------

    def get(self, place: SavedPlace) -> Work[StoredCheckpoint | None]:
        """A checkpoint, or the newest one of a namespace.

        A checkpoint and its writes are one range, read at once, and what they
        name does not change. So all of it is of the version of that range.
        """
        run_id = self._known.run(place.thread_id)
        is_old = run_id is not None
        while True:
            if run_id is None:
                named = yield Asked(None, lambda scope: scope.kv.get(thread_key(place.thread_id)))
                if named is None:
                    return None
                run_id = named["run_id"]
                self._known.learn(place.thread_id, run_id)
            found = yield from self._get(run_id, place)
            if found is not None or not is_old:
                return found
            self._known.forget(place.thread_id)  # it may have another run
            run_id, is_old = None, False

    def _get(self, run_id: str, place: SavedPlace) -> Work[StoredCheckpoint | None]:
        namespace = place.namespace
        if place.checkpoint_id is not None:
            prefix, limit = checkpoint_prefix(namespace, place.checkpoint_id), None
        else:
            prefix, limit = checkpoints_prefix(namespace), self._looked
        items = yield Asked(run_id, _last(prefix, limit))
        found = found_in(items, namespace)
        if limit is not None and found is not None:  # about as many are looked at as are wanted
            self._looked = max(len(found.records) + 1, limit - 1)
        elif limit is not None and len(items) == limit:
            self._looked = min(2 * limit, _MOST_LOOKED)
            return (yield from self._whole(run_id, place))
        if found is None:
            return None
        if not is_ordered(found.records):
            return (yield from self._whole(run_id, place._replace(checkpoint_id=found.id)))
        stored = StoredCheckpoint(place.thread_id, namespace, found)
        while keys := stored.lacks():
            there = yield Asked(run_id, _getting(keys))
            if any(key not in there and key not in stored.maybe for key in keys):  # it is being removed
                return (yield from self._whole(run_id, place))
            stored.add(keys, there)
        self._known.add(run_id, *(key for key in stored.blobs.values() if key not in stored.maybe))
        return stored

    def _whole(self, run_id: str, place: SavedPlace) -> Work[StoredCheckpoint | None]:
        """A checkpoint as it is in one version."""

        def whole(txn: Any) -> StoredCheckpoint | None:
            thread = Thread(place.thread_id, txn, self.serde)
            found = thread.found(place.namespace, place.checkpoint_id)
            return None if found is None else thread.whole(place.namespace, found)

        found: StoredCheckpoint | None = yield Transacted(run_id, whole)
        return found

    def loaded(self, stored: StoredCheckpoint) -> CheckpointTuple:
        """A checkpoint as LangGraph has it."""
        load, entry = self.serde.loads_typed, stored.entry
        checkpoint = load(stored.typed(entry["checkpoint"]))
        values = checkpoint["channel_values"]
        for channel, value in entry["values"].items():
            values[channel] = load(tuple(value))
        for channel, value in stored.large().items():
            values[channel] = load(value)
        parent = None
        if entry["parent"] is not None:
            parent = config_of(stored.thread_id, stored.namespace, entry["parent"])
        return CheckpointTuple(
            config=config_of(stored.thread_id, stored.namespace, stored.id), checkpoint=checkpoint,
            metadata=load(stored.typed(entry["metadata"])), parent_config=parent,
            pending_writes=[
                (each.task_id, each.channel, load(stored.typed(each.value))) for each in stored.writes
            ],
        )

    def walk(self, place: SavedPlace, channels: Sequence[str]) -> Callable[[Any], dict[str, Walked]]:
        """What the ancestors of a checkpoint wrote to channels since these were stored whole."""

        def walk(txn: Any) -> dict[str, Walked]:
            found = {channel: Walked([], None) for channel in channels}
            thread = self.found(txn, place.thread_id)
            if thread is None or not channels:
                return found
            target = place.checkpoint_id or thread.newest(place.namespace)
            for ancestor, entry in thread.ancestors(place.namespace, target):
                left = [channel for channel in channels if found[channel].seed is None]
                if not left:
                    break
                writes = thread.writes(place.namespace, ancestor)
                for channel in left:
                    of_it = [
                        (each.task_id, channel, thread.typed(each.value)) for each in writes
                        if each.channel == channel
                    ]
                    seed = thread.value(place.namespace, channel, entry)
                    found[channel] = Walked(of_it + found[channel].writes, seed)
            return found

        return walk

    def histories(self, walked: dict[str, Walked]) -> dict[str, DeltaChannelHistory]:
        """What a walk has found, as LangGraph has it."""
        found = {}
        for channel, (writes, seed) in walked.items():
            found[channel] = DeltaChannelHistory(
                writes=[(task_id, of, self.serde.loads_typed(value)) for task_id, of, value in writes]
            )
            if seed is not None:
                found[channel]["seed"] = seed[0]
        return found

    # --- writing ------------------------------------------------------------------------

    def prepared(
        self, place: SavedPlace, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Prepared:
        """A checkpoint, to be put. Large values that are new go with it, and those that may not be there."""
        packed = Packed()
        run_id = self._known.run(place.thread_id)
        rest: dict[str, Any] = {**checkpoint}
        versions = checkpoint["channel_versions"]
        entries: dict[str, Any] = {}
        values = rest["channel_values"]
        plain: dict[str, Any] = {}
        small: dict[str, list[Any]] = {}
        blobs: dict[str, str] = {}
        left = _SMALL_BYTES_TOGETHER
        for channel, value in values.items():
            if channel not in versions:
                continue
            kind = type(value)
            if kind in _PLAIN or (kind is str and len(value) <= _SHORT):
                plain[channel] = value
                continue
            version = str(versions[channel])
            key = value_key(place.namespace, channel, version)
            if channel in new_versions or not self._known.has(run_id, key):
                typed = self.serde.dumps_typed(value)
                size = len(typed[1])
                if size <= min(_SMALL_BYTES, left) and not isinstance(value, _DeltaSnapshot):
                    left -= size
                    small[channel] = [*typed]
                    continue
                entries[key] = packed.add(*typed)
            blobs[channel] = version
        rest["channel_values"] = plain
        deltas = {
            channel: str(versions[channel]) for channel in metadata.get("counters_since_delta_snapshot") or ()
            if channel in versions and channel not in values
        }
        entries[checkpoint_key(place.namespace, checkpoint["id"])] = {
            "step": metadata.get("step"), "source": metadata.get("source"), "parent": place.checkpoint_id,
            "checkpoint": self._entry(rest, packed),
            "metadata": self._entry(get_checkpoint_metadata(config, metadata), packed),
            "values": small, "blobs": blobs, "deltas": deltas,
        }
        return Prepared(place, entries, packed)

    def prepared_writes(
        self, place: SavedPlace, writes: Sequence[tuple[str, Any]], task_id: str, path: str
    ) -> Prepared:
        """Writes of a task, to be put."""
        if place.checkpoint_id is None:
            raise inmem.InvalidInputError("the config names no checkpoint_id to write at", argument="config")
        packed = Packed()
        record = {
            "task_id": task_id, "path": path, "writes": [
                [index_of(channel, position), channel, self._entry(value, packed)]
                for position, (channel, value) in enumerate(writes)
            ],
        }
        return Prepared(place, {writes_key(place.namespace, place.checkpoint_id, task_id): record}, packed)

    def _entry(self, value: Any, packed: Packed) -> list[Any]:
        return packed.add(*self.serde.dumps_typed(value))

    def put(self, prepared: Prepared, checkpoint_id: str, source: str | None) -> Work[None]:
        """Store a checkpoint; with a fence of parents only if it goes on from the newest one."""
        place = prepared.place

        def check(thread: Thread) -> None:
            newest = thread.newest(place.namespace)
            if newest not in (None, place.checkpoint_id, checkpoint_id):
                raise inmem.InvariantError(
                    f"another worker has gone on with thread {place.thread_id!r}: {newest} came after"
                    f" {place.checkpoint_id}",
                    hint="Stop this worker, or invoke the graph again from the newest checkpoint.",
                )

        is_checked = self._fence == "parent" and source in GOES_ON
        namespace = {namespace_key(place.namespace): place.namespace}
        run_id = yield from self._storing(prepared, namespace, check if is_checked else None)
        self._known.add(run_id, *namespace, *(key for key in prepared.entries if key.startswith("b/")))

    def put_writes(self, prepared: Prepared) -> Work[None]:
        """Store writes of a task."""
        yield from self._storing(prepared, {})

    def _storing(
        self, prepared: Prepared, once: dict[str, Any], check: Callable[[Thread], None] | None = None
    ) -> Work[str]:
        """Store entries as one commit, with those of `once` that may not be there; in which run that was.

        Parts of long values go before them, one in each commit. If the thread
        is pruned, or deleted, in the middle, they are stored again.
        """
        place, entries, packed = prepared
        thread_id = place.thread_id

        def all_of(run_id: str) -> dict[str, Any]:
            new = {key: value for key, value in once.items() if not self._known.has(run_id, key)}
            return {**new, **entries}

        def store(txn: Any, run_id: str) -> bool:
            thread = Thread(thread_id, txn.at(run_id), self.serde)
            if not packed.are_there(thread.kv):
                return False
            if check is not None:
                check(thread)
            thread.kv.put_many(all_of(run_id))
            return True

        def begin(txn: Any) -> tuple[str, bool]:
            run_id = run_of(thread_id)(txn)
            return run_id, not packed.parts and store(txn, run_id)

        is_done = False
        while not is_done:
            run_id = self._known.run(thread_id)
            if run_id is None:
                run_id, is_done = yield Transacted(None, begin)
                self._known.learn(thread_id, run_id)
                continue
            try:
                for part in packed.parts:
                    yield Transacted(run_id, _putting(dict([part])))
                if self._fence is None and not packed.parts:  # what looks at nothing needs no transaction
                    yield Asked(run_id, _putting(all_of(run_id)))
                    is_done = True
                else:
                    is_done = yield Transacted(run_id, functools.partial(store, run_id=run_id))
            except inmem.RunDeletedError:
                self._known.forget(thread_id)
        assert run_id is not None
        return run_id

    def lone(self, thread_id: str) -> Callable[[Any], list[RunnableConfig]]:
        """Checkpoints of steps of which no writes are stored."""

        def lone(txn: Any) -> list[RunnableConfig]:
            thread = self.found(txn, thread_id)
            return [] if thread is None else [
                config_of(thread_id, namespace, checkpoint_id)
                for namespace, (checkpoint_id, entry, _) in thread.all()
                if entry["source"] == "loop" and entry["parent"] is not None
                and thread.entry(namespace, entry["parent"]) is not None
                and not thread.kv.list(writes_prefix(namespace, entry["parent"]), limit=1)
            ]

        return lone

    # --- deletion, copies ---------------------------------------------------------------

    def delete(self, thread_id: str, run_ids: Sequence[str]) -> Callable[[Any], None]:
        """Remove the checkpoints of a thread that some runs have made."""
        gone = frozenset(run_ids)

        def delete(txn: Any) -> None:
            thread = self.found(txn, thread_id)
            if thread is None:
                return
            made = [
                (namespace, found.id) for namespace, found in thread.all()
                if thread.metadata(found.entry).get("run_id") in gone
            ]
            for place in made:
                thread.delete(*place)
            if made:
                thread.sweep()

        return delete

    def prune(self, thread_id: str) -> Callable[[Any], None]:
        """Remove the checkpoints of a thread that nobody needs any more."""

        def prune(txn: Any) -> None:
            thread = self.found(txn, thread_id)
            if thread is None:
                return
            needed = {namespace: thread.needed(namespace) for namespace in thread.namespaces()}
            for namespace, found in [*thread.all()]:
                if found.id not in needed[namespace]:
                    thread.delete(namespace, found.id)
            thread.sweep()

        return prune


def _putting(entries: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda scope: scope.kv.put_many(entries)


def _last(prefix: str, limit: int | None) -> Callable[[Any], Any]:
    return lambda scope: scope.kv.list_with_values(prefix, reverse=True, limit=limit)


def _getting(keys: list[str]) -> Callable[[Any], Any]:
    return lambda scope: scope.kv.get_many(keys)
