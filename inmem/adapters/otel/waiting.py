"""Spans whose parents have not ended yet, and their way into the traces of a run.

Invariant: a span is recorded once, below its parent, however often and by whichever process it is handed in.
A child ends before its parent, so the SDK hands it in first; a trace needs its parent. So it waits as an
entry of the run, durable as all else:

    otel/waiting/TRACE.PARENT/SPAN    what is stored of a span

Whoever records the parent records what waits below it. Whoever finds no parent puts the entry. Both read
what the other writes, so one of two that do it at once does it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from opentelemetry.trace import StatusCode

import inmem
from inmem.adapters.otel import names
from inmem.adapters.otel.recorded import (
    RESOURCE_PREFIX,
    Kept,
    kept_in,
    key_of,
    parent_key_of,
    trace_of,
)

PREFIX: Final = "otel/waiting/"
AT_ONCE: Final = 128  # spans of one commit
_PAGE: Final = 256
_TEXT_CHARS: Final = 1000  # of a root's name and error, in the record of its run


def record(
    db: inmem.Database, run: str, new: list[Kept], resources: dict[str, Any], *, is_ours: bool
) -> bool:
    """Record spans, and what has waited for them; whether any of them waits now.

    A run that is ours is created for its spans, and ends when its root is recorded with all that has waited.
    """
    root, above, is_whole = db.transact(run, lambda txn: _recorded(txn, new, resources, is_ours=is_ours))
    if above:
        _record_below(db, run, above)
        if root is not None:
            db.transact(run, lambda txn: _end(txn, root))
    return not is_whole


def settle(db: inmem.Database, run: str) -> int:
    """Record the spans that wait for parents which never came, as roots; how many waited.

    A program that was killed leaves such spans: those that had ended, below
    one that had not. Call it when no program hands in spans of the run any
    more. Cost: one transaction for 128 spans.

    >>> import inmem
    >>> from inmem.adapters.otel import settle
    >>> with inmem.open() as db:
    ...     settle(db, "run-1")
    0

    Raises:
        RunDeletedError: the run was deleted.
    """
    count = 0
    while keys := db.kv.list(run, PREFIX):
        waiting = {_span_of(key) for key in keys}
        tops = [key for key in keys if _parent_of(key) not in waiting]
        for some in _in_parts(tops or keys[:1]):  # spans that are each other's parents have no top
            placed = _place(db, run, some)
            count += len(placed) + _record_below(db, run, placed)
    db.transact(run, _end_with_root)
    return count


def waiting_in(db: inmem.Database, run: str) -> Iterator[Kept]:
    """What waits in a run."""
    after: str | None = None
    while page := db.kv.list_with_values(run, PREFIX, limit=_PAGE, start_after=after):
        yield from (kept for _, kept in page)
        after = page[-1][0]


def _recorded(
    txn: inmem.Transaction, new: list[Kept], resources: dict[str, Any], *, is_ours: bool
) -> tuple[Kept | None, list[str], bool]:
    """Record those of some spans that can be, let the others wait.

    It gives the root among them, those that others wait for, and whether all were recorded.
    """
    for digest, value in resources.items():
        if not txn.kv.exists(RESOURCE_PREFIX + digest):
            txn.kv.put(RESOURCE_PREFIX + digest, value)
    if is_ours and txn.runs.get_run() is None:
        txn.runs.create_run(tags=["otel"], metadata={names.TRACE_KEY: new[0]["trace"]})
    fresh = {key_of(kept): kept for kept in new if txn.traces.get(key_of(kept)) is None}
    below: dict[str, list[Kept]] = {}
    ready: list[tuple[Kept, str | None]] = []
    for key, kept in fresh.items():
        above = parent_key_of(kept)
        if above is None:
            ready.append((kept, None))
        elif above in fresh and above != key:
            below.setdefault(above, []).append(kept)
        elif txn.traces.get(above) is not None:
            ready.append((kept, above))
        elif kept["parent"][1]:  # of another program, which may never hand it in
            ready.append((kept, None))
    placed: dict[str, tuple[Kept, str | None]] = {}
    while ready:
        kept, above = ready.pop()
        placed[key_of(kept)] = (kept, above)
        ready += [(child, key_of(kept)) for child in reversed(below.get(key_of(kept), []))]
    txn.traces.record_many([trace_of(kept, above) for kept, above in placed.values()])
    txn.kv.put_many({_entry_of(kept): kept for key, kept in fresh.items() if key not in placed})
    awaited = [key for key in placed if txn.kv.list(f"{PREFIX}{key}/", limit=1)]
    root = next((kept for kept, _ in placed.values() if is_ours and kept["parent"] is None), None)
    if root is not None and not awaited:
        _end(txn, root)
    return root, awaited, len(placed) == len(fresh)


def _record_below(db: inmem.Database, run: str, above: list[str]) -> int:
    """Record all that waits for some recorded spans, and for those in turn; how many there were."""
    count = 0
    above = list(above)
    while above:
        parent = above.pop()
        while True:
            keys = db.kv.list(run, f"{PREFIX}{parent}/", limit=AT_ONCE)
            if not keys:
                break
            placed = _place(db, run, keys)
            count += len(placed)
            above += placed
    return count


def _place(db: inmem.Database, run: str, keys: list[str]) -> list[str]:
    """Record what waits under some keys; in more commits than one if it is too much for that."""
    try:
        return db.transact(run, lambda txn: _placed(txn, keys))
    except inmem.LimitError:
        half = len(keys) // 2
        if not half:
            raise
        return _place(db, run, keys[:half]) + _place(db, run, keys[half:])


def _placed(txn: inmem.Transaction, keys: list[str]) -> list[str]:
    """Record what waits under some keys, below the parents that are there; the ids of the traces."""
    ids = []
    for key in keys:
        kept = txn.kv.get(key)
        if kept is None:
            continue  # somebody else has just recorded it
        txn.kv.delete(key)
        if txn.traces.get(key_of(kept)) is not None:
            continue  # it was handed in again, and recorded then
        above = parent_key_of(kept)
        is_there = above is not None and txn.traces.get(above) is not None
        txn.traces.record_many([trace_of(kept, above if is_there else None)])
        ids.append(key_of(kept))
    return ids


def _end(txn: inmem.Transaction, root: Kept) -> None:
    """The run ends as its root did."""
    run = txn.runs.get_run()
    if run is None or run.status is not inmem.RunStatus.ACTIVE:
        return
    name = root["name"][:_TEXT_CHARS]
    txn.runs.update_metadata({"name": name})
    code, description = root["status"]
    if code == StatusCode.ERROR.name:
        txn.runs.fail_run((description or f"{name} failed")[:_TEXT_CHARS])
    else:
        txn.runs.complete_run()


def _end_with_root(txn: inmem.Transaction) -> None:
    """End the run if it was made for spans and its root is there: who recorded that may have died then."""
    run = txn.runs.get_run()
    if run is not None and names.TRACE_KEY in run.metadata:
        for trace in txn.traces.roots():
            kept = kept_in(trace)
            if kept is not None and kept["parent"] is None:
                _end(txn, kept)


def _in_parts(keys: list[str]) -> Iterator[list[str]]:
    for at in range(0, len(keys), AT_ONCE):
        yield keys[at : at + AT_ONCE]


def _entry_of(kept: Kept) -> str:
    """Where a span waits."""
    return f"{PREFIX}{parent_key_of(kept)}/{kept['span']}"


def _parent_of(key: str) -> str:
    """The id of the trace that an entry waits for."""
    return key.removeprefix(PREFIX).partition("/")[0]


def _span_of(key: str) -> str:
    """The id of the trace that an entry will be."""
    parent, _, span = key.removeprefix(PREFIX).partition("/")
    return f"{parent.partition('.')[0]}.{span}"
