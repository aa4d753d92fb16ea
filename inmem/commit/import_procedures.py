"""Procedures of imports: records as they were elsewhere, into a run that nobody has yet.

Invariant: an imported run keeps the rules that every run keeps: sequences
contiguous, hashes those of the content, versions above 0, parents before
children, indices complete.

`begin` closes an empty run to all others. The records follow, in as many
commits as it takes. `finish` gives the run its record and opens it, if all
records have come. A run that fits one commit has all of this in that commit.

Each call names the token of its import. If a later import has begun anew,
what the earlier one still sends is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from inmem.commit import trace_procedures
from inmem.commit.arguments import (
    check_labels,
    check_map,
    check_name,
    check_namespace,
    check_prefix,
    check_time,
    check_type,
)
from inmem.commit.workspace import Workspace
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import (
    BusyError,
    CellExistsError,
    InvalidInputError,
    InvariantError,
    LimitError,
    RunDeletedError,
    RunExistsError,
)
from inmem.keys import MAX_LABEL_BYTES, MAX_NAME_BYTES, Key, TypeTag, check_run_id, range_of
from inmem.model import cell, event_log, importing, run
from inmem.model.counts import add, pack, unpack
from inmem.model.importing import TOKEN_BYTES, Mark

_NO_TOKEN: Final = b""


def begin(workspace: Workspace, namespace: bytes, run_id: str, token: bytes, cell_mark: int) -> bool:
    """Close a run to all but this import; whether that removed what an earlier one had left.

    `cell_mark` is the highest version that a deleted cell of the run had, 0 for none.
    """
    prefix = _prefix(namespace, run_id)
    _check_token(token)
    check_time(cell_mark, "cell_mark")
    if workspace.is_fenced(prefix):
        raise RunDeletedError(
            f"run {run_id} was deleted: its id is never used again", run_id=run_id,
            hint="Import it under another id: --rename OLD=NEW.",
        )
    left = workspace.mark(prefix) is not None
    start, end = prefix + b"\0", prefix + b"\1"
    if left:
        with workspace.admitted(prefix):
            workspace.delete_range(start, end)
    elif workspace.record(run.run_key(namespace, run_id)) is not None:
        raise RunExistsError(f"run {run_id} exists", run_id=run_id)
    elif next(workspace.scan(start, end), None) is not None:
        raise RunExistsError(f"run {run_id} was never created, but has data", run_id=run_id)
    _set(workspace, Mark(token, {}, prefix))
    if cell_mark:
        with workspace.admitted(prefix):
            workspace.put(cell.mark_key(prefix), cell_mark.to_bytes(8, "big"))
    return left


def entries(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """KV entries: `[key, payload, expires at (0: never), timestamp]`."""
    with importing_records(workspace, prefix, token, "kv", items):
        for item in items:
            name, payload, expires, timestamp = _parts(item, 4)
            check_name(name, MAX_NAME_BYTES, "key")
            check_type("payload", payload, bytes)
            key = Key.of(prefix, TypeTag.KV, name)
            _check_new(workspace, key)
            workspace.put(key, payload, check_time(expires, "expires_at"), _past(timestamp))


def cells(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Cells: `[name, version, timestamp, value]`."""
    with importing_records(workspace, prefix, token, "cells", items):
        for item in items:
            name, version, timestamp, value = _parts(item, 4)
            text = check_name(name, MAX_NAME_BYTES)
            check_type("value", value, bytes)
            if check_time(version, "version") < 1:
                raise InvalidInputError(f"cell {text!r} has version 0: they begin at 1", argument="version")
            key = cell.cell_key(prefix, name)
            if workspace.record(key) is not None:
                raise CellExistsError(f"cell {text!r} comes twice", name=text)
            workspace.put(key, cell.pack(version, value), timestamp=_past(timestamp))


def events(
    workspace: Workspace, prefix: bytes, token: bytes, chain: int, first: int, items: list[Any]
) -> None:
    """Events from sequence `first` on: `[type, payload, timestamp, hash]`; each has to follow the one before.

    `chain` is the number of the log's hash; it is the same in all of a log.
    """
    with importing_records(workspace, prefix, token, "events", items) as mark:
        if chain not in event_log.CHAIN_IDS.values():
            raise InvalidInputError(f"there is no chain {chain!r:.20}", argument="chain")
        following = mark.counts.get("events", 0)
        if first != following:
            raise InvariantError(f"event {first!r:.20} does not follow: {following} is next")
        head = _head(workspace, prefix) if first else None
        for number, item in enumerate(items):
            event_type, payload, timestamp, digest = _parts(item, 4)
            check_name(event_type, MAX_LABEL_BYTES, "event_type")
            check_type("payload", payload, bytes)
            check_type("hash", digest, bytes)
            event = event_log.StoredEvent(
                first + number, chain, check_time(timestamp), event_type,
                event_log.NO_HASH if head is None else head.hash, digest, payload,
            )
            problem = event_log.problem_with(head, event)
            if problem is not None:
                raise InvariantError(f"event {event.sequence} breaks the chain: {problem}")
            workspace.put(event_log.event_key(prefix, event.sequence), event_log.pack(event))
            workspace.put(event_log.index_key(prefix, event_type, event.sequence), b"")
            head = event


def traces(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Traces as `trace.record` takes them, each with its timestamp; parents before children."""
    with importing_records(workspace, prefix, token, "traces", items):
        for item in items:
            _past(_parts(item, 8)[2])
        trace_procedures.record(workspace, prefix, items)


def finish(
    workspace: Workspace, namespace: bytes, run_id: str, token: bytes, counts: list[Any],
    record: list[Any] | None,
) -> None:
    """Open a run that is complete, and give it its record, if it had one where it comes from.

    `counts` are its KV entries, cells, events and traces, and a map of what
    else it has; `record` is `[status, parent run or "", created at, updated at, completed at or 0,
    tags, encoded metadata, error or nil, version]`. The parent need not be
    here: it may come later, or have been deleted.
    """
    prefix = _prefix(namespace, run_id)
    _check_token(token)
    check_type("counts", counts, list)
    mark = _mark_of(workspace, prefix, token)
    if mark.counts != unpack(counts):
        raise InvariantError(f"run {run_id} is not whole: {pack(mark.counts)} came, not {counts!r:.80}")
    payload = None if record is None else run.pack(_checked(run_id, record))
    workspace.set_mark(prefix, None)
    if payload is not None:
        for index_key in run.index_keys(namespace, run_id.encode(), payload):
            workspace.put(index_key, b"")
        workspace.put(run.run_key(namespace, run_id), payload)


def abort(workspace: Workspace, namespace: bytes, run_id: str, token: bytes) -> bool:
    """Remove what has come of a run, and open it again; whether there was anything to give up.

    Without a token (empty) it is anybody's import that is given up.
    """
    prefix = _prefix(namespace, run_id)
    if token != _NO_TOKEN:
        _check_token(token)
    stored = workspace.mark(prefix)
    if stored is None or (token and importing.unpack(stored).token != token):
        return False
    with workspace.admitted(prefix):
        workspace.delete_range(prefix + b"\0", prefix + b"\1")
    workspace.set_mark(prefix, None)
    return True


@contextmanager
def importing_records(
    workspace: Workspace, prefix: bytes, token: bytes, counted: str, items: object
) -> Iterator[Mark]:
    """Inside, the run takes the writes of this import; afterwards the items are counted. Yields its mark."""
    check_prefix(prefix)
    _check_token(token)
    check_type("items", items, list)
    assert isinstance(items, list)
    if len(items) > MAX_TRANSACTION_OPS:
        raise LimitError(
            f"{len(items)} records of one call, the limit is {MAX_TRANSACTION_OPS}",
            what="records of one call", size=len(items), limit=MAX_TRANSACTION_OPS,
        )
    mark = _mark_of(workspace, prefix, token)
    with workspace.admitted(prefix):
        yield mark
    _set(workspace, mark._replace(counts=add(mark.counts, counted, len(items))))


def _mark_of(workspace: Workspace, prefix: bytes, token: bytes) -> Mark:
    run_id = prefix.decode().rpartition("/")[2]
    stored = workspace.mark(prefix)
    if stored is None:
        raise InvariantError(
            f"run {run_id} is not being imported: it was given up meanwhile", hint="Import the file again."
        )
    mark = importing.unpack(stored)
    if mark.token != token:
        raise BusyError(
            f"run {run_id} is being imported by another program, which began later", what=f"run {run_id}",
            hint="Wait for that import.",
        )
    return mark


def _set(workspace: Workspace, mark: Mark) -> None:
    workspace.set_mark(mark.prefix, importing.pack(workspace.version, mark))


def _prefix(namespace: object, run_id: object) -> bytes:
    return check_namespace(namespace) + b"/" + check_run_id(run_id).encode()


def _check_token(token: object) -> None:
    check_type("token", token, bytes)
    assert isinstance(token, bytes)
    if len(token) != TOKEN_BYTES:
        raise InvalidInputError(f"token must be {TOKEN_BYTES} bytes", argument="token")


def _parts(item: Any, count: int) -> list[Any]:
    check_type("items", item, list)
    if len(item) != count:
        raise InvalidInputError(f"a record must be an array of {count}", argument="items")
    return item  # type: ignore[no-any-return]


def _past(timestamp: object) -> int:
    """The time at which something was written elsewhere; 0 would stand for now."""
    if check_time(timestamp) == 0:
        raise InvalidInputError("timestamp must be above 0", argument="timestamp")
    assert isinstance(timestamp, int)
    return timestamp


def _check_new(workspace: Workspace, key: bytes) -> None:
    if workspace.record(key) is not None:
        raise InvariantError(f"{Key(key)!r} comes twice")


def _head(workspace: Workspace, prefix: bytes) -> event_log.StoredEvent | None:
    found = workspace.last(*range_of(prefix, TypeTag.EVENT))
    return None if found is None else event_log.unpack(int.from_bytes(found[0][-8:], "big"), found[1])


def _checked(run_id: str, record: object) -> run.RunMetadata:
    """The record of a run; every field has to be what a run of this store could have."""
    check_type("record", record, list)
    assert isinstance(record, list)
    if len(record) != 9:
        raise InvalidInputError("a run's record must be an array of 9", argument="record")
    status, parent, created, updated, completed, tags, metadata, error, version = record
    check_type("status", status, str)
    known = run.check_status(status, "status")
    if parent != "":
        check_run_id(parent, "parent_run")
    if error is not None:
        check_type("error", error, str)
    for name, value in (("created_at", created), ("updated_at", updated), ("version", version)):
        if check_time(value, name) < 1:
            raise InvalidInputError(f"{name} must be above 0", argument=name)
    ended = check_time(completed, "completed_at") > 0
    if ended and known in (run.RunStatus.ACTIVE, run.RunStatus.PAUSED):
        raise InvariantError(f"run {run_id} is {known.value}, but has a time at which it was completed")
    if not ended and known in run.ENDED:
        raise InvariantError(f"run {run_id} is {known.value}, but has no time at which it was completed")
    return run.RunMetadata(
        run_id, parent or None, known, created, updated, completed or None, tuple(check_labels(tags)),
        check_map(metadata, "metadata"), error, version,
    )
