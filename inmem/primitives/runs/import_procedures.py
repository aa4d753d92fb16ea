"""Procedures that begin and end the import of a run: records as they were elsewhere, which nobody has yet.

Invariant: an imported run keeps the rules that every run keeps: sequences
contiguous, hashes those of the content, versions above 0, parents before
children, indices complete.

`begin` closes an empty run to all others. The records follow, in as many
commits as it takes, through a procedure of each primitive. `finish` gives the
run its record and opens it, if all records have come. A run that fits one
commit has all of this in that commit.

Each call names the token of its import. If a later import has begun anew,
what the earlier one still sends is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit.arguments import (
    check_labels,
    check_map,
    check_namespace,
    check_time,
    check_type,
)
from inmem.commit.workspace import Workspace
from inmem.errors import (
    InvalidInputError,
    InvariantError,
    RunDeletedError,
    RunExistsError,
)
from inmem.keys import check_run_id
from inmem.primitives import import_mark
from inmem.primitives.cells import rules as cell
from inmem.primitives.counts import pack, unpack
from inmem.primitives.import_mark import Mark
from inmem.primitives.importing import check_token, mark_of, set_mark
from inmem.primitives.runs import rules as run

_NO_TOKEN: Final = b""


def begin(workspace: Workspace, namespace: bytes, run_id: str, token: bytes, cell_mark: int) -> bool:
    """Close a run to all but this import; whether that removed what an earlier one had left.

    `cell_mark` is the highest version that a deleted cell of the run had, 0 for none.
    """
    prefix = _prefix(namespace, run_id)
    check_token(token)
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
    set_mark(workspace, Mark(token, {}, prefix))
    if cell_mark:
        with workspace.admitted(prefix):
            workspace.put(cell.mark_key(prefix), cell_mark.to_bytes(8, "big"))
    return left


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
    check_token(token)
    check_type("counts", counts, list)
    mark = mark_of(workspace, prefix, token)
    if mark.counts != unpack(counts):
        raise InvariantError(f"run {run_id} is not whole: {pack(mark.counts)} came, not {counts!r:.80}")
    payload = None if record is None else run.pack(_checked(run_id, record))
    workspace.set_mark(prefix, None)
    if payload is not None:
        workspace.put(run.run_key(namespace, run_id), payload)
        workspace.put_index(run.index_keys(namespace, run_id.encode(), payload))


def abort(workspace: Workspace, namespace: bytes, run_id: str, token: bytes) -> bool:
    """Remove what has come of a run, and open it again; whether there was anything to give up.

    Without a token (empty) it is anybody's import that is given up.
    """
    prefix = _prefix(namespace, run_id)
    if token != _NO_TOKEN:
        check_token(token)
    stored = workspace.mark(prefix)
    if stored is None or (token and import_mark.unpack(stored).token != token):
        return False
    with workspace.admitted(prefix):
        workspace.delete_range(prefix + b"\0", prefix + b"\1")
    workspace.set_mark(prefix, None)
    return True


def _prefix(namespace: object, run_id: object) -> bytes:
    return check_namespace(namespace) + b"/" + check_run_id(run_id).encode()


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


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "import.abort": abort,
    "import.begin": begin,
    "import.finish": finish,
}
