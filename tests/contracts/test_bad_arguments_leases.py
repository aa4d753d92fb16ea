"""Every bad argument of leases, and leases of elsewhere: a typed error, and nothing stored."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from bad_arguments import BAD_LIMITS, BAD_NAMES, BAD_PREFIXES, BAD_RUNS, HUGE, Opaque, refused, shown
from leases_under_test import LONG_S, db, run, run_id

import inmem
from inmem import Lease
from inmem.errors import InvalidInputError, LeaseLostError

__all__ = ["db", "run", "run_id"]

BAD_SECONDS = [
    None, 0, -1, 0.0, math.nan, math.inf, True, "1", b"1", [], HUGE, 1e10, timedelta(0), timedelta.max,
    Opaque(),
]
BAD_WAITS = [x for x in BAD_SECONDS if x is not None and x not in (0, timedelta(0))]
BAD_HOLDERS = [7, True, b"x", [], HUGE, "", "\ud800", "x" * 257, "é" * 129, Opaque()]
NO_NUMBERS = [None, -1, 1 << 63, 1 << 64, 1.0, True, "1", Opaque()]
MADE_BY_HAND = [
    *({"name": value} for value in BAD_NAMES), *({"token": value} for value in NO_NUMBERS),
    *({"acquired_at": value} for value in NO_NUMBERS),
    *({"prefix": value} for value in (None, "x", b"\xff", 7)),
    *({"run_id": value} for value in (None, 7, b"run", HUGE)),
]
NO_LEASES = [None, 7, "a", b"a", [], {}, ("a", 1), HUGE, Opaque(), Lease]


# --- arguments --------------------------------------------------------------------------------------


def bad_calls(leases: Any, first: tuple[str, ...]) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
    """An argument, a bad value, and the call that has it."""
    wrong = {"name": BAD_NAMES, "ttl_s": BAD_SECONDS, "holder": BAD_HOLDERS, "wait_s": BAD_WAITS}
    for method in ("acquire", "hold"):
        for argument, values in wrong.items():
            for value in values:
                given = {"name": "a", "ttl_s": 9} | {argument: value}
                yield argument, value, lambda m=method, given=given: getattr(leases, m)(*first, **given)
    for value in BAD_NAMES:
        yield "name", value, lambda value=value: leases.get(*first, value)
    places = [x for x in BAD_NAMES if x is not None]
    listing = {"prefix": BAD_PREFIXES, "limit": BAD_LIMITS, "start_after": places}
    for argument, values in listing.items():
        for value in values:
            yield argument, value, lambda given={argument: value}: leases.list(*first, **given)


@pytest.mark.parametrize("form", ["facade", "scope"])
def test_bad_arguments(db: inmem.Database, run_id: str, run: inmem.RunScope, form: str) -> None:
    leases, first = (db.leases, (run_id,)) if form == "facade" else (run.leases, ())
    for argument, value, call in bad_calls(leases, first):
        refused(call, argument, f"{argument}={shown(value)}")
    if form == "facade":
        for value in BAD_RUNS:
            for name, given in (("acquire", {"ttl_s": 9}), ("hold", {}), ("get", {}), ("list", {})):
                arguments = () if name == "list" else ("a",)
                call = getattr(db.leases, name)
                refused(lambda value=value, call=call, arguments=arguments, given=given:
                        call(value, *arguments, **given), "run_id", shown(value))  # fmt: skip
    assert run.leases.list() == []


@pytest.mark.parametrize("form", ["facade", "scope", "transaction", "snapshot"])
def test_leases_of_elsewhere_and_what_is_none(
    home: Any, db: inmem.Database, run_id: str, run: inmem.RunScope, form: str
) -> None:
    mine = run.leases.acquire("a", ttl_s=LONG_S)
    with home.open(agent="elsewhere") as other, run.transaction() as txn, run.snapshot() as view:
        foreign = [
            other.leases.acquire(run_id, "a", ttl_s=LONG_S), db.shared("app").leases.acquire(run_id, ttl_s=9)
        ]
        if form != "facade":  # which finds the run of a lease
            foreign.append(db.leases.acquire("elsewhere", run_id, ttl_s=LONG_S))
        else:
            foreign.pop()
        leases = {"facade": db, "scope": run, "transaction": txn, "snapshot": view}[form].leases
        for value in [*NO_LEASES, *foreign]:
            for method in ("check", "renew", "release"):
                call = getattr(leases, method, None)
                if call is not None:
                    refused(lambda call=call, value=value: call(value), "lease", f"{method}({shown(value)})")
        if form != "snapshot":
            for value in BAD_SECONDS[1:]:
                refused(lambda value=value: leases.renew(mine, value), "ttl_s", shown(value))
        txn.abort()
    for value in NO_LEASES[1:]:
        refused(lambda value=value: run.transact(lambda txn: None, lease=value), "lease", shown(value))
        refused(lambda value=value: db.transact(run_id, lambda txn: None, lease=value), "lease", shown(value))
    run.leases.check(mine)


@pytest.mark.parametrize("form", ["facade", "scope", "transaction", "snapshot"])
def test_leases_that_were_made_by_hand(db: inmem.Database, run: inmem.RunScope, form: str) -> None:
    mine = run.leases.acquire("a", ttl_s=LONG_S)
    with run.transaction() as txn, run.snapshot() as view:
        leases = {"facade": db, "scope": run, "transaction": txn, "snapshot": view}[form].leases
        for wrong in MADE_BY_HAND:
            made = dataclasses.replace(mine, **wrong)
            for method in ("check", "renew", "release"):
                call = getattr(leases, method, None)
                if call is not None:
                    refused(lambda call=call, made=made: call(made), "lease", f"{method}({shown(wrong)})")
            refused(lambda made=made: run.transact(lambda txn: None, lease=made), "lease", shown(wrong))
        txn.abort()
    run.leases.check(mine)


def test_a_lease_of_another_store(run: inmem.RunScope) -> None:
    with inmem.open() as other:
        foreign = other.leases.acquire(run.run_id, "a", ttl_s=LONG_S)
    mine = run.leases.acquire("a", ttl_s=LONG_S)
    same_token = dataclasses.replace(foreign, token=mine.token)
    for lease in (foreign, same_token):
        with pytest.raises(LeaseLostError):
            run.leases.check(lease)
        with pytest.raises(LeaseLostError):
            run.transact(lambda txn: txn.kv.put("k", 1), lease=lease)
    assert run.kv.get("k") is None


@pytest.mark.parametrize(("procedure", "arguments"), [
    ("acquire", [b"", b"a", "h", 1, 0, 1]), ("acquire", [b"p/q/r/s", b"", "h", 1, 0, 1]),
    ("acquire", [b"p/q/r/s", b"a", "", 1, 0, 1]), ("acquire", [b"p/q/r/s", b"a", b"h", 1, 0, 1]),
    ("acquire", [b"p/q/r/s", b"a", "h" * 257, 1, 0, 1]), ("acquire", [b"p/q/r/s", b"a", "h", 0, 0, 1]),
    ("acquire", [b"p/q/r/s", b"a", "h", 1 << 63, 0, 1]), ("acquire", [b"p/q/r/s", b"a", "h", 1, -1, 1]),
    ("acquire", [b"p/q/r/s", b"a", "h", 1, 0, 0]), ("acquire", [b"p/q/r/s", b"a", "h", 1, 0, 1.0]),
    ("confirm", [b"p/q/r/s", b"a", 0, 1]), ("confirm", [b"p/q/r/s", b"a", 1, -1]),
    ("leave", [b"p/q/r/s", b"a", None, 0]), ("leave", [b"p/q/r/s", "a", 1, 0]),
    ("leave", [b"p/q/r/s", b"a", 1, -1]),
    ("renew", [b"p/q/r/s", b"a", "1", 1, 1]), ("renew", [b"p/q/r/s", b"a", 1, None, 1]),
    ("check", [b"p/q/r/s", b"a", 1.0, 1]), ("release", [b"p/q/r/s", b"\xff", 1, 1]),
])  # fmt: skip
def test_what_no_client_sends_is_refused(db: inmem.Database, procedure: str, arguments: list[Any]) -> None:
    with pytest.raises(InvalidInputError):
        db.engine.direct().ask(f"lease.{procedure}", arguments, tuple)
