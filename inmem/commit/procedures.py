"""Commit procedures: the operations that run in the writer, on current state.

Invariant: a procedure is a pure function of a workspace and its arguments,
checks its arguments before it changes anything, and is registered by name;
code is never shipped. Because they see the state at commit time, hot logs,
counters and cells never conflict.

To add one: write `(workspace, *arguments) -> result` with MessagePack-able
arguments and result, and enter it in PROCEDURES. If transactions may call it,
enter in FOOTPRINTS what it may look at and change: a transaction runs a call
itself only once it has looked at something that the call concerns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit import cell_procedures, import_procedures, run_procedures, trace_procedures
from inmem.commit.footprint import Footprint, exactly
from inmem.commit.workspace import Workspace
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import InvalidInputError, LimitError
from inmem.keys import MAX_KEY_BYTES, MAX_LABEL_BYTES, TypeTag, encode_sequence, range_of
from inmem.model import event_log, kv
from inmem.record import expires_at, payload_of

_KV: Final = bytes([TypeTag.KV])
_MAX_KV_KEY_BYTES: Final = MAX_KEY_BYTES - 8  # it may have an expiry, whose entry is 8 bytes longer
_MAX_PREFIX_BYTES: Final = MAX_KEY_BYTES - MAX_LABEL_BYTES - 11  # NUL, tag, NUL and sequence of the index


def event_append(workspace: Workspace, prefix: bytes, items: list[Any]) -> list[Any]:
    """Append `[type, payload, timestamp (0: now)]` items to a log: `[first sequence, [hash, ...]]`."""
    _check("prefix", prefix, bytes)
    if not prefix or b"\0" in prefix or len(prefix) > _MAX_PREFIX_BYTES:
        raise InvalidInputError("prefix is empty, too long or has NUL", argument="prefix")
    _check("items", items, list)
    if len(items) > MAX_TRANSACTION_OPS:  # each is two writes: one call must not outgrow a transaction
        raise LimitError(
            f"{len(items)} events of one append, the limit is {MAX_TRANSACTION_OPS}",
            what="events of one append", size=len(items), limit=MAX_TRANSACTION_OPS,
        )
    workspace.check_open(b"%b\0%c" % (prefix, TypeTag.EVENT))
    head = last_event(workspace, prefix)
    first = 0 if head is None else head.sequence + 1
    hashes = []
    for item in items:
        _check("items", item, list)
        if len(item) != 3:
            raise InvalidInputError("items must be [type, payload, timestamp]", argument="items")
        event_type, payload, timestamp = item
        _check("event_type", event_type, bytes)
        _check("payload", payload, bytes)
        _check("timestamp", timestamp, int)
        if not 0 < len(event_type) <= MAX_LABEL_BYTES or b"\0" in event_type or not _is_text(event_type):
            raise InvalidInputError(
                "event_type is empty, too long, has NUL or is no UTF-8", argument="event_type"
            )
        if not 0 <= timestamp < 1 << 63:
            raise InvalidInputError("timestamp is outside 0 to 2**63-1", argument="timestamp")
        head = event_log.follow(
            head, workspace.chain, timestamp or workspace.stamp_us, event_type, payload
        )
        sequence = encode_sequence(head.sequence)
        workspace.put(b"%b\0%c%b" % (prefix, TypeTag.EVENT, sequence), event_log.pack(head))
        workspace.put(b"%b\0%c%b\0%b" % (prefix, TypeTag.EVENT_BY_TYPE, event_type, sequence), b"")
        hashes.append(head.hash)
    return [first, hashes]


def event_footprint(prefix: bytes, *_: Any) -> Footprint:
    """Of an append: the whole log, for where an event goes depends on all before it."""
    return _log_footprint(prefix)


@functools.lru_cache(maxsize=256)  # each append in a transaction asks
def _log_footprint(prefix: bytes) -> Footprint:
    return Footprint.of(range_of(prefix, TypeTag.EVENT), range_of(prefix, TypeTag.EVENT_BY_TYPE))


def last_event(workspace: Workspace, prefix: bytes) -> event_log.StoredEvent | None:
    """The head of a log."""
    found = workspace.last(*range_of(prefix, TypeTag.EVENT))
    if found is None:
        return None
    key, payload = found
    return event_log.unpack(int.from_bytes(key[-8:], "big"), payload)


def kv_add(workspace: Workspace, key: bytes, delta: Any, initial: Any) -> kv.Number:
    """Add to a number; keeps an expiry that is set. The result is the new number."""
    _check_kv_key(key)
    workspace.check_open(key)
    kv.check_number(delta, "delta")
    kv.check_number(initial, "initial")
    record = workspace.record(key)
    payload, total = kv.add(None if record is None else payload_of(record), delta, initial)
    workspace.put(key, payload, 0 if record is None else expires_at(record))
    return total


def kv_merge(workspace: Workspace, key: bytes, fields: bytes) -> None:
    """Set fields of a dict; keeps an expiry that is set."""
    _check_kv_key(key)
    _check("fields", fields, bytes)
    workspace.check_open(key)
    record = workspace.record(key)
    payload = kv.merge(None if record is None else payload_of(record), fields)
    workspace.put(key, payload, 0 if record is None else expires_at(record))


def kv_delete(workspace: Workspace, key: bytes) -> bool:
    """Remove an entry; whether there was one."""
    _check_kv_key(key)
    workspace.check_open(key)  # a deleted run has no entry, which must not pass for an answer
    if workspace.record(key) is None:
        return False
    workspace.delete(key)
    return True


def kv_footprint(key: bytes, *_: Any) -> Footprint:
    """Of an entry's procedures: the entry."""
    return Footprint.of(exactly(key))


def _check(name: str, value: object, kind: type) -> None:
    if type(value) is not kind:
        raise InvalidInputError(
            f"{name} must be {kind.__name__}, not {type(value).__name__}", argument=name
        )


def _check_kv_key(key: object) -> None:
    _check("key", key, bytes)
    assert isinstance(key, bytes)
    cut = key.find(b"\0")
    if cut < 1 or key[cut + 1 : cut + 2] != _KV or not cut + 2 < len(key) <= _MAX_KV_KEY_BYTES:
        raise InvalidInputError("key is no key of a KV entry", argument="key")


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "cell.cas": cell_procedures.cas,
    "cell.delete": cell_procedures.delete,
    "cell.init": cell_procedures.init,
    "cell.set": cell_procedures.assign,
    "event.append": event_append,
    "import.abort": import_procedures.abort,
    "import.begin": import_procedures.begin,
    "import.cells": import_procedures.cells,
    "import.entries": import_procedures.entries,
    "import.events": import_procedures.events,
    "import.finish": import_procedures.finish,
    "import.traces": import_procedures.traces,
    "index.repair": run_procedures.repair_indices,
    "kv.add": kv_add,
    "kv.delete": kv_delete,
    "kv.merge": kv_merge,
    "run.create": run_procedures.create,
    "run.delete": run_procedures.delete,
    "run.update": run_procedures.update,
    "trace.record": trace_procedures.record,
}

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {
    "cell.cas": cell_procedures.cas_footprint,
    "cell.delete": cell_procedures.delete_footprint,
    "cell.init": cell_procedures.assign_footprint,
    "cell.set": cell_procedures.assign_footprint,
    "event.append": event_footprint,
    "kv.add": kv_footprint,
    "kv.delete": kv_footprint,
    "kv.merge": kv_footprint,
    "run.create": run_procedures.footprint,
    "run.update": run_procedures.footprint,
    "trace.record": trace_procedures.footprint,
}
