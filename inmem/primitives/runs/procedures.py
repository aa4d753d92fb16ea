"""Procedures of runs: the lifecycle, and deletion with its fence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Final

from inmem.commit.arguments import (
    check_labels,
    check_map,
    check_namespace,
    check_time,
    check_type,
)
from inmem.commit.footprint import Footprint
from inmem.commit.workspace import Workspace
from inmem.config import COUNT_LIMIT
from inmem.errors import (
    ConflictError,
    InvalidInputError,
    LimitError,
    RunDeletedError,
    RunExistsError,
    RunNotFoundError,
)
from inmem.keys import check_run_id, range_of, shorten
from inmem.primitives import index_repair, record_table
from inmem.primitives.counts import FIRST_DELETED, others_in
from inmem.primitives.runs import import_procedures
from inmem.primitives.runs import rules as run


def create(
    workspace: Workspace, namespace: bytes, run_id: str, parent_run: str, tags: list[str], metadata: bytes
) -> int:
    """Create a run; the time of its creation."""
    key = run.run_key(check_namespace(namespace), check_run_id(run_id))
    workspace.check_open(key)
    if workspace.record(key) is not None:
        raise RunExistsError(f"run {run_id} exists", run_id=run_id)
    workspace.check_order(key)
    if parent_run:
        parent = run.run_key(namespace, check_run_id(parent_run, "parent_run"))
        if workspace.record(parent) is None:
            raise RunNotFoundError(f"there is no run {parent_run} to be the parent", run_id=parent_run)
    new = run.created(
        run_id, parent_run or None, tuple(check_labels(tags)), check_map(metadata, "metadata"),
        workspace.stamp_us,
    )
    _write(workspace, namespace, None, new)
    return new.created_at


def ensure(
    workspace: Workspace, namespace: bytes, run_id: str, parent_run: str, tags: list[str], metadata: bytes
) -> int | bytes:
    """Create a run if there is none; the time of its creation, or the record of the one that is there."""
    key = run.run_key(check_namespace(namespace), check_run_id(run_id))
    workspace.check_open(key)
    stored = workspace.get(key)
    return create(workspace, namespace, run_id, parent_run, tags, metadata) if stored is None else stored


def update(
    workspace: Workspace, namespace: bytes, run_id: str, status: str, error: str | None, tags: list[str],
    metadata: bytes,
) -> bytes:
    """Change a run: status (empty: keep), error, tags to add, metadata to merge. The new record."""
    key = run.run_key(check_namespace(namespace), check_run_id(run_id))
    workspace.check_open(key)
    stored = workspace.get(key)
    if stored is None:
        raise RunNotFoundError(f"there is no run {run_id}", run_id=run_id)
    if error is not None:
        check_type("error", error, str)
    try:
        wanted = run.RunStatus(status) if status else None
    except ValueError:
        raise InvalidInputError(f"there is no status {shorten(status)}", argument="status") from None
    old = run.unpack(run_id, stored)
    new = run.changed(
        old, workspace.stamp_us, status=wanted, error=error, tags=tuple(check_labels(tags)),
        metadata=check_map(metadata, "metadata"),
    )
    return _write(workspace, namespace, old, new)


def _write(
    workspace: Workspace, namespace: bytes, old: run.RunMetadata | None, new: run.RunMetadata
) -> bytes:
    run_id = new.run_id.encode()
    payload = run.pack(new)
    before = set(run.index_keys(namespace, run_id, run.pack(old))) if old is not None else set()
    after = run.index_keys(namespace, run_id, payload)
    for index_key in sorted(before.difference(after)):
        workspace.delete(index_key)
    workspace.put(run.run_key(namespace, new.run_id), payload)
    workspace.put_index(index_key for index_key in after if index_key not in before)
    return payload


def footprint(namespace: bytes, *_: Any) -> Footprint:
    """Of `create`, `ensure` and `update`: the namespace's runs. Their indices are changed by nothing else."""
    return Footprint.of(run.runs_of(namespace))


def delete(workspace: Workspace, namespace: bytes, run_id: str) -> list[Any]:
    """Remove a run with all it has, and fence it: `[kv, events, cells, traces, had a record]`.

    A map of the numbers of other kinds follows, if there were any. However many there are, they are
    counted here, while all other commits wait: see `remove`.
    """
    prefix, stored = _to_delete(workspace, namespace, run_id)
    counts = {
        name: sum(1 for _ in workspace.scan(*range_of(prefix, counted.tag)))
        for name, counted in record_table.counted()
    }
    return _removed(workspace, namespace, run_id, stored, counts)


def remove(workspace: Workspace, namespace: bytes, run_id: str, given: list[Any]) -> list[Any]:
    """Like `delete`, for runs of any size: the client counts what is too much to be counted here.

    `given` is empty, or `[version, earliest expiry that was met or 0, [[type tag, number], ...]]`: what
    was counted in that version.

    Raises:
        LimitError: nothing was given, and the run has more than COUNT_LIMIT records.
        ConflictError: something in the run was written since, or has expired.
    """
    prefix, stored = _to_delete(workspace, namespace, run_id)
    check_type("given", given, list)
    counts = _given(workspace, prefix, given) if given else _few(workspace, prefix)
    return _removed(workspace, namespace, run_id, stored, counts)


def _to_delete(workspace: Workspace, namespace: bytes, run_id: str) -> tuple[bytes, bytes | None]:
    """The prefix of a run that can be deleted, and the payload of its record."""
    prefix = check_namespace(namespace) + b"/" + check_run_id(run_id).encode()
    if workspace.is_fenced(prefix):
        raise RunDeletedError(f"run {run_id} was deleted before", run_id=run_id)
    stored = workspace.get(run.run_key(namespace, run_id))
    if stored is None and next(workspace.scan(prefix + b"\0", prefix + b"\1"), None) is None:
        raise RunNotFoundError(f"there is no run {run_id}, and nothing is stored in it", run_id=run_id)
    return prefix, stored


def _few(workspace: Workspace, prefix: bytes) -> dict[str, int]:
    counts: dict[str, int] = {}
    left = COUNT_LIMIT
    for name, counted in record_table.counted():
        found = workspace.scan(*range_of(prefix, counted.tag))
        counts[name] = sum(1 for _ in islice(found, left + 1))
        left -= counts[name]
        if left < 0:
            raise LimitError(
                f"the run has more than {COUNT_LIMIT} records: its client has to count them",
                what=run.TO_COUNT, limit=COUNT_LIMIT, hint="Call delete_run again.",
            )
    return counts


def _given(workspace: Workspace, prefix: bytes, given: list[Any]) -> dict[str, int]:
    version, expiry_us, numbers = given
    check_type("version", version, int)
    check_time(expiry_us, "expiry")
    of_tags = {check_time(tag, "tag"): check_time(number, "number") for tag, number in numbers}
    counts = {name: of_tags.get(counted.tag, 0) for name, counted in record_table.counted()}
    ranges = [range_of(prefix, counted.tag) for _, counted in record_table.counted()]
    unwritten = all(workspace.is_unwritten(start, version) for start, _ in ranges)
    if not unwritten or (expiry_us and workspace.now_us >= expiry_us):
        raise ConflictError("the run has changed since its records were counted")
    return counts


def _removed(
    workspace: Workspace, namespace: bytes, run_id: str, stored: bytes | None, counts: dict[str, int]
) -> list[Any]:
    prefix = namespace + b"/" + run_id.encode()
    workspace.delete_range(prefix + b"\0", prefix + b"\1")
    if stored is not None:
        for index_key in run.index_keys(namespace, run_id.encode(), stored):
            workspace.delete(index_key)
        workspace.delete(run.run_key(namespace, run_id))
    workspace.fence(prefix)
    others = others_in(counts)
    return [*(counts[name] for name in FIRST_DELETED), stored is not None, *([others] if others else [])]


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "run.create": create,
    "run.delete": delete,
    "run.ensure": ensure,
    "run.remove": remove,
    "run.update": update,
    **import_procedures.PROCEDURES,
    **index_repair.PROCEDURES,
}

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = dict.fromkeys(
    ("run.create", "run.ensure", "run.update"), footprint
)
