"""Deleting the runs that nobody needs any more: those that have ended, but for the last of them."""

from __future__ import annotations

import operator
from typing import Any, Final

from inmem.engines.base import View
from inmem.errors import InvalidInputError, RunDeletedError, RunNotFoundError
from inmem.host.interrupts import let_through
from inmem.keys import shorten
from inmem.primitives.byrun import Host
from inmem.primitives.runs.rules import ENDED, DeletedRun, RunMetadata, RunStatus
from inmem.stepping import Steps, Until

TERMINAL: Final = ENDED | {RunStatus.ARCHIVED}  # statuses in which nobody works on a run any more


def check_ended(statuses: frozenset[RunStatus]) -> frozenset[RunStatus]:
    """Refuse statuses of runs that may be worked on: they could change before they are deleted.

    Raises:
        InvalidInputError: one is active or paused.
    """
    for status in sorted(statuses - TERMINAL):
        raise InvalidInputError(
            f"status has {status.value}, and only runs that have ended can be pruned", argument="status",
            hint="End the run first, or delete it with runs.delete_run.",
        )
    return statuses


def check_kept(keep_last: object) -> int:
    """How many runs stay.

    Raises:
        InvalidInputError: no `int` of 0 or more.
    """
    if type(keep_last) is not int or keep_last < 0:
        raise InvalidInputError(
            f"keep_last must be an int of 0 or more, not {shorten(keep_last)}", argument="keep_last"
        )
    return keep_last


def pruning(
    host: Host, view: View, statuses: frozenset[RunStatus], older_us: int, keep_last: int
) -> Steps[list[DeletedRun]]:
    """Delete runs of these statuses that were changed so long ago, but for those that were changed last."""

    def find(snapshot: Any) -> tuple[list[RunMetadata], int]:
        found = [run for status in statuses for run in snapshot.runs.query_runs(status=status)]
        return sorted(found, key=operator.attrgetter("updated_at", "run_id")), view.now_us() - older_us

    found, before_us = yield Until(find, None)
    deleted = []
    for run in found[: len(found) - keep_last]:
        if run.updated_at > before_us:
            break
        try:
            deleted.append((yield host.run(run.run_id).runs.delete_run()))
        except (RunNotFoundError, RunDeletedError) as error:  # by somebody else
            let_through(error)
    return deleted
