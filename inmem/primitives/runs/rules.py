"""Run rules: the status table, the record and its index keys.

Invariant: a status changes only as TRANSITIONS allows, and a run's index keys
follow from its record alone. The table is the rule: nothing else decides.

Payload of a run record, MessagePack:
`[status, parent run or "", created at, updated at, completed at or 0,
[tag, ...], encoded metadata, error or nil, version]`, times in microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import msgpack

from inmem import values
from inmem.errors import InvalidInputError, InvalidTransitionError
from inmem.host.interrupts import let_through
from inmem.keys import TypeTag, check_tag_count, range_of, shorten


class RunStatus(StrEnum):
    """Where a run is in its life."""

    ACTIVE = "active"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    ARCHIVED = "archived"


_S = RunStatus
TRANSITIONS: Final[Mapping[RunStatus, frozenset[RunStatus]]] = {
    _S.ACTIVE: frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED, _S.PAUSED, _S.ARCHIVED}),
    _S.PAUSED: frozenset({_S.ACTIVE, _S.CANCELLED, _S.ARCHIVED}),
    _S.COMPLETED: frozenset({_S.ARCHIVED}),
    _S.FAILED: frozenset({_S.ARCHIVED}),
    _S.CANCELLED: frozenset({_S.ARCHIVED}),
    _S.ARCHIVED: frozenset(),
}
ENDED: Final = frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED})
assert set(TRANSITIONS) == set(RunStatus)
TO_COUNT: Final = "records to count at once"  # the limit that sends a large run's client counting
_STATUSES: Final = frozenset(s.value for s in RunStatus)


def is_valid_transition(from_status: RunStatus, to_status: RunStatus) -> bool:
    """Whether a run may go from one status to another.

    >>> is_valid_transition(RunStatus.PAUSED, RunStatus.ACTIVE)
    True
    >>> is_valid_transition(RunStatus.COMPLETED, RunStatus.ACTIVE)
    False
    """
    return check_status(to_status, "to_status") in TRANSITIONS[check_status(from_status, "from_status")]


def check_status(status: object, argument: str) -> RunStatus:
    """The status, which may be given by its value.

    Raises:
        InvalidInputError: there is no such status.
    """
    if isinstance(status, str) and status in _STATUSES:
        return RunStatus(status)
    names = ", ".join(s.name for s in RunStatus)
    raise InvalidInputError(f"{argument} must be one of {names}, not {shorten(status)}", argument=argument)


def check_statuses(given: object, argument: str) -> frozenset[RunStatus]:
    """One status, or some of them.

    Raises:
        InvalidInputError: none, or one that is no status.
    """
    some = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else given
    statuses = frozenset(check_status(status, argument) for status in some)
    if not statuses:
        raise InvalidInputError(f"{argument} must name a status", argument=argument)
    return statuses


@dataclass(frozen=True, slots=True)
class RunMetadata:
    """What is known of a run; times in microseconds, `version` counts its changes from 1."""

    run_id: str
    parent_run: str | None
    status: RunStatus
    created_at: int
    updated_at: int
    completed_at: int | None
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    error: str | None
    version: int


@dataclass(frozen=True, slots=True)
class RunStats:
    """How many runs a namespace has, in total and by status."""

    total: int
    by_status: Mapping[RunStatus, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeletedRun:
    """What a deletion removed: records of each primitive, and whether the run had a record.

    `others` has the numbers of further kinds of records by their names, if there were any.
    """

    run_id: str
    kv: int
    events: int
    cells: int
    traces: int
    had_record: bool
    others: Mapping[str, int] = field(default_factory=dict, hash=False)

    @property
    def total(self) -> int:
        """All primary records that were removed."""
        first = self.kv + self.events + self.cells + self.traces + self.had_record
        return first + sum(self.others.values())


def pack(run: RunMetadata) -> bytes:
    """The payload of a run record."""
    data: bytes = msgpack.packb((
        run.status.value, run.parent_run or "", run.created_at, run.updated_at, run.completed_at or 0,
        run.tags, values.encode(run.metadata, "metadata"), run.error, run.version,
    ))
    return data


def unpack(run_id: str, payload: bytes) -> RunMetadata:
    """The run of a record's payload.

    Raises:
        ValueError: the bytes are no run record.
    """
    try:
        status, parent, created, updated, completed, tags, metadata, error, version = values.decode(payload)
        return RunMetadata(
            run_id, parent or None, RunStatus(status), created, updated, completed or None, tuple(tags),
            values.decode(metadata), error, version,
        )
    except (TypeError, ValueError) as error:
        let_through(error)
        raise values.DamagedValueError(f"not a run record: {error}") from None


def created(
    run_id: str, parent_run: str | None, tags: tuple[str, ...], metadata: dict[str, Any], now_us: int
) -> RunMetadata:
    """A new run."""
    return RunMetadata(
        run_id, parent_run, RunStatus.ACTIVE, now_us, now_us, None, tags, metadata, None, 1
    )


def changed(
    run: RunMetadata, now_us: int, *, status: RunStatus | None = None, error: str | None = None,
    tags: tuple[str, ...] = (), metadata: dict[str, Any] | None = None,
) -> RunMetadata:
    """The run after a change: another status, more tags, or metadata merged in.

    Raises:
        InvalidTransitionError: the table does not allow the status.
        LimitError: the run would have too many tags.
    """
    now_us = max(now_us, run.updated_at)  # an imported run may come from a store whose time is ahead
    completed_at = run.completed_at
    if status is not None:
        if not is_valid_transition(run.status, status):
            raise InvalidTransitionError(
                f"run {run.run_id} cannot go from {run.status.value} to {status.value}",
                from_status=run.status.value, to_status=status.value,
            )
        completed_at = now_us if status in ENDED else completed_at
    all_tags = (*run.tags, *(tag for tag in tags if tag not in run.tags))
    check_tag_count(len(all_tags))
    return replace(
        run,
        status=status or run.status,
        error=run.error if error is None else error,
        completed_at=completed_at,
        tags=all_tags,
        metadata=run.metadata if metadata is None else run.metadata | metadata,
        updated_at=now_us,
        version=run.version + 1,
    )


def runs_of(namespace: bytes) -> tuple[bytes, bytes]:
    """The range of all runs of a namespace."""
    return range_of(namespace, TypeTag.RUN)


def run_key(namespace: bytes, run_id: str) -> bytes:
    """Where a run's record is."""
    return b"%b\0%c%b" % (namespace, TypeTag.RUN, run_id.encode())


def index_keys(namespace: bytes, run_id: bytes, payload: bytes) -> list[bytes]:
    """All index keys of a run, from its record: by status, each tag, and parent if it has one."""
    status, parent, created_at, _, _, tags, _, _, _ = values.decode(payload)
    place = created_at.to_bytes(8, "big") + run_id
    keys = [b"%b\0%c%b\0%b" % (namespace, TypeTag.RUN_BY_STATUS, status.encode(), place)]
    keys += [b"%b\0%c%b\0%b" % (namespace, TypeTag.RUN_BY_TAG, tag.encode(), place) for tag in tags]
    if parent:
        keys.append(b"%b\0%c%b\0%b" % (namespace, TypeTag.RUN_BY_PARENT, parent.encode(), place))
    return keys
