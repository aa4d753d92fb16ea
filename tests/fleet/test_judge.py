"""The judge of stress histories: silent on what is right, and able to see every planted anomaly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from workers.judge.checks import Check
from workers.judge.final_state import FinalRun, FinalState
from workers.judge.history import OK, REFUSED, UNKNOWN, HistoryError, Op, parse_history
from workers.judge.stress import judge

HOT, LIFE, GONE, KEPT = "hot", "life", "gone", "kept"


class World:
    """A small history by two workers, and the final state that it explains."""

    def __init__(self) -> None:
        self.histories: list[list[Op]] = [[], []]
        self.final = FinalState(
            [HOT],
            {
                HOT: FinalRun(
                    "active", 1, {"marks": 0}, cells={"duel": ([-1, -1], 1), "tally": (0, 1), "marks": (0, 1)}
                ),
                LIFE: FinalRun(),
                GONE: FinalRun(takes_writes=False),
                KEPT: FinalRun(),
            },
        )
        self._clock = 0

    @property
    def hot(self) -> FinalRun:
        return self.final.runs[HOT]

    def op(
        self, worker: int, name: str, run: str = HOT, *, ok: Any = None, error: str | None = None,
        told: Any = None, **args: Any,
    ) -> Op:  # fmt: skip
        """One question, asked and answered one after the other."""
        op = Op(worker, len(self.histories[worker]), name, run, args, self._clock, self._clock + 1)
        op.outcome, op.result, op.error, op.told = REFUSED if error else OK, ok, error, told or {}
        self._clock += 2
        self.histories[worker].append(op)
        return op

    def append(self, worker: int, count: int = 1, run: str = HOT) -> Op:
        events = self.final.runs[run].events
        start = len(events)
        single = run != HOT
        told: Any = start if single else list(range(start, start + count))
        args = {} if single else {"count": count}
        op = self.op(worker, "victim.append" if single else "append", run, ok=told, **args)
        events += [(start + part, "tick", [worker, op.n, part]) for part in range(count)]
        return op

    def cas(self, worker: int) -> Op:
        version = self.hot.cells["duel"][1]
        op = self.op(worker, "cas", ok=version + 1, cell="duel", expected=version)
        self.hot.cells["duel"] = ([worker, op.n], version + 1)
        return op

    def mark(self, worker: int) -> Op:
        hot = self.hot
        marks = hot.metadata["marks"] + 1
        op = self.op(worker, "mark", ok=[marks], runs=[HOT])
        name = f"{worker}-{op.n}"
        hot.kv |= {"marks": marks, f"m:{name}": op.n}
        hot.events.append((len(hot.events), "mark", {"mark": name}))
        hot.cells |= {"marks": (marks, marks + 1), f"m:{name}": (op.n, 1)}
        hot.traces[f"m-{name}"] = (None, name)
        hot.metadata |= {f"w{worker}": op.n, "marks": marks}
        hot.version += 1
        return op

    def status(self, worker: int, to: str) -> Op:
        life = self.final.runs[LIFE]
        life.status, life.version = to, life.version + 1
        return self.op(worker, "status", LIFE, ok={"status": to, "version": life.version}, to=to)

    def checks(self) -> dict[str, Check]:
        return {check.name: check for check in judge(self.histories, self.final)}

    def wrong(self) -> set[str]:
        return {name for name, check in self.checks().items() if not check.ok}


def build() -> World:
    world = World()
    for number in range(4):
        world.op(number % 2, "add", ok=number + 1)
        world.hot.kv["counter"] = number + 1
    world.append(0)
    world.append(1, 3)
    world.cas(0)
    world.cas(1)
    told = {"expected": 2, "actual": 3}
    world.op(0, "cas", error="VersionMismatchError", told=told, cell="duel", expected=2)
    world.op(0, "cell.init", ok=1, cell="flip")
    world.op(1, "cell.delete", ok=True, cell="flip")
    world.op(1, "cell.set", ok=2, cell="flip")
    world.op(0, "cell.init", error="CellExistsError", cell="flip")
    world.hot.cells["flip"] = ([1, 0], 2)
    world.op(0, "tally", ok=1)
    world.op(1, "tally", ok=2)
    world.hot.cells["tally"] = (2, 3)
    world.mark(0)
    world.mark(1)
    world.mark(0)
    world.op(1, "mark", error="ConflictError", runs=[HOT])
    world.op(0, "abort", error="Abandoned", runs=[HOT])
    world.op(1, "audit", ok={"kv": 3, "cell": 3, "run": 3, "version": 3})
    op = world.op(0, "trace", ok=["a", "b"], depth=2)
    names = [f"t-0-{op.n}-{place}" for place in range(2)]
    world.hot.traces |= {names[0]: (None, 0), names[1]: (names[0], 1)}
    op = world.op(1, "contest", ok="c-1", id="c-1")
    world.hot.traces["c-1"] = (None, [1, op.n])
    world.op(0, "contest", error="TraceExistsError", id="c-1")
    world.op(0, "create", LIFE, ok=1)
    world.op(1, "create", LIFE, error="RunExistsError")
    world.final.runs[LIFE].version = 1
    for status in ("paused", "active", "completed", "archived"):
        world.status(0, status)
    told = {"from_status": "archived", "to_status": "active"}
    world.op(1, "status", LIFE, error="InvalidTransitionError", told=told, to="active")
    world.append(0, run=KEPT)
    op = world.op(1, "victim.kv", KEPT, ok=9)
    world.final.runs[KEPT].kv[f"v:1-{op.n}"] = op.n
    world.op(0, "victim.append", GONE, ok=0)
    world.op(1, "victim.kv", GONE, ok=7)
    world.op(0, "delete", GONE, ok={"kv": 1, "events": 1, "cells": 0, "traces": 0, "had_record": False})
    world.op(1, "victim.kv", GONE, error="RunDeletedError")
    return world


def of(world: World, name: str, outcome: str = OK) -> Op:
    return next(op for ops in world.histories for op in ops if (op.op, op.outcome) == (name, outcome))


def test_what_can_be_explained_is_right() -> None:
    checks = build().checks()
    assert {name: check.summary() for name, check in checks.items() if not check.ok} == {}
    assert set(checks) == {
        "answers", "counters", "appends", "chains", "cell winners", "cell versions", "transitions", "marks",
        "snapshots", "traces", "status histories", "deleted runs", "integrity",
    }  # fmt: skip


def lose_an_append(world: World) -> None:
    del world.hot.events[0]
    world.hot.events[:] = [(n, *event[1:]) for n, event in enumerate(world.hot.events)]


def double_an_append(world: World) -> None:
    world.hot.events.append((len(world.hot.events), "tick", world.hot.events[0][2]))


def leave_a_gap(world: World) -> None:
    sequence, kind, payload = world.hot.events[-1]
    world.hot.events[-1] = (sequence + 1, kind, payload)


def tear_an_append(world: World) -> None:
    many = next(op for op in world.histories[1] if op.op == "append")
    events = [event for event in world.hot.events if event[2] != [1, many.n, 2]]
    world.hot.events[:] = [(n, *event[1:]) for n, event in enumerate(events)]


def append_what_nobody_asked_for(world: World) -> None:
    world.hot.events.append((len(world.hot.events), "tick", [1, 99, 0]))


def lose_a_run_that_nobody_deleted(world: World) -> None:
    world.final.runs[KEPT] = FinalRun()


def break_a_chain(world: World) -> None:
    world.hot.chain = "hash differs at 1"


def lose_an_addition(world: World) -> None:
    world.hot.kv["counter"] -= 1


def double_an_addition(world: World) -> None:
    world.hot.kv["counter"] += 1


def tell_two_the_same_sum(world: World) -> None:
    of(world, "add").result = 2


def let_two_win_a_version(world: World) -> None:
    first = of(world, "cas")
    second = next(op for op in world.histories[1] if op.op == "cas")
    second.result, second.args["expected"] = first.result, first.args["expected"]


def let_nobody_win_a_version(world: World) -> None:
    world.hot.cells["duel"] = (world.hot.cells["duel"][0], 4)


def lose_the_last_winner(world: World) -> None:
    world.hot.cells["duel"] = ([0, 0], world.hot.cells["duel"][1])


def refuse_the_right_version(world: World) -> None:
    of(world, "cas", REFUSED).told["actual"] = 2


def use_a_version_again(world: World) -> None:
    of(world, "cell.set").result = 1


def turn_a_version_back(world: World) -> None:
    of(world, "cell.init").result = 5
    world.hot.cells["flip"] = ([1, 0], 9)


def lose_a_transition(world: World) -> None:
    world.hot.cells["tally"] = (1, 2)


def mark_half(part: str) -> Callable[[World], None]:
    def damage(world: World) -> None:
        name = f"0-{of(world, 'mark').n}"
        if part == "events":
            world.hot.events.pop(next(i for i, e in enumerate(world.hot.events) if e[1] == "mark"))
            world.hot.events[:] = [(n, *event[1:]) for n, event in enumerate(world.hot.events)]
        elif part == "runs":
            world.hot.metadata["w1"] -= 1
        else:
            where: Any = {"kv": world.hot.kv, "cells": world.hot.cells, "traces": world.hot.traces}[part]
            del where[f"m-{name}" if part == "traces" else f"m:{name}"]

    damage.__name__ = f"mark_without_{part}"
    return damage


def leave_an_aborted_mark(world: World) -> None:
    world.hot.kv[f"m:0-{of(world, 'abort', REFUSED).n}"] = of(world, "abort", REFUSED).n


def leave_a_refused_mark(world: World) -> None:
    world.hot.traces[f"m-1-{of(world, 'mark', REFUSED).n}"] = (None, "x")


def lose_a_whole_mark(world: World) -> None:
    world.hot.version -= 1


def show_a_torn_snapshot(world: World) -> None:
    of(world, "audit").result["cell"] = 2


def show_an_old_snapshot(world: World) -> None:
    world.op(1, "audit", ok={"kv": 2, "cell": 2, "run": 2, "version": 2})


def lose_a_trace(world: World) -> None:
    del world.hot.traces[f"t-0-{of(world, 'trace').n}-1"]


def move_a_trace(world: World) -> None:
    world.hot.traces[f"t-0-{of(world, 'trace').n}-1"] = (None, 1)


def let_two_win_an_id(world: World) -> None:
    loser = of(world, "contest", REFUSED)
    loser.outcome, loser.error, loser.result = OK, None, "c-1"


def record_a_foreign_trace(world: World) -> None:
    world.hot.traces["t-9-9-0"] = (None, 0)


def take_an_illegal_step(world: World) -> None:
    world.status(1, "active")  # from archived


def skip_a_status(world: World) -> None:
    world.histories[0] = [
        replace(op, n=op.n) for op in world.histories[0] if op.op != "status" or op.args["to"] != "active"
    ]


def refuse_a_legal_step(world: World) -> None:
    of(world, "status", REFUSED).told |= {"from_status": "paused", "to_status": "active"}


def create_a_run_twice(world: World) -> None:
    op = of(world, "create", REFUSED)
    op.outcome, op.error = OK, None


def forget_a_status(world: World) -> None:
    world.final.runs[LIFE].status = "completed"


def store_after_a_deletion(world: World) -> None:
    late = next(op for op in world.histories[1] if op.run == GONE and op.outcome == REFUSED)
    late.outcome, late.error, late.result = OK, None, 8


def leave_something(world: World) -> None:
    world.final.runs[GONE].kv["v:1-3"] = 3


def lift_the_fence(world: World) -> None:
    world.final.runs[GONE].takes_writes = True


def delete_twice(world: World) -> None:
    world.op(1, "delete", GONE, ok=of(world, "delete").result)


def delete_less_than_was_there(world: World) -> None:
    of(world, "delete").result["kv"] = 0


def find_a_bad_index(world: World) -> None:
    world.final.problems.append("an index entry without a record")


def refuse_for_no_reason(world: World) -> None:
    world.op(1, "append", error="StoreFullError", count=1)


def never_answer(world: World) -> None:
    op = of(world, "add")
    op.answered_at, op.outcome = None, UNKNOWN


@pytest.mark.parametrize(
    ("damage", "noticed_by"),
    [
        (lose_an_append, "appends"),
        (double_an_append, "appends"),
        (leave_a_gap, "appends"),
        (tear_an_append, "appends"),
        (append_what_nobody_asked_for, "appends"),
        (lose_a_run_that_nobody_deleted, "appends"),
        (lose_a_run_that_nobody_deleted, "deleted runs"),
        (break_a_chain, "chains"),
        (lose_an_addition, "counters"),
        (double_an_addition, "counters"),
        (tell_two_the_same_sum, "counters"),
        (let_two_win_a_version, "cell winners"),
        (let_two_win_a_version, "cell versions"),
        (let_nobody_win_a_version, "cell winners"),
        (lose_the_last_winner, "cell winners"),
        (refuse_the_right_version, "cell winners"),
        (use_a_version_again, "cell versions"),
        (turn_a_version_back, "cell versions"),
        (lose_a_transition, "transitions"),
        *((mark_half(part), "marks") for part in ("kv", "events", "cells", "traces", "runs")),
        (leave_an_aborted_mark, "marks"),
        (leave_a_refused_mark, "marks"),
        (lose_a_whole_mark, "marks"),
        (show_a_torn_snapshot, "snapshots"),
        (show_an_old_snapshot, "snapshots"),
        (lose_a_trace, "traces"),
        (move_a_trace, "traces"),
        (let_two_win_an_id, "traces"),
        (record_a_foreign_trace, "traces"),
        (take_an_illegal_step, "status histories"),
        (skip_a_status, "status histories"),
        (refuse_a_legal_step, "status histories"),
        (create_a_run_twice, "status histories"),
        (forget_a_status, "status histories"),
        (store_after_a_deletion, "deleted runs"),
        (leave_something, "deleted runs"),
        (lift_the_fence, "deleted runs"),
        (delete_twice, "deleted runs"),
        (delete_less_than_was_there, "deleted runs"),
        (find_a_bad_index, "integrity"),
        (refuse_for_no_reason, "answers"),
        (never_answer, "answers"),
    ],
)
def test_a_planted_anomaly_is_noticed(damage: Callable[[World], None], noticed_by: str) -> None:
    world = build()
    damage(world)
    assert noticed_by in world.wrong()


class TestUnknown:
    """What was never answered may have happened or not, but not by half."""

    @pytest.mark.parametrize("happened", [True, False])
    def test_either_is_right(self, happened: bool) -> None:
        world = build()
        events, counter = list(world.hot.events), world.hot.kv["counter"]
        world.append(0, 2).outcome = UNKNOWN
        world.op(0, "add").outcome = UNKNOWN
        if happened:
            world.hot.kv["counter"] = counter + 1
        else:
            world.hot.events[:] = events
        assert world.wrong() == set()

    def test_half_is_wrong(self) -> None:
        world = build()
        world.append(0, 2).outcome = UNKNOWN
        world.hot.events.pop()
        assert world.wrong() == {"appends"}

    def test_a_mark_without_an_answer_is_whole_or_absent(self) -> None:
        world = build()
        world.mark(1).outcome = UNKNOWN
        assert world.wrong() == set()
        world.hot.kv.pop(f"m:1-{world.histories[1][-1].n}")
        assert world.wrong() == {"marks"}

    def test_two_more_than_one_unknown_explains_are_wrong(self) -> None:
        world = build()
        world.op(0, "add").outcome = UNKNOWN
        world.hot.kv["counter"] += 2
        assert world.wrong() == {"counters"}


class TestHistories:
    LINES = (
        {"n": 0, "op": "add", "run": "r", "args": {}, "at": 1}, {"n": 0, "ok": 1, "at": 2},
        {"n": 1, "op": "cas", "run": "r", "args": {"expected": 1}, "at": 3},
        {"n": 1, "error": "VersionMismatchError", "told": {"actual": 2}, "at": 4},
        {"n": 2, "op": "add", "run": "r", "args": {}, "at": 5}, {"n": 2, "unknown": True, "at": 6},
        {"n": 3, "op": "add", "run": "r", "args": {}, "at": 7},
    )  # fmt: skip

    def test_questions_get_their_answers(self) -> None:
        ops = parse_history(map(json.dumps, self.LINES), 4)
        assert [(op.n, op.outcome, op.answered_at) for op in ops] == [
            (0, OK, 2), (1, REFUSED, 4), (2, UNKNOWN, 6), (3, UNKNOWN, None)
        ]  # fmt: skip
        assert (ops[0].result, ops[1].told, ops[0].worker) == (1, {"actual": 2}, 4)

    @pytest.mark.parametrize("line", range(1, 7))
    def test_a_lost_line_is_noticed_unless_it_is_an_answer(self, line: int) -> None:
        lines = [json.dumps(text) for number, text in enumerate(self.LINES) if number != line]
        if "op" in self.LINES[line] and line != 6:
            with pytest.raises(HistoryError):
                parse_history(lines, 0)
        else:
            answered = [op.answered_at for op in parse_history(lines, 0)]
            assert answered.count(None) == (1 if line == 6 else 2) - (line == 6)

    @pytest.mark.parametrize("text", ['{"n": 0', "[]", "{}", '{"n": 9, "ok": 1, "at": 1}'])
    def test_what_is_no_history_is_refused(self, text: str) -> None:
        with pytest.raises(HistoryError):
            parse_history([json.dumps(self.LINES[0]), text], 0)
