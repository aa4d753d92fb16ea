"""Where a thread's checkpoints are, and what they look like there.

A thread is a run of its own. `langgraph/threads/<hash>` among the entries that
all runs of the agent share names it: `{"thread_id", "run_id"}`. So a deletion
of a thread fences who comes late, and its id can be used again.

In the run, with hashes for names of any length:

    n/<namespace>                          the namespace as it is
    c/<namespace>/<checkpoint id>          {"checkpoint", "metadata", "parent"}
    b/<namespace>/<channel>/<version>      a value of a channel; type "empty": it had none
    w/<namespace>/<checkpoint id>/<task>/<number>
                                           {"task_id", "path", "index", "channel", "value"}
    p/<token>/<number>                     parts of long values, see `inmem.adapters.foreign`

Checkpoint, metadata and values are `[type, bytes]` of the serializer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from langgraph.checkpoint.base import WRITES_IDX_MAP, writes_sort_key

from inmem.adapters.foreign import Parts, hashed, part_key

EMPTY: Final = "empty"
_THREADS: Final = "langgraph/threads/"
_LEAST_INDEX: Final = min(WRITES_IDX_MAP.values())

Typed = tuple[str, bytes]


class Write(NamedTuple):
    """A write of a task, as it is stored."""

    task_id: str
    channel: str
    value: Typed


class StoredCheckpoint(NamedTuple):
    """A checkpoint with all that belongs to it, not loaded yet."""

    thread_id: str
    namespace: str
    id: str
    checkpoint: Typed
    metadata: Typed
    parent: str | None
    values: dict[str, Typed]
    writes: list[Write]


def thread_key(thread_id: str) -> str:
    """Where the run of a thread is named."""
    return _THREADS + hashed(thread_id)


def all_threads(view: Any) -> list[str]:
    """The ids of all threads, in the order of their hashes."""
    return [entry["thread_id"] for _, entry in view.kv.list_with_values(_THREADS)]


def checkpoint_key(namespace: str, checkpoint_id: str) -> str:
    """Where a checkpoint is."""
    return f"c/{hashed(namespace)}/{checkpoint_id}"


def value_key(namespace: str, channel: str, version: object) -> str:
    """Where a value of a channel is."""
    return f"b/{hashed(namespace)}/{hashed(channel)}/{version}"


def writes_prefix(namespace: str, checkpoint_id: str) -> str:
    """Where the writes of a checkpoint are."""
    return f"w/{hashed(namespace)}/{checkpoint_id}/"


def index_of(channel: str, position: int) -> int:
    """The number of a write among those of its task; those of special channels are negative."""
    index: int = WRITES_IDX_MAP.get(channel, position)
    return index


def write_key(namespace: str, checkpoint_id: str, task_id: str, index: int) -> str:
    """Where a write of a task is."""
    return f"{writes_prefix(namespace, checkpoint_id)}{hashed(task_id)}/{index - _LEAST_INDEX:08}"


class ThreadReads:
    """What a transaction sees of the run of a thread."""

    def __init__(self, thread_id: str, run: Any) -> None:
        self.thread_id = thread_id
        self.kv = run.kv

    def namespaces(self) -> list[str]:
        """All that have checkpoints, or had some."""
        return [namespace for _, namespace in self.kv.list_with_values("n/")]

    def newest(self, namespace: str) -> str | None:
        """The id of the newest checkpoint."""
        prefix = checkpoint_key(namespace, "")
        keys = self.kv.list(prefix, reverse=True, limit=1)
        return keys[0][len(prefix) :] if keys else None

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
        return Parts.joined(entry, self.kv.get)

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


class ThreadWrites(ThreadReads):
    """What a transaction does to the run of a thread."""

    def put_writes(
        self, namespace: str, checkpoint_id: str, task_id: str, path: str,
        writes: Sequence[tuple[int, str, list[Any]]],
    ) -> None:
        """Store the writes of a task. The first one of an index stays; of a special channel the last."""
        for index, channel, value in writes:
            key = write_key(namespace, checkpoint_id, task_id, index)
            if index >= 0 and self.kv.exists(key):
                continue
            self.kv.put(key, {
                "task_id": task_id, "path": path, "index": index, "channel": channel, "value": value
            })

    def delete(self, namespace: str, checkpoint_id: str) -> None:
        """Remove a checkpoint with its writes. Its values go with `sweep`."""
        self.kv.discard(checkpoint_key(namespace, checkpoint_id))
        self.kv.clear(writes_prefix(namespace, checkpoint_id))

    def sweep(self, versions: Iterator[tuple[str, dict[str, Any]]]) -> None:
        """Remove values that no checkpoint has, of which `versions` are, and parts that nothing names."""
        used = {
            value_key(namespace, channel, version)
            for namespace, of_channels in versions for channel, version in of_channels.items()
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


def parts_of(entry: list[Any]) -> list[str]:
    """The keys of the parts of a stored value."""
    return [part_key(entry[1], n) for n in range(entry[2])] if len(entry) == 3 else []
