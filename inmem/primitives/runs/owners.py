"""Who owns a run: the holder of its lease `@run`. And the active runs whose owners have let it run out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from inmem.client.retry import check_timeout
from inmem.engines.base import View
from inmem.errors import RunDeletedError
from inmem.host.interrupts import let_through
from inmem.primitives.byrun import Host
from inmem.primitives.leases.shown import Lease
from inmem.primitives.runs.rules import RunStatus
from inmem.steps import Steps, Until

OWNER: Final = "@run"  # the name of the lease; users may hold, renew and release it as any other


def check_older(older_than_s: object) -> int:
    """The microseconds of a time that may be 0.

    Raises:
        InvalidInputError: it is no time.
    """
    if (type(older_than_s) in (int, float) or isinstance(older_than_s, timedelta)) and not older_than_s:
        return 0
    return round(check_timeout(older_than_s, "older_than_s") * 1e6)


def finding(view: View, older_us: int) -> Callable[[Any], tuple[list[Lease], int]]:
    """What finds, in one snapshot, the leases that ran out so long ago; and the time before which."""

    def find(snapshot: Any) -> tuple[list[Lease], int]:
        before_us = view.now_us() - older_us
        leases = (
            snapshot.at(run.run_id).leases.get(OWNER)
            for run in snapshot.runs.query_runs(status=RunStatus.ACTIVE)
        )
        found = [lease for lease in leases if lease is not None and lease.expires_at <= before_us]
        return sorted(found, key=lambda lease: (lease.expires_at, lease.run_id)), before_us

    return find


def failing(host: Host, view: View, error: str, older_us: int) -> Steps[list[str]]:
    """Fail the runs of these leases, each in a transaction that looks at run and lease again; their ids."""
    found, before_us = yield Until(finding(view, older_us), None)

    def fail(txn: Any) -> bool:
        lease, run = txn.leases.get(OWNER), txn.runs.get_run()
        if lease is None or lease.expires_at > before_us or run is None or run.status != RunStatus.ACTIVE:
            return False
        txn.leases.release(lease)  # so that an owner who wakes up can store nothing under it
        txn.runs.fail_run(error)
        return True

    failed = []
    for lease in found:
        try:
            if (yield host.run(lease.run_id).transact(fail)):
                failed.append(lease.run_id)
        except RunDeletedError as deleted:
            let_through(deleted)
    return failed
