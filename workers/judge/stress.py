"""The judge of the stress: is there one order that explains what the workers were answered?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Final

from workers.judge.checks import Check, check_numbers
from workers.judge.final_state import (
    FinalRun,
    FinalState,
    Table,
    check_effect,
    check_integrity,
    check_told,
    count_by,
    run_checks,
)
from workers.judge.history import OK, REFUSED, UNKNOWN, Op
from workers.judge.run_histories import check_deleted, check_statuses
from workers.judge.values import same, shorten

# What a question may be refused with; anything else is a failure of the store.
EXPECTED: Final[dict[str, frozenset[str]]] = {
    "cas": frozenset({"VersionMismatchError"}),
    "cell.init": frozenset({"CellExistsError"}),
    "tally": frozenset({"ConflictError"}),
    "mark": frozenset({"ConflictError"}),
    "abort": frozenset({"Abandoned"}),
    "contest": frozenset({"TraceExistsError"}),
    "status": frozenset({"InvalidTransitionError", "RunNotFoundError"}),
    "create": frozenset({"RunExistsError", "RunDeletedError"}),
    "victim.kv": frozenset({"RunDeletedError"}),
    "victim.append": frozenset({"RunDeletedError"}),
    "victim.cell": frozenset({"RunDeletedError"}),
    "victim.trace": frozenset({"RunDeletedError"}),
    "delete": frozenset({"RunDeletedError", "RunNotFoundError"}),
}


def check_answers(check: Check, ops: list[Op]) -> None:
    """Every question was answered, and refused only for a reason that there may be."""
    for op in ops:
        check.require(op.answered_at is not None, f"{op} was never answered")
        if op.outcome == REFUSED:
            allowed = EXPECTED.get(op.op, frozenset())
            check.require(op.error in allowed, f"{op} was refused with {op.error}: {op.told}")


def check_counters(check: Check, ops: list[Op], final: FinalState) -> None:
    """Exact, and each sum was told to one worker."""
    for run in final.hot:
        check_told(check, "counter", ops, run, final.runs[run].kv.get("counter", 0))


def check_appends(check: Check, ops: list[Op], final: FinalState) -> None:
    """Each acknowledged event is there once, where it was said to be; the rest nowhere, or whole."""
    places: dict[tuple[str, int, int], dict[int, int]] = {}
    for run, there in final.runs.items():
        for index, (sequence, kind, payload) in enumerate(there.events):
            check.require(sequence == index, f"{run}: event {index} has sequence {sequence}")
            if kind != "tick":
                continue
            worker, n, part = payload
            parts = places.setdefault((run, worker, n), {})
            check.require(part not in parts, f"{run}: {payload} is there twice: {sequence}")
            parts[part] = sequence
    for op in ops:
        have = places.pop((op.run, op.worker, op.n), {})
        if not final.runs[op.run].takes_writes:  # deleted: what was there is another check's
            continue
        told = op.result if isinstance(op.result, list) else [op.result]
        found = [have[part] for part in sorted(have)]
        count = op.args.get("count", 1)
        whole = len(found) == count and found == list(range(found[0], found[0] + count))
        if op.outcome == OK:
            check.require(found == told, f"{op}: acknowledged at {told}, it is at {found}")
        check_effect(check, op, whole, not found, found)
    check.require(not places, f"events that nobody appended: {shorten(sorted(places))}")


def check_chains(check: Check, _: list[Op], final: FinalState) -> None:
    """No chain is broken."""
    for run, there in final.runs.items():
        check.require(there.chain is None, f"{run}: {there.chain}")


def check_winners(check: Check, ops: list[Op], final: FinalState) -> None:
    """One winner for each version, and the last winner's value stays."""
    for run in final.hot:
        won = count_by(ops, run, OK)
        value, version = final.runs[run].cells["duel"]
        check_told(check, "duel", ops, run, version, first=2)
        for op in won:
            check.require(
                op.result == op.args["expected"] + 1, f"{op} went from {op.args['expected']} to {op.result}"
            )
            if op.result == version:
                check.require(same(value, [op.worker, op.n]), f"{op} won the last version, not {value}")
    for op in ops:
        if op.outcome == REFUSED and "actual" in op.told:
            check.require(
                op.told["actual"] > op.args["expected"],
                f"{op} read {op.args['expected']} and was told {op.told['actual']}",
            )


def check_versions(check: Check, ops: list[Op], final: FinalState) -> None:
    """No version is used twice for a cell, and later changes have higher ones, deletions or not."""
    cells: dict[tuple[str, str], list[Op]] = {}
    for op in ops:
        if op.outcome == OK:
            cells.setdefault((op.run, op.args["cell"]), []).append(op)
    for (run, name), changes in cells.items():
        seen: dict[int, Op] = {}
        for op in changes:
            other = seen.setdefault(op.result, op)
            check.require(other is op, f"{name} of {run}: version {op.result} is of {other} and of {op}")
        changes.sort(key=lambda op: op.answered_at or 0)
        answered = [op.answered_at or 0 for op in changes]
        highest = [0]
        for op in changes:
            highest.append(max(highest[-1], op.result))
        for op in changes:
            before = highest[bisect_left(answered, op.asked_at)]
            check.require(op.result > before, f"{op}: version {op.result} after {before} was acknowledged")
        there = final.runs[run].cells.get(name)
        if there is not None:
            check.require(there[1] >= highest[-1], f"{name} of {run} is at {there[1]}, was at {highest[-1]}")


def check_tallies(check: Check, ops: list[Op], final: FinalState) -> None:
    """As many as there were transitions; each result was told to one worker."""
    for run in final.hot:
        value, version = final.runs[run].cells["tally"]
        check_told(check, "tally", ops, run, value)
        check.require(version == 1 + value, f"tally of {run}: version {version} with {value}")


def check_marks(check: Check, ops: list[Op], final: FinalState) -> None:
    """A mark is in all five primitives of its runs, or in none."""
    found = {run: _marks_in(final.runs[run]) for run in final.hot}
    latest: dict[tuple[str, int], int] = {}
    numbers: dict[str, list[int]] = {run: [] for run in final.hot}
    unknown = dict.fromkeys(final.hot, 0)
    for op in ops:
        mark = f"{op.worker}-{op.n}"
        where = [found[run].pop(mark, {}) for run in op.args["runs"]]
        check_effect(check, op, all(_is_whole(parts, op) for parts in where), not any(where), where)
        if op.outcome == OK:
            for run, number in zip(op.args["runs"], op.result, strict=True):
                numbers[run].append(number)
                latest[run, op.worker] = max(latest.get((run, op.worker), -1), op.n)
        elif op.outcome == UNKNOWN:
            for run in op.args["runs"]:
                unknown[run] += 1
    for run in final.hot:
        there = final.runs[run]
        check.require(not found[run], f"{run}: marks that nobody made: {shorten(sorted(found[run]))}")
        counts = [
            there.kv.get("marks", 0), there.cells["marks"][0], there.metadata.get("marks", 0),
            there.version - 1, there.cells["marks"][1] - 1,
        ]  # fmt: skip
        check.require(len(set(counts)) == 1, f"{run}: five counts of marks differ: {counts}")
        check_numbers(check, f"marks of {run}", numbers[run], counts[0], unknown[run])
    for (run, worker), n in latest.items():
        have = final.runs[run].metadata.get(f"w{worker}", -1)
        fits = have == n or (unknown[run] > 0 and have > n)
        check.require(fits, f"{run}: the last mark of worker {worker} is {have}, not {n}")


def _marks_in(run: FinalRun) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in run.kv.items():
        if key.startswith("m:"):
            found.setdefault(key[2:], {})["kv"] = value
    for name, (value, _) in run.cells.items():
        if name.startswith("m:"):
            found.setdefault(name[2:], {})["cell"] = value
    for _, kind, payload in run.events:
        if kind == "mark":
            parts = found.setdefault(payload["mark"], {})
            parts["events"] = parts.get("events", 0) + 1
    for trace_id in run.traces:
        if trace_id.startswith("m-"):
            found.setdefault(trace_id[2:], {})["trace"] = True
    return found


def _is_whole(parts: dict[str, Any], op: Op) -> bool:
    return same(parts, {"kv": op.n, "cell": op.n, "events": 1, "trace": True})


def check_audits(check: Check, ops: list[Op], final: FinalState) -> None:
    """A snapshot shows one number in all places, and never an older one than before."""
    last: dict[tuple[int, str], int] = {}
    for op in ops:
        if op.outcome != OK:
            continue
        check.require(len(set(op.result.values())) == 1, f"{op}: a snapshot shows {op.result}")
        seen = last.get((op.worker, op.run), 0)
        marks = op.result["kv"]
        end = final.runs[op.run].kv.get("marks", 0)
        check.require(seen <= marks <= end, f"{op}: {marks} marks, {seen} before and {end} in the end")
        last[op.worker, op.run] = marks


def check_traces(check: Check, ops: list[Op], final: FinalState) -> None:
    """Chains are whole, below each other; a contested id has one winner."""
    left = {
        run: {name: trace for name, trace in final.runs[run].traces.items() if not name.startswith("m-")}
        for run in final.hot
    }
    winners: dict[tuple[str, str], Op] = {}
    maybe: set[tuple[str, str]] = set()
    for op in ops:
        if op.op == "contest":
            key = (op.run, op.args["id"])
            if op.outcome == OK:
                other = winners.setdefault(key, op)
                check.require(other is op, f"{op.args['id']} of {op.run} is of {other} and of {op}")
            elif op.outcome == UNKNOWN:
                maybe.add(key)
            continue
        ids = [f"t-{op.worker}-{op.n}-{place}" for place in range(op.args["depth"])]
        have = [left[op.run].pop(name, None) for name in ids]
        want = [(parent, place) for place, parent in enumerate([None, *ids[:-1]])]
        check_effect(check, op, have == want, not any(trace is not None for trace in have), have)
    for (run, name), op in winners.items():
        there = left[run].pop(name, None)
        check.require(there == (None, [op.worker, op.n]), f"{name} of {run}: {op} won it, there is {there}")
    for run, names in left.items():
        extra = [name for name in names if (run, name) not in maybe]
        check.require(not extra, f"{run}: traces that nobody recorded: {shorten(sorted(extra))}")


SHARED_RUNS: Final[Table] = (
    ("counters", check_counters, frozenset({"add"})),
    ("appends", check_appends, frozenset({"append", "victim.append"})),
    ("chains", check_chains, frozenset({"append", "victim.append", "mark"})),
    ("cell winners", check_winners, frozenset({"cas"})),
    ("cell versions", check_versions, frozenset({"cas", "cell.init", "cell.set"})),
    ("transitions", check_tallies, frozenset({"tally"})),
    ("marks", check_marks, frozenset({"mark", "abort"})),
    ("snapshots", check_audits, frozenset({"audit"})),
    ("traces", check_traces, frozenset({"trace", "contest"})),
    ("status histories", check_statuses, frozenset({"status", "create"})),
    (
        "deleted runs", check_deleted,
        frozenset({"delete", "create", "victim.kv", "victim.append", "victim.cell", "victim.trace"}),
    ),
)  # fmt: skip


def judge(histories: Sequence[Sequence[Op]], final: FinalState) -> list[Check]:
    """All checks for which anything was asked."""
    ops = [op for history in histories for op in history]
    answers = Check("answers")
    check_answers(answers, ops)
    return [*([answers] if ops else []), *run_checks(SHARED_RUNS, histories, final), check_integrity(final)]
