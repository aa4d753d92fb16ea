"""Procedures of KV entries: what depends on the number, the dict or the entry that is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from inmem.commit.arguments import check_name, check_prefix, check_time, check_type
from inmem.commit.footprint import Footprint, exactly
from inmem.commit.workspace import Workspace
from inmem.config import CLEAR_LIMIT
from inmem.errors import InvalidInputError, InvariantError, LimitError
from inmem.keys import MAX_KEY_BYTES, MAX_NAME_BYTES, Key, TypeTag, range_of
from inmem.primitives.importing import importing_records, parts, past
from inmem.primitives.kv import rules
from inmem.record import expires_at, payload_of

_KV: Final = bytes([TypeTag.KV])
_MAX_KV_KEY_BYTES: Final = MAX_KEY_BYTES - 8  # it may have an expiry, whose entry is 8 bytes longer


def add(workspace: Workspace, key: bytes, delta: Any, initial: Any) -> rules.Number:
    """Add to a number; keeps an expiry that is set. The result is the new number."""
    _check_kv_key(key)
    workspace.check_open(key)
    rules.check_number(delta, "delta")
    rules.check_number(initial, "initial")
    record = workspace.record(key)
    payload, total = rules.add(None if record is None else payload_of(record), delta, initial)
    workspace.put(key, payload, 0 if record is None else expires_at(record))
    return total


def merge(workspace: Workspace, key: bytes, fields: bytes) -> None:
    """Set fields of a dict; keeps an expiry that is set."""
    _check_kv_key(key)
    check_type("fields", fields, bytes)
    workspace.check_open(key)
    record = workspace.record(key)
    payload = rules.merge(None if record is None else payload_of(record), fields)
    workspace.put(key, payload, 0 if record is None else expires_at(record))


def delete(workspace: Workspace, key: bytes) -> bool:
    """Remove an entry; whether there was one."""
    _check_kv_key(key)
    workspace.check_open(key)  # a deleted run has no entry, which must not pass for an answer
    if workspace.record(key) is None:
        return False
    workspace.delete(key)
    return True


def clear(workspace: Workspace, prefix: bytes, names: bytes, is_part: bool) -> int:
    """Remove the entries whose keys begin with `names`; how many. With `is_part`, some if there are many.

    Raises:
        LimitError: there are more, and all were to go.
    """
    check_prefix(prefix)
    check_type("names", names, bytes)
    check_type("is_part", is_part, bool)
    if len(names) > MAX_NAME_BYTES:
        raise InvalidInputError("names is longer than a key can be", argument="names")
    start, end = range_of(prefix, TypeTag.KV, names)
    workspace.check_open(start)
    keys = [key for key, _ in islice(workspace.scan(start, end), CLEAR_LIMIT + 1)]
    if len(keys) > CLEAR_LIMIT:
        if not is_part:
            raise LimitError(
                f"more than {CLEAR_LIMIT} entries would go in one commit", what="entries",
                limit=CLEAR_LIMIT, hint="Call it outside of transactions and pipelines.",
            )
        keys.pop()
    for key in keys:
        workspace.delete(key)
    return len(keys)


def clear_footprint(prefix: bytes, names: bytes, *_: Any) -> Footprint:
    """Of `clear`: the entries of that range."""
    return Footprint.of(range_of(prefix, TypeTag.KV, names))


def footprint(key: bytes, *_: Any) -> Footprint:
    """Of an entry's procedures: the entry."""
    return Footprint.of(exactly(key))


def import_entries(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """KV entries: `[key, payload, expires at (0: never), timestamp]`."""
    with importing_records(workspace, prefix, token, "kv", items):
        for item in items:
            name, payload, expires, timestamp = parts(item, 4)
            check_name(name, MAX_NAME_BYTES, "key")
            check_type("payload", payload, bytes)
            key = Key.of(prefix, TypeTag.KV, name)
            if workspace.record(key) is not None:
                raise InvariantError(f"{Key(key)!r} comes twice")
            workspace.put(key, payload, check_time(expires, "expires_at"), past(timestamp))


def _check_kv_key(key: object) -> None:
    check_type("key", key, bytes)
    assert isinstance(key, bytes)
    cut = key.find(b"\0")
    if cut < 1 or key[cut + 1 : cut + 2] != _KV or not cut + 2 < len(key) <= _MAX_KV_KEY_BYTES:
        raise InvalidInputError("key is no key of a KV entry", argument="key")


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "import.entries": import_entries,
    "kv.add": add,
    "kv.clear": clear,
    "kv.delete": delete,
    "kv.merge": merge,
}

# These write all of an entry again, which is more than their arguments tell.
WRITE_WHOLE: Final = frozenset({"kv.merge"})

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {
    "kv.add": footprint,
    "kv.clear": clear_footprint,
    "kv.delete": footprint,
    "kv.merge": footprint,
}
