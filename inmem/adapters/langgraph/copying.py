"""Copies of threads, in pieces: each is a commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from inmem.adapters.langgraph.layout import CHECKPOINTS, is_checkpoint
from inmem.adapters.langgraph.naming import named_run
from inmem.adapters.langgraph.transactions import Transacted, Work

_COPIED: Final = 512  # entries that one commit copies, at most
_COPIED_BYTES: Final = 4 * 1024 * 1024  # and of what size: the last one comes on top


def copies(source_id: str, target_id: str, run_id: str) -> Work[None]:
    """Copy a thread, into another one or into a run that will be one.

    What names others comes after them. Checkpoints that come meanwhile are left out.
    """

    def those_of_now(txn: Any) -> frozenset[str]:
        source = _run_in(txn, source_id)
        return frozenset() if source is None else frozenset(source.kv.list(CHECKPOINTS))

    there = yield Transacted(None, those_of_now)
    wanted: list[tuple[str, Callable[[str], bool]]] = [
        ("p/", lambda key: True), ("b/", lambda key: True),
        (CHECKPOINTS, lambda key: not is_checkpoint(key)), ("n/", lambda key: True),
        (CHECKPOINTS, lambda key: key in there and is_checkpoint(key)),
    ]
    for kind, is_wanted in wanted:
        after = None
        while True:
            copy = _copy(source_id, target_id, run_id, kind, is_wanted, after)
            after = yield Transacted(None, copy)
            if after is None:
                break


def _copy(
    source_id: str, target_id: str, run_id: str, kind: str, is_wanted: Callable[[str], bool],
    after: str | None,
) -> Callable[[Any], str | None]:
    """Copy some entries of a kind; after which one to go on."""

    def copy(txn: Any) -> str | None:
        source = _run_in(txn, source_id)
        if source is None:
            return None
        target = _run_in(txn, target_id) or txn.at(run_id)
        keys: list[str] = source.kv.list(kind, start_after=after, limit=_COPIED)
        size = 0
        for key in filter(is_wanted, keys):
            entry = source.kv.get(key)
            target.kv.put(key, entry)
            size += _size_of(entry)
            if size >= _COPIED_BYTES:
                return key
        return keys[-1] if len(keys) == _COPIED else None

    return copy


def _run_in(txn: Any, thread_id: str) -> Any:
    run_id = named_run(thread_id)(txn)
    return None if run_id is None else txn.at(run_id)


def _size_of(entry: Any) -> int:
    """About how many bytes an entry has."""
    if isinstance(entry, dict):
        return sum(map(_size_of, entry.values()))
    if isinstance(entry, list):
        return sum(map(_size_of, entry))
    return len(entry) if isinstance(entry, bytes | str) else 8
