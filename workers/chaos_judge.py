"""What each worker's journal says against what is in the store at the end.

Invariant: pure but for `read_journal`. What was acknowledged is there exactly
once; what was refused is nowhere; what a killed worker asked last, and nobody
answered, is there whole or not at all. All else that is there is too much. An
answer that no worker should get is a violation, whatever became of it.

`chaos_judge_own` judges what only one worker writes, `workers.judge` what the stress does too, and
`workers.serializability` the histories of lists; here is the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workers.canonical import same, shorten
from workers.chaos_judge_own import check_entries, check_expiry, check_held, check_private
from workers.chaos_pressure import Phase
from workers.chaos_tally import Tally, each
from workers.checking import Check
from workers.history import OK, REFUSED, UNKNOWN, HistoryError, Op, parse_history
from workers.judge import EXPECTED, FinalState, check_numbers, judge
from workers.serializability import check as check_serializable
from workers.serializability import from_ops

# A worker that was stopped may find its snapshot ended; what it reads again is right.
MAY_BE_TOO_OLD: Final = frozenset({"audit", "hold", "txn", "mark"})


@dataclass(slots=True)
class Journal:
    """What one worker process asked and was answered."""

    number: int
    killed: bool
    ops: list[Op]


@dataclass(slots=True)
class ChaosVerdict:
    """All checks, and the sums that a person asks for first."""

    checks: list[Check]
    tally: Tally

    @property
    def ok(self) -> bool:
        tally = self.tally
        return all(check.ok for check in self.checks) and not (tally.lost or tally.doubled or tally.errors)


def read_journal(path: Path, number: int, killed: bool) -> Journal:
    """A journal as its worker left it. One that was killed may have left half a line: that was not asked.

    Raises:
        HistoryError: it is no journal.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if killed:  # before it began
            return Journal(number, killed, [])
        raise HistoryError(f"{path.name} is missing") from None
    whole, _, torn = text.rpartition("\n")
    if torn and not killed:
        raise HistoryError(f"{path.name} ends in half a line")
    try:
        return Journal(number, killed, parse_history(whole.splitlines(), number))
    except HistoryError as error:
        raise HistoryError(f"{path.name}: {error}") from None


def judge_chaos(journals: Sequence[Journal], final: FinalState, phases: Sequence[Phase]) -> ChaosVerdict:
    """Everything that can be said of journals and a final state."""
    tally = Tally()
    histories = [journal.ops for journal in journals]
    answers = Check("answers")
    check_answers(answers, journals, phases, tally)
    # The judge of the stress knows neither kills nor a full store: its own look at answers is replaced.
    checks = [answers, *(check for check in judge(histories, final) if check.name != "answers")]
    parts: list[tuple[str, Callable[[Check, list[list[Op]], FinalState, Tally], None], set[str]]] = [
        ("exactly once", check_events, {"append", "pipe"}),
        ("counted once", check_counts, {"add", "rmw", "tally", "mark"}),
        ("order of workers", check_order, {"append", "pipe"}),
        ("pipelines", check_pipes, {"pipe"}),
        ("read-modify-write", check_rmw, {"rmw"}),
        ("own entries", check_entries, {"entry", "drop", "scan"}),
        ("expiry", check_expiry, {"ttl", "look"}),
        ("held snapshots", check_held, {"hold"}),
        ("private runs", check_private, {"own.create"}),
        ("serializable histories", check_lists, {"txn"}),
    ]
    asked = {op.op for history in histories for op in history}
    for name, look, ops in parts:
        if ops & asked:
            check = Check(name)
            look(check, histories, final, tally)
            checks.append(check)
    return ChaosVerdict(checks, tally)


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
                continue
            fine = False
            if op.outcome == REFUSED:
                fine = op.error in EXPECTED.get(op.op, ())
                if op.error == "StoreFullError":
                    fine = any(phase.covers(op.asked_at, op.answered_at) for phase in phases)
                    tally.full += fine
                elif op.error == "SnapshotTooOldError":
                    fine = op.op in MAY_BE_TOO_OLD
                    tally.too_old += fine
            tally.errors += not fine
            check.require(fine, f"{op} was answered {op.error or 'nothing before its deadline'}: {op.told}")


# --- counted one by one ---------------------------------------------------------------------------


def check_events(check: Check, histories: list[list[Op]], final: FinalState, tally: Tally) -> None:
    """Each event that was acknowledged is there once, each that was not at most once."""
    there: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    for run, found in final.runs.items():
        for _, kind, payload in found.events:
            if kind in ("tick", "pipe", "own"):
                there[run, kind, tuple(payload)] += 1
    for identity, count in there.items():
        check.require(count == 1, f"event {identity} is there {count} times")
        tally.doubled += count - 1
    for op in each(histories, "append", "pipe"):
        if op.outcome != OK:
            continue
        for identity in _events_of(op):
            check.require(there[identity] > 0, f"{op}: event {identity} was acknowledged and is lost")
            tally.lost += there[identity] == 0


def _events_of(op: Op) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if op.op == "append":
        for part in range(op.args["count"]):
            yield op.run, "tick", (op.worker, op.n, part)
        return
    for block, (run, _) in enumerate(op.args["blocks"]):
        if op.result[block] is not None:
            yield run, "pipe", (op.worker, op.n, block)


def check_counts(check: Check, histories: list[list[Op]], final: FinalState, tally: Tally) -> None:
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
            ops = [op for op in each(histories, name) if run in op.args.get("runs", [op.run])]
            told = sum(op.outcome == OK for op in ops)
            most = told + sum(op.outcome == UNKNOWN for op in ops)
            check.require(
                told <= count <= most, f"{name} of {run}: {count}, acknowledged {told}, asked {most}"
            )
            tally.lost += max(0, told - count)
            tally.doubled += max(0, count - most)


def check_order(check: Check, histories: list[list[Op]], final: FinalState, _: Tally) -> None:
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


# --- pipelines and counters -------------------------------------------------------------------------


def check_pipes(check: Check, histories: list[list[Op]], final: FinalState, tally: Tally) -> None:
    """A block is there whole, and its event where it was said to be; or nothing of it."""
    places: dict[tuple[str, int, int, int], int] = {}
    for run in final.hot:
        for sequence, kind, payload in final.runs[run].events:
            if kind == "pipe":
                worker, n, block = payload
                places[run, worker, n, block] = sequence
    added = dict.fromkeys(final.hot, 0)
    for history in histories:
        values: dict[tuple[str, str], list[int]] = {}
        for op in each([history], "pipe"):
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
                    for part in range(count):
                        values[run, f"p:{op.worker}:{part}"] = [op.n, block]
        for (run, key), value in values.items():
            have = final.runs[run].kv.get(key)
            check.require(same(have, value), f"{run}: {key} is {have}, the last write was {value}")
            tally.lost += not same(have, value)
    check.require(not places, f"pipelined events that nobody made: {shorten(sorted(places))}")
    for run, count in added.items():
        piped = final.runs[run].kv.get("piped", 0)
        check.require(piped == count, f"{run}: {piped} pipelined additions, {count} in blocks that are there")
        tally.lost += max(0, count - piped)
        tally.doubled += max(0, piped - count)


def check_rmw(check: Check, histories: list[list[Op]], final: FinalState, _: Tally) -> None:
    """No update is lost: each number was told to one worker."""
    for run in final.hot:
        ops = [op for op in each(histories, "rmw") if op.run == run]
        told = [op.result for op in ops if op.outcome == OK]
        unknown = sum(op.outcome == UNKNOWN for op in ops)
        check_numbers(check, f"rmw of {run}", told, final.runs[run].kv.get("rmw", 0), unknown)


# --- lists -------------------------------------------------------------------------------------------


def check_lists(check: Check, histories: list[list[Op]], final: FinalState, _: Tally) -> None:
    """One order of all transactions over lists and counters explains what each of them saw."""
    ends = {
        f"{run}/{key}": value
        for run in final.hot
        for key, value in final.runs[run].kv.items()
        if key.startswith("l:") or key == "c"
    }
    verdict = check_serializable(from_ops(each(histories, "txn")), ends)
    check.compared += verdict.transactions
    for anomaly in verdict.anomalies:
        check.problem(str(anomaly))
