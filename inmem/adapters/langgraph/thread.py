"""The run of a thread in a transaction: what is read of it, and what is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from langgraph.checkpoint.base import writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol

from inmem.adapters.foreign import unpacked
from inmem.adapters.langgraph.layout import (
    EMPTY,
    StoredCheckpoint,
    Typed,
    Write,
    checkpoint_key,
    value_key,
    write_key,
    writes_prefix,
)


class Thread:
    """The run of a thread, as a transaction sees and changes it."""

    def __init__(self, thread_id: str, run: Any, serde: SerializerProtocol) -> None:
        self.thread_id = thread_id
        self.kv = run.kv
        self._serde = serde

    def namespaces(self) -> list[str]:
        """All that have checkpoints, or had some."""
        return [namespace for _, namespace in self.kv.list_with_values("n/")]

    def newest(self, namespace: str) -> str | None:
        """The id of the newest checkpoint."""
        prefix = checkpoint_key(namespace, "")
        keys = self.kv.list(prefix, reverse=True, limit=1)
        return keys[0][len(prefix) :] if keys else None

    def found(self, namespace: str, checkpoint_id: str | None) -> tuple[str, dict[str, Any]] | None:
        """A checkpoint, or the newest one: its id, and what is stored of it."""
        if checkpoint_id is not None:
            entry = self.entry(namespace, checkpoint_id)
            return None if entry is None else (checkpoint_id, entry)
        prefix = checkpoint_key(namespace, "")
        found = self.kv.list_with_values(prefix, reverse=True, limit=1)
        return (found[0][0][len(prefix) :], found[0][1]) if found else None

    def ids(self, namespace: str, *, before: str | None = None, limit: int | None = None) -> list[str]:
        """Ids of checkpoints, the newest first; of those before one."""
        prefix = checkpoint_key(namespace, "")
        after = None if before is None else checkpoint_key(namespace, before)
        keys = self.kv.list(prefix, reverse=True, limit=limit, start_after=after)
        return [key[len(prefix) :] for key in keys]

    def entry(self, namespace: str, checkpoint_id: str) -> dict[str, Any] | None:
        """What is stored of a checkpoint."""
        entry: dict[str, Any] | None = self.kv.get(checkpoint_key(namespace, checkpoint_id))
        return entry

    def typed(self, entry: list[Any]) -> Typed:
        """Type and bytes of a stored value."""
        return unpacked(entry, self.kv.get)

    def value(self, namespace: str, channel: str, version: object) -> Typed | None:
        """The value of a channel; None if it had none, or is not stored as such."""
        entry = self.kv.get(value_key(namespace, channel, version))
        return None if entry is None or entry[0] == EMPTY else self.typed(entry)

    def values(self, namespace: str, versions: dict[str, Any]) -> dict[str, Typed]:
        """The values of channels at these versions."""
        keys = {value_key(namespace, channel, version): channel for channel, version in versions.items()}
        found = self.kv.get_many(keys)
        return {
            channel: self.typed(found[key])
            for key, channel in keys.items() if key in found and found[key][0] != EMPTY
        }

    def writes(self, namespace: str, checkpoint_id: str) -> list[Write]:
        """The writes of a checkpoint, in the order in which a step applies them."""
        found = [entry for _, entry in self.kv.list_with_values(writes_prefix(namespace, checkpoint_id))]
        found.sort(key=lambda each: writes_sort_key(each["path"], each["task_id"], each["index"]))
        return [Write(each["task_id"], each["channel"], self.typed(each["value"])) for each in found]

    def checkpoint(self, entry: dict[str, Any]) -> Any:
        """A stored checkpoint, without the values of its channels."""
        return self._serde.loads_typed(self.typed(entry["checkpoint"]))

    def metadata(self, entry: dict[str, Any]) -> Any:
        """The metadata of a stored checkpoint."""
        return self._serde.loads_typed(self.typed(entry["metadata"]))

    def whole(self, namespace: str, checkpoint_id: str, entry: dict[str, Any]) -> StoredCheckpoint:
        """A checkpoint with all that belongs to it."""
        checkpoint = self.checkpoint(entry)
        return StoredCheckpoint(
            self.thread_id, namespace, checkpoint_id, checkpoint, self.typed(entry["metadata"]),
            entry["parent"], self.values(namespace, checkpoint["channel_versions"]),
            self.writes(namespace, checkpoint_id),
        )

    def all(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Namespace, id and entry of all checkpoints, the newest of each namespace first."""
        for namespace in self.namespaces():
            for checkpoint_id in self.ids(namespace):
                entry = self.entry(namespace, checkpoint_id)
                if entry is not None:
                    yield namespace, checkpoint_id, entry

    def ancestors(self, namespace: str, checkpoint_id: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and entry of the ancestors of a checkpoint, its parent first."""
        entry = None if checkpoint_id is None else self.entry(namespace, checkpoint_id)
        while entry is not None and (parent := entry["parent"]) is not None:
            entry = self.entry(namespace, parent)
            if entry is not None:
                yield parent, entry

    def needed(self, namespace: str) -> set[str]:
        """The newest checkpoint, and its ancestors back to where each delta channel was stored whole."""
        newest = self.newest(namespace)
        entry = None if newest is None else self.entry(namespace, newest)
        if newest is None or entry is None:
            return set()

        def not_whole(channels: Iterable[str], entry: dict[str, Any]) -> set[str]:
            versions = self.checkpoint(entry)["channel_versions"]
            return {each for each in channels if self.value(namespace, each, versions.get(each)) is None}

        found = {newest}
        left = not_whole(self.metadata(entry).get("counters_since_delta_snapshot", ()), entry)
        for ancestor, entry in self.ancestors(namespace, newest):
            if not left:
                break
            found.add(ancestor)
            left = not_whole(left, entry)
        return found

    # --- changes --------------------------------------------------------------------------

    def put_writes(
        self, namespace: str, checkpoint_id: str, task_id: str, path: str,
        writes: Sequence[tuple[int, str, list[Any]]],
    ) -> None:
        """Store the writes of a task. The first one of an index stays; of a special channel the last."""
        keyed = [(write_key(namespace, checkpoint_id, task_id, write[0]), *write) for write in writes]
        there = self.kv.get_many([key for key, index, *_ in keyed if index >= 0])
        for key, index, channel, value in keyed:
            if index >= 0 and there.setdefault(key, value) is not value:
                continue
            self.kv.put(key, {
                "channel": channel, "index": index, "path": path, "task_id": task_id, "value": value
            })

    def delete(self, namespace: str, checkpoint_id: str) -> None:
        """Remove a checkpoint with its writes. Its values go with `sweep`."""
        self.kv.discard(checkpoint_key(namespace, checkpoint_id))
        self.kv.clear(writes_prefix(namespace, checkpoint_id))

    def sweep(self) -> None:
        """Remove values that no checkpoint has, and parts that nothing names."""
        used = {
            value_key(namespace, channel, version) for namespace, _, entry in self.all()
            for channel, version in self.checkpoint(entry)["channel_versions"].items()
        }
        named = set()
        for key, entry in self.kv.list_with_values("b/"):
            if key not in used:
                self.kv.discard(key)
            elif len(entry) == 3:
                named.add(entry[1])
        for _, entry in self.kv.list_with_values("c/"):
            named.update(each[1] for each in (entry["checkpoint"], entry["metadata"]) if len(each) == 3)
        for _, entry in self.kv.list_with_values("w/"):
            if len(entry["value"]) == 3:
                named.add(entry["value"][1])
        for key in self.kv.list("p/"):
            if key.split("/")[1] not in named:
                self.kv.discard(key)
