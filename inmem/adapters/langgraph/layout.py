"""Where a thread's checkpoints are, and what they look like there.

A thread is a run of its own. `langgraph/threads/<hash>` among the entries that
all runs of the agent share names it: `{"thread_id", "run_id"}`. So a deletion
of a thread fences who comes late, and its id can be used again.

In the run, with hashes for long names and for those with slashes:

    n/<namespace>                          the namespace as it is
    c/<namespace>/<checkpoint id>          {"step", "source", "parent", "checkpoint", "metadata"}
    b/<namespace>/<channel>/<version>      a value of a channel; type "empty": it had none
    w/<namespace>/<checkpoint id>/<task>/<number>
                                           {"channel", "index", "path", "task_id", "value"}
    p/<token>/<number>                     parts of long values, see `inmem.adapters.foreign`

Checkpoint, metadata and values are `[type, bytes]` of the serializer. Source
and step are in the metadata too; here they can be read.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from langgraph.checkpoint.base import WRITES_IDX_MAP

from inmem.adapters.foreign import hashed, readable

EMPTY: Final = "empty"
_THREADS: Final = "langgraph/threads/"
_NAMESPACE_BYTES: Final = 96
_NAME_BYTES: Final = 64  # of a channel, a task
_LEAST_INDEX: Final = min(WRITES_IDX_MAP.values())

Typed = tuple[str, bytes]


class Write(NamedTuple):
    """A write of a task, as it is stored."""

    task_id: str
    channel: str
    value: Typed


class StoredCheckpoint(NamedTuple):
    """A checkpoint with all that belongs to it; metadata and values are not loaded yet."""

    thread_id: str
    namespace: str
    id: str
    checkpoint: Any
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


def namespace_key(namespace: str) -> str:
    """Where a namespace is named."""
    return f"n/{readable(namespace, _NAMESPACE_BYTES)}"


def checkpoint_key(namespace: str, checkpoint_id: str) -> str:
    """Where a checkpoint is."""
    return f"c/{readable(namespace, _NAMESPACE_BYTES)}/{checkpoint_id}"


def value_key(namespace: str, channel: str, version: object) -> str:
    """Where a value of a channel is."""
    return f"b/{readable(namespace, _NAMESPACE_BYTES)}/{readable(channel, _NAME_BYTES)}/{version}"


def writes_prefix(namespace: str, checkpoint_id: str) -> str:
    """Where the writes of a checkpoint are."""
    return f"w/{readable(namespace, _NAMESPACE_BYTES)}/{checkpoint_id}/"


def index_of(channel: str, position: int) -> int:
    """The number of a write among those of its task; those of special channels are negative."""
    index: int = WRITES_IDX_MAP.get(channel, position)
    return index


def write_key(namespace: str, checkpoint_id: str, task_id: str, index: int) -> str:
    """Where a write of a task is."""
    task = readable(task_id, _NAME_BYTES)
    return f"{writes_prefix(namespace, checkpoint_id)}{task}/{index - _LEAST_INDEX:08}"
