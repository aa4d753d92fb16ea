"""The checks of what only one worker writes: its entries, what expires, its private runs.

Nobody else touches these, so the worker's journal says exactly what was there
at each of its questions.
"""

from __future__ import annotations

from typing import Any, Final

from workers.judge.checks import Check
from workers.judge.final_state import FinalRun, FinalState
from workers.judge.history import OK, REFUSED, UNKNOWN, Op, by_run
from workers.judge.values import same, shorten

CLOCK_SLACK_NS: Final = 500_000_000  # the store's time follows the wall clock, the journals' does not
_ABSENT: Final = object()


def check_own_entries(check: Check, ops: list[Op], final: FinalState) -> None:
    """Each entry is what its worker wrote last, and was so whenever it looked."""
    may: dict[tuple[str, str], set[Any]] = {}  # of each entry, what it may be: keys name their worker
    for op in ops:
        if op.outcome == REFUSED:
            continue
        if op.op == "scan":
            if op.outcome == OK:
                _check_scan(check, op, may)
            continue
        before = may.get((op.run, op.args["key"]), {_ABSENT})
        if op.op == "drop" and op.outcome == OK:
            fits = before != {_ABSENT} if op.result else _ABSENT in before
            check.require(fits, f"{op} of {op.args['key']} was told {op.result}")
        after = {op.n if op.op == "entry" else _ABSENT}
        may[op.run, op.args["key"]] = after if op.outcome == OK else before | after
    for (run, key), allowed in may.items():
        have = final.runs[run].kv.get(key, _ABSENT)
        check.require(have in allowed, f"{run}: {key} is {_shown(have)}, not {_shown(*allowed)}")
        check.lost += have not in allowed
    for run in final.hot:
        for key in final.runs[run].kv:
            if key.startswith("s:"):
                check.require((run, key) in may, f"{run}: {key} is there, and nobody wrote it")


def _check_scan(check: Check, op: Op, may: dict[tuple[str, str], set[Any]]) -> None:
    # A worker asks one thing at a time, and only its last question stays open: all is certain here.
    want = {
        key: value
        for (run, key), values in may.items()
        if run == op.run and key.startswith(op.args["prefix"])
        for value in values
        if value is not _ABSENT
    }
    check.equal(op.result, want, f"what {op} found")


def _shown(*values: Any) -> str:
    return " or ".join("absent" if value is _ABSENT else repr(value) for value in values)


def check_expiry(check: Check, ops: list[Op], final: FinalState) -> None:
    """An entry is there until its time has come, and not after; nothing is left of it."""
    puts: dict[tuple[str, str], Op] = {}  # the last of each entry: keys name their worker
    for op in ops:
        if op.outcome != OK:
            continue
        place = (op.run, op.args["key"])
        if op.op == "ttl":
            puts[place] = op
            continue
        put = puts.get(place)
        if put is None:
            check.require(op.result is None, f"{op} found {op.result}, and nothing was put")
            continue
        ttl_ns = int(put.args["ttl_s"] * 1e9) + CLOCK_SLACK_NS
        if op.result is None:
            fine = (op.answered_at or 0) >= put.asked_at + ttl_ns - 2 * CLOCK_SLACK_NS
            check.require(fine, f"{op}: {place} of {put} is gone too early")
        else:
            fine = op.result == put.n and op.asked_at <= (put.answered_at or 0) + ttl_ns
            check.require(fine, f"{op}: {place} of {put} is {op.result}")
    for run in final.hot:
        left = [key for key in final.runs[run].kv if key.startswith("t:")]
        check.require(not left, f"{run}: expired, and there: {shorten(left)}")


def check_held(check: Check, ops: list[Op], _: FinalState) -> None:
    """A snapshot showed the same at its end as at its beginning."""
    for op in ops:
        if op.outcome == OK:
            check.require(same(*op.result), f"{op} saw {op.result[0]} and then {op.result[1]}")


# --- private runs -----------------------------------------------------------------------------------

# What each question adds to a private run: entries, events, cells, traces.
ADDS: Final = {
    "own.kv": (1, 0, 0, 0), "own.append": (0, 1, 0, 0), "own.cell": (0, 0, 1, 0),
    "own.trace": (0, 0, 0, 1), "own.five": (1, 1, 1, 2),
}  # fmt: skip


def check_private(check: Check, asked: list[Op], final: FinalState) -> None:
    """A deletion removed exactly what was acknowledged; without one all of it is there."""
    for run, ops in by_run(asked).items():
        _check_private_run(check, run, ops, final.runs[run])


def _check_private_run(check: Check, run: str, ops: list[Op], there: FinalRun) -> None:
    least = [sum(part) for part in zip((0, 0, 0, 0), *_added(ops, OK), strict=True)]
    maybe = [sum(part) for part in zip((0, 0, 0, 0), *_added(ops, UNKNOWN), strict=True)]
    most = [low + more for low, more in zip(least, maybe, strict=True)]
    deletion = next((op for op in ops if op.op == "own.delete" and op.outcome != REFUSED), None)
    if deletion is not None and deletion.outcome == OK:
        removed = [deletion.result[name] for name in ("kv", "events", "cells", "traces")]
        check.require(removed == least, f"{run}: {least} were acknowledged, {removed} deleted")
        _count(check, least, removed, least)
        check.require(there.is_empty, f"{run}: deleted, there is {shorten(there)}")
        return
    if deletion is not None and there.is_empty:
        check.compared += 1
        return
    have = [len(there.kv), len(there.events), len(there.cells), len(there.traces)]
    fine = all(low <= count <= high for low, count, high in zip(least, have, most, strict=True))
    check.require(fine, f"{run}: {least} were acknowledged, {most} asked, there are {have}")
    _count(check, least, have, most)
    for op in ops:
        if op.op in ADDS:
            whole = _is_there(op, there)
            check.require(
                None not in whole if op.outcome == OK else len(set(map(type, whole))) == 1,
                f"{op} in {run}: {op.outcome}, there is {whole}",
            )


def _added(ops: list[Op], outcome: str) -> list[tuple[int, ...]]:
    return [ADDS[op.op] for op in ops if op.op in ADDS and op.outcome == outcome]


def _is_there(op: Op, there: FinalRun) -> list[Any]:
    """What the question was to leave; None for what is not there."""
    n = op.n
    event = next((True for _, _, payload in there.events if payload == [op.worker, n]), None)
    cell = True if f"c{n}" in there.cells else None
    entry = True if there.kv.get(f"k{n}") == n else None
    traces = [True if f"{kind}{n}" in there.traces else None for kind in "tu"]
    by_op: dict[str, list[Any]] = {
        "own.kv": [entry], "own.append": [event], "own.cell": [cell], "own.trace": traces[:1],
        "own.five": [entry, event, cell, *traces],
    }  # fmt: skip
    return by_op[op.op]


def _count(check: Check, least: list[int], have: list[int], most: list[int]) -> None:
    for low, count, high in zip(least, have, most, strict=True):
        check.count(low, count, high)
