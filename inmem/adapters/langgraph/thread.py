"""The run of a thread in a transaction: what is read of it, and what is changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Final

from langgraph.checkpoint.serde.base import SerializerProtocol

from inmem.adapters.foreign import sweep_parts, token_of, unpacked
from inmem.adapters.langgraph.layout import (
    CHECKPOINT,
    CHECKPOINTS,
    CheckpointRange,
    StoredCheckpoint,
    Typed,
    Write,
    checkpoint_key,
    checkpoint_prefix,
    checkpoints_prefix,
    chosen,
    id_in,
    in_order,
    is_checkpoint,
    merged,
    value_key,
    value_key_in,
    writes_prefix,
)

_PAGE: Final = 64  # records that are read at once


class Thread:
    """The run of a thread, as a transaction sees and changes it."""

    def __init__(self, thread_id: str, run: Any, serde: SerializerProtocol) -> None:
        self.thread_id = thread_id
        self.kv = run.kv
        self._serde = serde

    def namespaces(self) -> list[str]:
        """All that have checkpoints, or had some."""
        return [namespace for _, namespace in self.kv.list_with_values("n/")]

    def checkpoints(self, namespace: str, before: str | None = None) -> Iterator[CheckpointRange]:
        """The checkpoints of a namespace, the newest first; those before one."""
        prefix = checkpoints_prefix(namespace)
        after = None if before is None else checkpoint_prefix(namespace, before)
        records: list[tuple[str, Any]] = []
        while True:
            page = self.kv.list_versioned(prefix, reverse=True, limit=_PAGE, start_after=after)
            for key, found in page:
                if not is_checkpoint(key):
                    records.append((id_in(key, namespace), found))
                    continue
                made = id_in(key, namespace)  # writes of others have come before their checkpoint
                of_it = in_order(each for of, each in reversed(records) if of == made)
                yield CheckpointRange(made, found.value, of_it)
                records.clear()
            if len(page) < _PAGE:
                return
            after = page[-1][0]

    def found(self, namespace: str, checkpoint_id: str | None) -> CheckpointRange | None:
        """A checkpoint, or the newest one."""
        if checkpoint_id is None:
            return next(self.checkpoints(namespace), None)
        items = self.kv.list_versioned(checkpoint_prefix(namespace, checkpoint_id))
        if not items or not is_checkpoint(items[0][0]):  # its own key is the first
            return None
        return CheckpointRange(checkpoint_id, items[0][1].value, in_order(found for _, found in items[1:]))

    def newest(self, namespace: str) -> str | None:
        """The id of the newest checkpoint."""
        prefix, after = checkpoints_prefix(namespace), None
        while keys := self.kv.list(prefix, reverse=True, limit=8, start_after=after):
            for key in filter(is_checkpoint, keys):
                return id_in(key, namespace)
            after = keys[-1]
        return None

    def entry(self, namespace: str, checkpoint_id: str) -> dict[str, Any] | None:
        """What is stored of a checkpoint."""
        entry: dict[str, Any] | None = self.kv.get(checkpoint_key(namespace, checkpoint_id))
        return entry

    def whole(self, namespace: str, found: CheckpointRange) -> StoredCheckpoint:
        """A checkpoint with all that belongs to it."""
        stored = StoredCheckpoint(self.thread_id, namespace, found)
        while keys := stored.lacks():
            stored.add(keys, self.kv.get_many(keys))
        return stored

    def typed(self, value: list[Any]) -> Typed:
        """Type and bytes of a stored value."""
        return unpacked(value, self.kv.get)

    def value(self, namespace: str, channel: str, entry: dict[str, Any]) -> tuple[Any] | None:
        """The value of a channel in a checkpoint; None if it had none, or was not stored as such."""
        small = entry["values"].get(channel)
        version = entry["blobs"].get(channel) or entry["deltas"].get(channel)
        if small is None and version is not None:
            small = self.kv.get(value_key(namespace, channel, version))
        if small is not None:
            return (self._serde.loads_typed(self.typed(small)),)
        plain = self.checkpoint(entry)["channel_values"]
        return (plain[channel],) if channel in plain else None

    def writes(self, namespace: str, checkpoint_id: str) -> list[Write]:
        """The writes of a checkpoint, in the order in which a step applies them."""
        prefix = writes_prefix(namespace, checkpoint_id)
        return merged(in_order(found for _, found in self.kv.list_versioned(prefix)))

    def checkpoint(self, entry: dict[str, Any]) -> Any:
        """A stored checkpoint, without larger values of its channels."""
        return self._serde.loads_typed(self.typed(entry["checkpoint"]))

    def metadata(self, entry: dict[str, Any]) -> Any:
        """The metadata of a stored checkpoint."""
        return self._serde.loads_typed(self.typed(entry["metadata"]))

    def all(self) -> Iterator[tuple[str, CheckpointRange]]:
        """Namespace and checkpoint of all, the newest of each namespace first."""
        for namespace in self.namespaces():
            for found in self.checkpoints(namespace):
                yield namespace, found

    def ancestors(self, namespace: str, checkpoint_id: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Id and entry of the ancestors of a checkpoint, its parent first."""
        entry = None if checkpoint_id is None else self.entry(namespace, checkpoint_id)
        while entry is not None and (parent := entry["parent"]) is not None:
            entry = self.entry(namespace, parent)
            if entry is not None:
                yield parent, entry

    def needed(self, namespace: str) -> set[str]:
        """The newest checkpoint, and its ancestors back to where each delta channel was stored whole."""
        newest = self.found(namespace, None)
        if newest is None:
            return set()

        def not_whole(channels: Iterable[str], entry: dict[str, Any]) -> set[str]:
            return {each for each in channels if self.value(namespace, each, entry) is None}

        found = {newest.id}
        left = not_whole(self.metadata(newest.entry).get("counters_since_delta_snapshot", ()), newest.entry)
        for ancestor, entry in self.ancestors(namespace, newest.id):
            if not left:
                break
            found.add(ancestor)
            left = not_whole(left, entry)
        return found

    # --- changes --------------------------------------------------------------------------

    def delete(self, namespace: str, checkpoint_id: str) -> None:
        """Remove a checkpoint with its writes. Its large values go with `sweep`."""
        self.kv.clear(checkpoint_prefix(namespace, checkpoint_id))

    def sweep(self) -> None:
        """Remove values that no checkpoint has, writes that came too late, and parts that nothing names."""
        used: set[str] = set()
        named: set[Any] = set()
        items = self.kv.list_versioned(CHECKPOINTS)
        for _, group in itertools.groupby(items, key=lambda item: item[0].partition(" ")[0]):
            records = []
            for key, found in group:
                if is_checkpoint(key):
                    head = key[len(CHECKPOINTS) :].partition("/")[0]
                    versions = found.value["blobs"] | found.value["deltas"]
                    used.update(value_key_in(head, *each) for each in versions.items())
                    named |= {token_of(found.value["checkpoint"]), token_of(found.value["metadata"])}
                else:
                    records.append((key, found))
            writes = [write for _, write in chosen(in_order(found for _, found in records)).values()]
            named.update(token_of(value) for _, _, value in writes)
            for key, found in records:
                if not any(each is write for each in found.value["writes"] for write in writes):
                    self.kv.discard(key)
        for key, value in self.kv.list_with_values("b/"):
            if key in used:
                named.add(token_of(value))
            else:
                self.kv.discard(key)
        sweep_parts(self.kv, named)


def found_in(items: list[tuple[str, Any]], namespace: str) -> CheckpointRange | None:
    """The last checkpoint that some records have, which come in reverse; with the records of its writes."""
    for at, (key, value) in enumerate(items):
        if is_checkpoint(key):
            prefix = key[: -len(CHECKPOINT)]
            records = [record for of, record in items[:at] if of.startswith(prefix)]
            return CheckpointRange(id_in(key, namespace), value, records[::-1])
    return None
