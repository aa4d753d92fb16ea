"""The judge of a chaos: what each worker's journal says against what is in the store at the end.

Invariant: what was acknowledged is there exactly once; what was refused is
nowhere; what a killed worker asked last, and nobody answered, is there whole
or not at all. All else that is there is too much. An answer that no worker
should get is a violation, whatever became of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from workers.judge.checks import Check, Judged
from workers.judge.final_state import FinalState, Table, check_integrity, check_told, run_checks
from workers.judge.history import OK, REFUSED, UNKNOWN, Op, read_history
from workers.judge.holders import HOLDERS, LOST
from workers.judge.own_writes import ADDS, check_expiry, check_held, check_own_entries, check_private
from workers.judge.serializability import check as check_serializable
from workers.judge.serializability import from_ops
from workers.judge.stress import EXPECTED, SHARED_RUNS
from workers.judge.values import shorten

REFUSALS: Final = EXPECTED | LOST
# A worker that was stopped may find its snapshot ended; what it reads again is right.
MAY_BE_TOO_OLD: Final = frozenset({"audit", "hold", "txn", "mark"})


@dataclass(slots=True)
class Phase:
    """When memory or disk was full, on the clock of the journals; still so without an end."""

    kind: str  # memory or disk
    began_at: int
    ended_at: int | None = None
    resumed_s: float = 0.0  # from room to the first write that succeeded

    def covers(self, asked_at: int, answered_at: int) -> bool:
        """Whether a question was open at some time of this phase."""
        return answered_at >= self.began_at and (self.ended_at is None or asked_at <= self.ended_at)


@dataclass(slots=True)
class Journal:
    """What one worker process asked and was answered."""

    number: int
    killed: bool
    ops: list[Op]


@dataclass(slots=True)
class Tally:
    """The sums that a person asks for first; `lost` and `doubled` are what can be counted one by one."""

    acknowledged: int = 0
    open: int = 0  # of killed workers: asked, and never answered
    lost: int = 0
    doubled: int = 0
    errors: int = 0  # answers that no worker should get
    full: int = 0  # answers that the store is full, while it was
    too_old: int = 0  # snapshots that ended before their readers
    jobs: int = 0  # done
    claims: int = 0  # that were told of
    leases: int = 0  # acquired
    late: int = 0  # what was asked for a job or under a lease that was lost


@dataclass(slots=True)
class ChaosVerdict(Judged):
    """All checks, and their sums."""

    tally: Tally = field(default_factory=Tally)


def read_journal(path: Path, number: int, killed: bool) -> Journal:
    """A journal as its worker left it.

    Raises:
        HistoryError: it is no journal.
    """
    return Journal(number, killed, read_history(path, number, killed))


def judge_chaos(journals: Sequence[Journal], final: FinalState, phases: Sequence[Phase]) -> ChaosVerdict:
    """Everything that can be said of journals and a final state."""
    tally, answers = Tally(), Check("answers")
    check_answers(answers, journals, phases, tally)
    histories = [journal.ops for journal in journals]
    checks = [
        answers, *run_checks(SHARED_RUNS, histories, final), check_integrity(final),
        *run_checks([*CHAOS, *HOLDERS], histories, final),
    ]  # fmt: skip
    tally.lost, tally.doubled = sum(check.lost for check in checks), sum(check.doubled for check in checks)
    return ChaosVerdict(checks=checks, tally=tally)


def check_answers(check: Check, journals: Sequence[Journal], phases: Sequence[Phase], tally: Tally) -> None:
    """Every question was answered, but the last of a killed worker, and as it may be."""
    for journal in journals:
        for op in journal.ops:
            tally.acknowledged += op.outcome == OK
            if op.answered_at is None:
                last = journal.killed and op is journal.ops[-1]
                check.require(last, f"{op} was never answered")
                tally.open += last
                continue
            if op.outcome == OK:
                check.compared += 1
                tally.jobs += op.op == "job.done"
                tally.claims += op.op == "job.claim" and op.result is not None
                tally.leases += op.op == "lease.acquire"
                continue
            fine = False
            if op.outcome == REFUSED:
                fine = op.error in REFUSALS.get(op.op, ())
                tally.late += op.error in ("JobLostError", "LeaseLostError")
                if op.error == "StoreFullError":
                    fine = any(phase.covers(op.asked_at, op.answered_at) for phase in phases)
                    tally.full += fine
                elif op.error == "SnapshotTooOldError":
                    fine = op.op in MAY_BE_TOO_OLD
                    tally.too_old += fine
            tally.errors += not fine
            check.require(fine, f"{op} was answered {op.error or 'nothing before its deadline'}: {op.told}")


def check_events(check: Check, ops: list[Op], final: FinalState) -> None:
    """Each event that was acknowledged is there once, each that was not at most once."""
    there = Counter(
        (run, kind, tuple(payload))
        for run, found in final.runs.items()
        for _, kind, payload in found.events
        if kind in ("tick", "pipe", "own")
    )
    for identity, count in there.items():
        check.require(count == 1, f"event {identity} is there {count} times")
        check.count(0, count, 1)
    for op in ops:
        for identity in _events_of(op) if op.outcome == OK else ():
            check.require(there[identity] > 0, f"{op}: event {identity} was acknowledged and is lost")
            check.count(1, there[identity], there[identity])


def _events_of(op: Op) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if op.op == "append":
        for part in range(op.args["count"]):
            yield op.run, "tick", (op.worker, op.n, part)
        return
    for block, (run, _) in enumerate(op.args["blocks"]):
        if op.result[block] is not None:
            yield run, "pipe", (op.worker, op.n, block)


def check_counts(check: Check, asked: list[Op], final: FinalState) -> None:
    """Counters are what was acknowledged, and at most what nobody was told of besides."""
    for run in final.hot:
        there = final.runs[run]
        counts = {
            "add": there.kv.get("counter", 0),
            "rmw": there.kv.get("rmw", 0),
            "tally": there.cells["tally"][0],
            "mark": there.kv.get("marks", 0),
        }
        for name, count in counts.items():
            ops = [op for op in asked if op.op == name and run in op.args.get("runs", [op.run])]
            told = sum(op.outcome == OK for op in ops)
            most = told + sum(op.outcome == UNKNOWN for op in ops)
            fine = told <= count <= most
            check.require(fine, f"{name} of {run}: {count}, acknowledged {told}, asked {most}")
            check.count(told, count, most)


def check_order(check: Check, _: list[Op], final: FinalState) -> None:
    """The events of one worker are in each log in the order in which it made them."""
    for run in final.hot:
        last: dict[tuple[str, int], list[int]] = {}
        for sequence, kind, payload in final.runs[run].events:
            if kind not in ("tick", "pipe"):
                continue
            worker, *mark = payload
            before = last.get((kind, worker), [-1])
            check.require(before < mark, f"{run}: {kind} {payload} at {sequence} comes after {before}")
            last[kind, worker] = mark


def check_pipes(check: Check, ops: list[Op], final: FinalState) -> None:
    """A block is there whole, and its event where it was said to be; or nothing of it."""
    places: dict[tuple[str, int, int, int], int] = {}
    for run in final.hot:
        for sequence, kind, payload in final.runs[run].events:
            if kind == "pipe":
                worker, n, block = payload
                places[run, worker, n, block] = sequence
    added = dict.fromkeys(final.hot, 0)
    values: dict[tuple[str, str], list[int]] = {}  # what was written last
    for op in ops:
        for block, (run, count) in enumerate(op.args["blocks"]):
            found = places.pop((run, op.worker, op.n, block), None)
            if op.outcome == OK:
                told = op.result[block]
                check.require(found == told, f"{op}: block {block} was put at {told}, it is at {found}")
            else:
                fine = found is None or op.outcome == UNKNOWN
                check.require(fine, f"{op}: {op.outcome}, block {block} is at {found}")
            if found is not None:
                added[run] += count
                values |= {(run, f"p:{op.worker}:{part}"): [op.n, block] for part in range(count)}
    for (run, key), value in values.items():
        before = check.problem_count
        check.equal(final.runs[run].kv.get(key), value, f"{run}: {key}")
        check.lost += check.problem_count - before
    check.require(not places, f"pipelined events that nobody made: {shorten(sorted(places))}")
    for run, count in added.items():
        piped = final.runs[run].kv.get("piped", 0)
        check.require(piped == count, f"{run}: {piped} pipelined additions, {count} in blocks that are there")
        check.count(count, piped, count)


def check_rmw(check: Check, ops: list[Op], final: FinalState) -> None:
    """No update is lost: each number was told to one worker."""
    for run in final.hot:
        check_told(check, "rmw", ops, run, final.runs[run].kv.get("rmw", 0))


def check_lists(check: Check, ops: Iterable[Op], final: FinalState) -> None:
    """One order of all transactions over lists and counters explains what each of them saw."""
    ends = {
        f"{run}/{key}": value
        for run in final.hot
        for key, value in final.runs[run].kv.items()
        if key.startswith("l:") or key == "c"
    }
    verdict = check_serializable(from_ops(ops), ends)
    check.compared += verdict.transactions
    for anomaly in verdict.anomalies:
        check.problem(str(anomaly))


CHAOS: Final[Table] = (
    ("exactly once", check_events, frozenset({"append", "pipe"})),
    ("counted once", check_counts, frozenset({"add", "rmw", "tally", "mark"})),
    ("order of workers", check_order, frozenset({"append", "pipe"})),
    ("pipelines", check_pipes, frozenset({"pipe"})),
    ("read-modify-write", check_rmw, frozenset({"rmw"})),
    ("own entries", check_own_entries, frozenset({"entry", "drop", "scan"})),
    ("expiry", check_expiry, frozenset({"ttl", "look"})),
    ("held snapshots", check_held, frozenset({"hold"})),
    ("private runs", check_private, frozenset({"own.create", "own.delete", *ADDS})),
    ("serializable histories", check_lists, frozenset({"txn"})),
)
