"""The judge of runs that are created and deleted by anybody: status histories, and deletion.

The version of a run's record counts its changes, so the acknowledged changes
in order of their versions are the run's history.
"""

from __future__ import annotations

from typing import Any

import inmem
from workers.judge.checks import Check
from workers.judge.history import OK, REFUSED, UNKNOWN, Op, by_run
from workers.judge.values import shorten


def check_statuses(check: Check, ops: list[Op], final: Any) -> None:
    """Every step is legal, in the order of versions; a refused one was not."""
    for op in ops:
        if op.error == "InvalidTransitionError":
            start, end = op.told["from_status"], op.told["to_status"]
            check.require(
                not inmem.is_valid_transition(inmem.RunStatus(start), inmem.RunStatus(end)),
                f"{op}: refused from {start} to {end}, which is allowed",
            )
    for run, asked in by_run(ops).items():
        created = [op for op in asked if op.op == "create" and op.outcome == OK]
        check.require(len(created) <= 1, f"{run} was created {len(created)} times")
        steps = [op for op in asked if op.op == "status" and op.outcome == OK]
        steps.sort(key=lambda op: op.result["version"])
        unknown = sum(op.outcome == UNKNOWN for op in asked)
        if steps:
            check.require(bool(created) or unknown > 0, f"{run} has a history, but nobody created it")
        _check_history(check, run, steps, unknown)
        there = final.runs[run]
        if steps and not unknown:
            last = steps[-1].result
            check.require(
                (there.status, there.version) == (last["status"], last["version"]),
                f"{run} is {there.status} at {there.version}, the last change was {last}",
            )


def _check_history(check: Check, run: str, steps: list[Op], unknown: int) -> None:
    status, version = "active", 1
    for op in steps:
        have = op.result
        check.require(have["status"] == op.args["to"], f"{op} asked for {op.args['to']}, became {have}")
        gap = have["version"] - version - 1
        check.require(0 <= gap <= unknown, f"{run}: version {have['version']} of {op} follows {version}")
        if gap == 0:
            check.require(
                inmem.is_valid_transition(inmem.RunStatus(status), inmem.RunStatus(have["status"])),
                f"{run}: {op} went from {status} to {have['status']}",
            )
        status, version = have["status"], have["version"]


def check_deleted(check: Check, ops: list[Op], final: Any) -> None:
    """Deleted once, with all that was there; from then on nothing is stored, and nothing is left."""
    for run, asked in by_run(ops).items():
        deletions = [op for op in asked if op.op == "delete" and op.outcome == OK]
        check.require(len(deletions) <= 1, f"{run} was deleted {len(deletions)} times")
        there = final.runs[run]
        if not deletions:
            fenced = [op for op in asked if op.error == "RunDeletedError"]
            maybe = any(op.op == "delete" and op.outcome == UNKNOWN for op in asked)
            check.require(not fenced or maybe, f"{run}: {fenced[:1]} was told of a deletion that is nobody's")
            if not maybe:
                _check_kept(check, run, asked, there)
            continue
        deletion = deletions[0]
        check.require(there.is_empty, f"{run}: deleted, there is {shorten(there)}")
        check.require(not there.takes_writes, f"{run}: deleted, it takes a write")
        over = deletion.answered_at or 0
        before = {"kv": 0, "append": 0, "cell": 0, "trace": 0}
        most = dict.fromkeys(before, 0)
        for op in asked:
            if op is deletion:
                continue
            if op.error == "RunDeletedError":
                early = (op.answered_at or 0) < deletion.asked_at
                check.require(not early, f"{op} was told that {run} was deleted before it was asked for")
            if op.asked_at > over:
                check.require(op.outcome != OK, f"{op} was acknowledged in {run} after its deletion had been")
            kind = op.op.removeprefix("victim.")
            if kind in before and op.outcome != REFUSED:
                before[kind] += op.outcome == OK and (op.answered_at or 0) < deletion.asked_at
                most[kind] += 1
        for kind, name in (("kv", "kv"), ("append", "events"), ("cell", "cells"), ("trace", "traces")):
            removed = deletion.result[name]
            check.require(
                before[kind] <= removed <= most[kind],
                f"{run}: {removed} {name} were removed, there were {before[kind]} to {most[kind]}",
            )


def _check_kept(check: Check, run: str, asked: list[Op], there: Any) -> None:
    """A run that nobody deleted has all that was acknowledged."""
    for op in asked:
        name = f"v:{op.worker}-{op.n}"
        have = {
            "victim.kv": there.kv.get(name) == op.n,
            "victim.cell": there.cells.get(name, (None,))[0] == op.n,
            "victim.trace": f"v-{op.worker}-{op.n}" in there.traces,
            "create": there.status is not None,
        }
        if op.op in have and op.outcome == OK:
            check.require(have[op.op], f"{op}: acknowledged in {run}, and not there")
