"""Where a thread's checkpoints are, and what they look like there.

A thread is a run of its own. `langgraph/threads/<hash>` among the entries that
all runs of the agent share names it: `{"thread_id", "run_id"}`. So a deletion
of a thread fences who comes late, and its id can be used again.

In the run, with hashes for long names and for those with slashes:

    n/<namespace>                          the namespace as it is
    c/<namespace>/<checkpoint id> checkpoint
                                           {"step", "source", "parent", "checkpoint", "metadata", "values",
                                           "blobs", "deltas"}
    c/<namespace>/<checkpoint id> writes/<task>/<id of the call>
                                           {"task_id", "path", "writes": [[index, channel, value], ...]}
    b/<namespace>/<channel>/<version>      a value of a channel that is large
    p/<token>/<number>                     parts of long values, see `inmem.adapters.foreign`

Checkpoint, metadata and values are `[type, bytes]` of the serializer. Source
and step are in the metadata too; here they can be read. A checkpoint and its
writes are beside each other, so one range has them. Numbers and short texts
are in the checkpoint's `channel_values`; other small values of channels are in
`values`, by channel, again in each checkpoint. `blobs` has the versions of the
large ones, each of which is stored once. `deltas` has the versions of delta
channels of which the checkpoint has no value: one may be stored under its
version, since snapshots of delta channels are stored as large ones are.

Nobody looks at what is there before writes are put. Each call has a record of
its own, and who reads them takes the first that came of each index of a task;
of special channels, whose index is negative, the last one. The versions of the
commits tell.
"""

from __future__ import annotations

import functools
import operator
import os
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from langgraph.checkpoint.base import WRITES_IDX_MAP, writes_sort_key

from inmem import Versioned
from inmem.adapters.foreign import hashed, part_keys, readable, unpacked

CHECKPOINTS: Final = "c/"
CHECKPOINT: Final = "checkpoint"
_THREADS: Final = "langgraph/threads/"
_NAMESPACE_BYTES: Final = 96
_NAME_BYTES: Final = 64  # of a channel, a task
_IN_IDS: Final = ":|@+=,~"  # besides letters, digits and `_.-`: all sort after the space that ends an id

_first: Final = operator.itemgetter(0)
_version: Final = operator.attrgetter("version")

Typed = tuple[str, bytes]


class Write(NamedTuple):
    """A write of a task, as it is stored."""

    task_id: str
    channel: str
    value: list[Any]


class CheckpointRange(NamedTuple):
    """What one range has of a checkpoint."""

    id: str
    entry: dict[str, Any]
    records: list[dict[str, Any]]  # of its writes, in the order in which they came


class StoredCheckpoint:
    """A checkpoint with all that belongs to it, not loaded yet."""

    maybe: frozenset[str] = frozenset()  # keys of values that need not be there

    def __init__(self, thread_id: str, namespace: str, found: CheckpointRange) -> None:
        self.thread_id = thread_id
        self.namespace = namespace
        self.id = found.id
        self.entry = found.entry
        self.writes = merged(found.records)
        self._read: dict[str, Any] = {}
        blobs: dict[str, str] = self.entry["blobs"]
        self.blobs = {channel: value_key(namespace, channel, version) for channel, version in blobs.items()}
        if deltas := self.entry["deltas"]:
            maybe = {channel: value_key(namespace, channel, version) for channel, version in deltas.items()}
            self.blobs |= maybe
            self.maybe = frozenset(maybe.values())

    def lacks(self) -> list[str]:
        """The keys of entries that have to be read yet: of large values, then of the parts of long ones."""
        entry, read = self.entry, self._read
        lacks = [key for key in self.blobs.values() if key not in read]
        values = [entry["checkpoint"], entry["metadata"], *[each.value for each in self.writes]]
        values += [read[key] for key in self.blobs.values() if read.get(key) is not None]
        for value in values:
            if len(value) == 3:
                lacks += [key for key in part_keys(value) if key not in read]
        return lacks

    def add(self, keys: Iterable[str], found: dict[str, Any]) -> None:
        """What was read under some keys."""
        for key in keys:
            self._read[key] = found.get(key)

    def typed(self, value: list[Any]) -> Typed:
        """Type and bytes of a stored value."""
        return unpacked(value, self._read.__getitem__)

    def large(self) -> dict[str, Typed]:
        """The large values, by channel."""
        found = ((channel, self._read[key]) for channel, key in self.blobs.items())
        return {channel: self.typed(value) for channel, value in found if value is not None}


def chosen(records: Iterable[dict[str, Any]]) -> dict[tuple[str, int], tuple[str, list[Any]]]:
    """Path and write of each task and index, of records in the order in which they came."""
    of: dict[tuple[str, int], tuple[str, list[Any]]] = {}
    for record in records:
        task_id, path = record["task_id"], record["path"]
        for write in record["writes"]:
            place = task_id, write[0]
            if write[0] < 0 or place not in of:
                of[place] = path, write
    return of


def merged(records: Iterable[dict[str, Any]]) -> list[Write]:
    """The writes of some records, in the order in which a step applies them."""
    of = chosen(records).items()
    keyed = sorted([(writes_sort_key(path, *place), write) for place, (path, write) in of], key=_first)
    return [Write(key[1], channel, value) for key, (_, channel, value) in keyed]


def is_ordered(records: list[dict[str, Any]]) -> bool:
    """Whether it does not matter which of some records came first: none has an index of a task again."""
    if len(records) < 2 or len({record["task_id"] for record in records}) == len(records):
        return True
    return len(chosen(records)) == sum(len(record["writes"]) for record in records)


def in_order(records: Iterable[Versioned]) -> list[dict[str, Any]]:
    """Records in the order in which they came; they are given by key."""
    return [found.value for found in sorted(records, key=_version)]


def thread_key(thread_id: str) -> str:
    """Where the run of a thread is named."""
    return _THREADS + hashed(thread_id)


def all_threads(view: Any) -> list[str]:
    """The ids of all threads, in the order of their hashes."""
    return [entry["thread_id"] for _, entry in view.kv.list_with_values(_THREADS)]


def namespace_key(namespace: str) -> str:
    """Where a namespace is named."""
    return f"n/{readable(namespace, _NAMESPACE_BYTES)}"


@functools.lru_cache(maxsize=4096)
def checkpoints_prefix(namespace: str) -> str:
    """Where the checkpoints of a namespace are, in the order of their ids."""
    return f"{CHECKPOINTS}{readable(namespace, _NAMESPACE_BYTES)}/"


def checkpoint_prefix(namespace: str, checkpoint_id: str) -> str:
    """Where a checkpoint is, and its writes."""
    return f"{checkpoints_prefix(namespace)}{quote(checkpoint_id, _IN_IDS)} "


def checkpoint_key(namespace: str, checkpoint_id: str) -> str:
    """Where a checkpoint is."""
    return checkpoint_prefix(namespace, checkpoint_id) + CHECKPOINT


def is_checkpoint(key: str) -> bool:
    """Whether a key of that range is of a checkpoint itself, and not of its writes."""
    return key.endswith(" " + CHECKPOINT)


def id_in(key: str, namespace: str) -> str:
    """The id of the checkpoint to which a key belongs."""
    return unquote(key[len(checkpoints_prefix(namespace)) :].partition(" ")[0])


def value_key(namespace: str, channel: str, version: object) -> str:
    """Where a large value of a channel is."""
    return value_key_in(readable(namespace, _NAMESPACE_BYTES), channel, version)


def value_key_in(part: str, channel: str, version: object) -> str:
    """The same, for what stands for the namespace in keys."""
    return f"b/{part}/{readable(channel, _NAME_BYTES)}/{version}"


def writes_prefix(namespace: str, checkpoint_id: str) -> str:
    """Where the writes of a checkpoint are."""
    return checkpoint_prefix(namespace, checkpoint_id) + "writes/"


def index_of(channel: str, position: int) -> int:
    """The number of a write among those of its task; those of special channels are negative."""
    index: int = WRITES_IDX_MAP.get(channel, position)
    return index


def writes_key(namespace: str, checkpoint_id: str, task_id: str) -> str:
    """A new place for writes of a task; those of later calls come after it."""
    call = f"{time.time_ns():016x}{os.urandom(4).hex()}"
    return f"{writes_prefix(namespace, checkpoint_id)}{readable(task_id, _NAME_BYTES)}/{call}"
