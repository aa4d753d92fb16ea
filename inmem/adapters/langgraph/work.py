"""What the saver does in the store: each piece is a function of one transaction, for threads and loops."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
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

import inmem
from inmem.adapters.foreign import Packed
from inmem.adapters.langgraph.layout import (
    EMPTY,
    StoredCheckpoint,
    Write,
    checkpoint_key,
    index_of,
    namespace_key,
    thread_key,
    value_key,
    writes_prefix,
)
from inmem.adapters.langgraph.thread import Thread

_COPIED: Final = 512  # entries that one commit copies, at most
_COPIED_BYTES: Final = 4 * 1024 * 1024  # and of what size: the last one comes on top
GOES_ON: Final = frozenset({"input", "loop"})  # sources of checkpoints that go on from their parent


class SavedPlace(NamedTuple):
    """What a config names."""

    thread_id: str
    namespace: str
    checkpoint_id: str | None


class Prepared(NamedTuple):
    """Entries to put, and the parts of long values that they name."""

    entries: Any
    packed: Packed


class Walked(NamedTuple):
    """What a walk has found of a delta channel."""

    writes: list[Write]
    seed: tuple[str, bytes] | None


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

    def __init__(self, serde: SerializerProtocol, *, is_fenced: bool) -> None:
        self.serde = serde
        self._is_fenced = is_fenced

    def found(self, txn: Any, thread_id: str) -> Thread | None:
        """A thread, if there is one."""
        named = txn.kv.get(thread_key(thread_id))
        return None if named is None else Thread(thread_id, txn.at(named["run_id"]), self.serde)

    def begun(self, txn: Any, thread_id: str) -> Thread:
        """A thread, made if need be."""
        return Thread(thread_id, txn.at(run_of(thread_id)(txn)), self.serde)

    # --- reading ------------------------------------------------------------------------

    def get(self, place: SavedPlace) -> Callable[[Any], StoredCheckpoint | None]:
        """A checkpoint, or the newest one of a namespace."""

        def get(txn: Any) -> StoredCheckpoint | None:
            thread = self.found(txn, place.thread_id)
            if thread is None:
                return None
            found = thread.found(place.namespace, place.checkpoint_id)
            return None if found is None else thread.whole(place.namespace, *found)

        return get

    def loaded(self, stored: StoredCheckpoint) -> CheckpointTuple:
        """A checkpoint as LangGraph has it."""
        load = self.serde.loads_typed
        values = {channel: load(value) for channel, value in stored.values.items()}
        parent = None
        if stored.parent is not None:
            parent = config_of(stored.thread_id, stored.namespace, stored.parent)
        return CheckpointTuple(
            config=config_of(stored.thread_id, stored.namespace, stored.id),
            checkpoint=stored.checkpoint | {"channel_values": values},
            metadata=load(stored.metadata), parent_config=parent,
            pending_writes=self._loaded_writes(stored.writes),
        )

    def _loaded_writes(self, writes: Iterable[Write]) -> list[tuple[str, str, Any]]:
        return [(each.task_id, each.channel, self.serde.loads_typed(each.value)) for each in writes]

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
                versions = thread.checkpoint(entry)["channel_versions"]
                writes = thread.writes(place.namespace, ancestor)
                for channel in left:
                    of_it = [write for write in writes if write.channel == channel]
                    seed = thread.value(place.namespace, channel, versions.get(channel))
                    found[channel] = Walked(of_it + found[channel].writes, seed)
            return found

        return walk

    def histories(self, walked: dict[str, Walked]) -> dict[str, DeltaChannelHistory]:
        """What a walk has found, as LangGraph has it."""
        found = {}
        for channel, (writes, seed) in walked.items():
            found[channel] = DeltaChannelHistory(writes=self._loaded_writes(writes))
            if seed is not None:
                found[channel]["seed"] = self.serde.loads_typed(seed)
        return found

    # --- writing ------------------------------------------------------------------------

    def prepared(
        self, place: SavedPlace, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Prepared:
        """A checkpoint, to be put."""
        packed = Packed()
        rest: dict[str, Any] = {**checkpoint}
        values = rest.pop("channel_values")
        entries: dict[str, Any] = {namespace_key(place.namespace): place.namespace}
        for channel, version in new_versions.items():
            value = self._entry(values[channel], packed) if channel in values else [EMPTY, b""]
            entries[value_key(place.namespace, channel, version)] = value
        entries[checkpoint_key(place.namespace, checkpoint["id"])] = {
            "step": metadata.get("step"), "source": metadata.get("source"), "parent": place.checkpoint_id,
            "checkpoint": self._entry(rest, packed),
            "metadata": self._entry(get_checkpoint_metadata(config, metadata), packed),
        }
        return Prepared(entries, packed)

    def prepared_writes(self, place: SavedPlace, writes: Sequence[tuple[str, Any]]) -> Prepared:
        """Writes of a task, to be put."""
        if place.checkpoint_id is None:
            raise inmem.InvalidInputError("the config names no checkpoint_id to write at", argument="config")
        packed = Packed()
        entries = [
            (index_of(channel, position), channel, self._entry(value, packed))
            for position, (channel, value) in enumerate(writes)
        ]
        return Prepared(entries, packed)

    def _entry(self, value: Any, packed: Packed) -> list[Any]:
        return packed.add(*self.serde.dumps_typed(value))

    def storing(
        self, thread_id: str, packed: Packed, names: Callable[[Any], None]
    ) -> Generator[Callable[[Any], Any], Any, None]:
        """Store parts of long values, one in each commit, then what names them; wants what each returned.

        If the thread is pruned, or deleted, in the middle, parts are stored again.
        """

        def name(txn: Any) -> bool:
            if packed.parts and not packed.are_there(self.begun(txn, thread_id).kv):
                return False
            names(txn)
            return True

        is_done = False
        while not is_done:
            for key, data in packed.parts:

                def put(txn: Any, key: str = key, data: bytes = data) -> None:
                    self.begun(txn, thread_id).kv.put(key, data)

                yield put
            is_done = yield name

    def put(
        self, place: SavedPlace, checkpoint_id: str, source: str | None, entries: dict[str, Any]
    ) -> Callable[[Any], None]:
        """Store a checkpoint; with a fence only if it goes on from the newest one."""

        def put(txn: Any) -> None:
            thread = self.begun(txn, place.thread_id)
            if self._is_fenced and source in GOES_ON:
                newest = thread.newest(place.namespace)
                if newest not in (None, place.checkpoint_id, checkpoint_id):
                    raise inmem.InvariantError(
                        f"another worker has gone on with thread {place.thread_id!r}: {newest} came after"
                        f" {place.checkpoint_id}",
                        hint="Stop this worker, or invoke the graph again from the newest checkpoint.",
                    )
            thread.kv.put_many(entries)

        return put

    def put_writes(
        self, place: SavedPlace, task_id: str, path: str, entries: list[tuple[int, str, list[Any]]]
    ) -> Callable[[Any], None]:
        """Store writes of a task."""

        def put(txn: Any) -> None:
            thread = self.begun(txn, place.thread_id)
            thread.put_writes(place.namespace, place.checkpoint_id or "", task_id, path, entries)

        return put

    def lone(self, thread_id: str) -> Callable[[Any], list[RunnableConfig]]:
        """Checkpoints of steps of which no writes are stored."""

        def lone(txn: Any) -> list[RunnableConfig]:
            thread = self.found(txn, thread_id)
            return [] if thread is None else [
                config_of(thread_id, namespace, checkpoint_id)
                for namespace, checkpoint_id, entry in thread.all()
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
                (namespace, checkpoint_id) for namespace, checkpoint_id, entry in thread.all()
                if thread.metadata(entry).get("run_id") in gone
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
            for namespace, checkpoint_id, _ in [*thread.all()]:
                if checkpoint_id not in needed[namespace]:
                    thread.delete(namespace, checkpoint_id)
            thread.sweep()

        return prune

    def copies(
        self, source_id: str, target_id: str, run_id: str
    ) -> Generator[Callable[[Any], Any], Any, None]:
        """Copy a thread, into another one or into a run that will be one; wants what each piece returned.

        What names others comes after them. Checkpoints that come meanwhile are left out.
        """

        def those_of_now(txn: Any) -> frozenset[str]:
            source = self.found(txn, source_id)
            return frozenset() if source is None else frozenset(source.kv.list("c/"))

        there = yield those_of_now
        for kind in ("p/", "b/", "w/", "n/", "c/"):
            after = None
            while True:
                after = yield self._copy(source_id, target_id, run_id, kind, after, there)
                if after is None:
                    break

    def _copy(
        self, source_id: str, target_id: str, run_id: str, kind: str, after: str | None, there: frozenset[str]
    ) -> Callable[[Any], str | None]:
        """Copy some entries of a kind; after which one to go on."""

        def copy(txn: Any) -> str | None:
            source = self.found(txn, source_id)
            if source is None:
                return None
            target = self.found(txn, target_id) or Thread(target_id, txn.at(run_id), self.serde)
            keys: list[str] = source.kv.list(kind, start_after=after, limit=_COPIED)
            size = 0
            for key in keys:
                if kind == "c/" and key not in there:
                    continue
                entry = source.kv.get(key)
                target.kv.put(key, entry)
                size += _size_of(entry)
                if size >= _COPIED_BYTES:
                    return key
            return keys[-1] if len(keys) == _COPIED else None

        return copy


def _size_of(entry: Any) -> int:
    """About how many bytes an entry has."""
    if isinstance(entry, dict):
        return sum(map(_size_of, entry.values()))
    if isinstance(entry, list):
        return sum(map(_size_of, entry))
    return len(entry) if isinstance(entry, bytes | str) else 8


def run_of(thread_id: str) -> Callable[[Any], str]:
    """The run of a thread, created if need be."""

    def run_of(txn: Any) -> str:
        key = thread_key(thread_id)
        named = txn.kv.get(key)
        if named is None:
            named = _name(txn, thread_id, str(inmem.RunId.new()))
        run_id: str = named["run_id"]
        return run_id

    return run_of


def name_copy(thread_id: str, run_id: str) -> Callable[[Any], None]:
    """A copied thread becomes visible, unless it was there before and got the copies itself."""

    def name(txn: Any) -> None:
        if txn.kv.get(thread_key(thread_id)) is None and txn.at(run_id).kv.count("n/"):
            _name(txn, thread_id, run_id)

    return name


def forget(thread_id: str) -> Callable[[Any], str | None]:
    """A thread is gone; the run that it had."""

    def forget(txn: Any) -> str | None:
        named = txn.kv.get(thread_key(thread_id))
        txn.kv.discard(thread_key(thread_id))
        return None if named is None else named["run_id"]

    return forget


def _name(txn: Any, thread_id: str, run_id: str) -> dict[str, str]:
    named = {"thread_id": thread_id, "run_id": run_id}
    txn.kv.put(thread_key(thread_id), named)
    txn.at(run_id).runs.create_run(tags=["langgraph"], metadata={"thread_id": thread_id})
    return named
