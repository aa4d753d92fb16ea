"""The chaos as a user runs it, in its short form; and its judge, shown what it has to find.

The campaign of a thousand kills is `make chaos`: here twelve seconds with a
bit of everything, and everything that must not be accepted.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Site, wait_for
from journal_damage import DAMAGE, Journals, an_op

import inmem
from workers.chaos.program import read_chaos
from workers.chaos.report import percentile
from workers.chaos.result import ChaosOptions
from workers.chaos.schedule import KINDS, Rates, schedule
from workers.chaos.worker import ChaosWorker
from workers.judge.chaos import ChaosVerdict, Phase, judge_chaos, read_journal
from workers.judge.final_state import FinalState
from workers.judge.history import OK, REFUSED, UNKNOWN, History, HistoryError, Op, path_of
from workers.pool import Interrupt, Stopped
from workers.stress.program import prepare
from workers.stress.worker import StressRuns, StressTask

SEED = 20261122


# --- as a user runs it ----------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_some_seconds_of_chaos_lose_and_double_nothing(site: Site, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = site.run_really(
        "workers.chaos", "--minutes", 0.2, "--seed", SEED, "--workers", 8, "--json", figures,
        "--worker-kills-per-minute", 45, "--worker-stops-per-minute", 30, "--stops-per-minute", 22,
        "--fills-per-minute", 9, "--checkpoints-per-minute", 22,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"seed {SEED}; again: python -m workers.chaos --minutes 0.2 --seed {SEED}")
    assert "Traceback" not in done.stdout + done.stderr
    data = json.loads(figures.read_text())
    assert data["ok"] is True and data["problems"] == [] and data["kept"] is None
    assert (data["lost"], data["doubled"], data["errors"]) == (0, 0, 0)
    done_times = data["disturbances"]
    assert data["kills"] == done_times["kill_writer"] >= 8
    assert done_times["kill_worker"] >= 3 and done_times["stop_worker"] >= 1
    assert done_times["stop_writer"] >= 1 and done_times["fill_memory"] >= 1
    assert data["worker_processes"] == 8 + done_times["kill_worker"]
    assert data["operations"] > 500 and data["acknowledged"] > 400
    assert data["claims"] >= data["jobs"] > 5 and data["leases"] > 5
    recovery = data["recovery"]
    assert recovery["count"] == data["kills"]
    assert 0 < recovery["p50_s"] <= recovery["p99_s"] <= recovery["max_s"] < 30
    names = [check["name"] for check in data["checks"]]
    assert {
        "answers",
        "exactly once",
        "counted once",
        "integrity",
        "serializable histories",
        "jobs",
        "leases",
        "probes",
    } <= set(names)
    assert all(check["ok"] and check["compared"] > 0 for check in data["checks"])
    site.assert_nothing_left()


def test_ctrl_c_leaves_no_process_and_no_file(site: Site) -> None:
    process = site.start("workers.chaos", "--minutes", 5, "--workers", 3, "--worker-stops-per-minute", 120)
    wait_for(lambda: list(site.tmp.glob("inmem-chaos-*/journals/*.jsonl")), "the first journal")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    site.assert_nothing_left()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", 0), "--workers"),
        (("--minutes", 0), "--minutes"),
        (("--kills-per-minute", -1), "--kills-per-minute"),
        (("--durability", "memory"), "must be one of buffered, sync"),
        (("--quota-mib", 1), "--quota-mib"),
        (("--directory", "/no/such/place"), "is no directory"),
        (("--json", "/no/such/place/figures.json"), "cannot be written"),
    ],
)
def test_wrong_usage(site: Site, arguments: tuple[object, ...], said: str) -> None:
    done = site.run("workers.chaos", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


# --- the schedule ------------------------------------------------------------------------------------


def test_a_seed_gives_one_schedule() -> None:
    plan = schedule(7, 600, Rates())
    assert plan == schedule(7, 600, Rates()) == sorted(plan)
    assert plan != schedule(8, 600, Rates())
    assert {one.kind for one in plan} == set(KINDS)
    assert all(0 <= one.at_s < 600 and 0 <= one.choice < 1 for one in plan)
    kills = sum(one.kind == "kill_writer" for one in plan)
    assert 540 <= kills <= 660


def test_a_rate_changes_its_own_kind_only() -> None:
    usual, more = Rates(), dataclasses.replace(Rates(), kill_worker=60.0, checkpoint=0.0)
    left, right = schedule(7, 60, usual), schedule(7, 60, more)
    changed = {"kill_worker", "checkpoint"}
    assert [one for one in left if one.kind not in changed] == [
        one for one in right if one.kind not in changed
    ]
    assert not any(one.kind == "checkpoint" for one in right)


def test_the_command_that_repeats_names_what_differs() -> None:
    options = ChaosOptions(7, 15, rates=dataclasses.replace(Rates(), kill_writer=75.0), disk_mib=256)
    assert options.command() == (
        "python -m workers.chaos --minutes 15 --seed 7 --workers 16 --durability buffered "
        "--kills-per-minute 75 --disk --disk-mib 256"
    )


def test_percentiles() -> None:
    assert percentile([], 0.5) is None
    assert [percentile(range(1, 101), share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]


# --- journals --------------------------------------------------------------------------------------


def test_a_journal_may_end_in_half_a_line_if_its_worker_was_killed(tmp_path: Path) -> None:
    path = path_of(tmp_path, 3)
    with History(path) as journal:
        journal.acknowledged(journal.asked("add", "r", {}), 1)
        journal.asked("add", "r", {})
    whole = path.read_text()
    path.write_text(whole + '{"n": 2, "op": "ad')
    ops = read_journal(path, 3, killed=True).ops
    assert [op.outcome for op in ops] == [OK, UNKNOWN]
    with pytest.raises(HistoryError, match="half a line"):
        read_journal(path, 3, killed=False)
    assert read_journal(path_of(tmp_path, 4), 4, killed=True).ops == []
    with pytest.raises(HistoryError, match="missing"):
        read_journal(path_of(tmp_path, 4), 4, killed=False)


# --- the judge ---------------------------------------------------------------------------------------


class _Told:
    """A worker's end of the line, which says stop after so many looks."""

    def __init__(self, questions: int) -> None:
        self._left = questions

    def progress(self, _: object, *, last: bool = False) -> None:
        pass

    def check(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Stopped


Judged = tuple[Journals, FinalState]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judged:
    """What two workers noted, one after the other, and what there is then."""
    tmp = tmp_path_factory.mktemp("judged")
    runs = StressRuns("chaos:test", 2)
    journals = []
    with inmem.open(tmp / "store") as db, Interrupt() as interrupt:
        prepare(db, runs)
        for number in range(2):
            path = path_of(tmp, number)
            task = StressTask(str(db.path), str(tmp), runs, SEED, 30.0, number)
            with History(path) as history:
                ChaosWorker(db, task, _Told(700), history).run()
            journals.append(read_journal(path, number, killed=False))
        wait_for(lambda: not any(db.kv.list(run, "t:") for run in runs.hot()), "entries have expired", 20)
        final = read_chaos(db, runs, journals, interrupt)
    return journals, final


def test_what_is_right_passes(judged: Judged) -> None:
    verdict = judge_chaos(*judged, [])
    assert verdict.ok, [check.summary() for check in verdict.checks if not check.ok]
    assert verdict.tally.acknowledged > 1000
    assert {check.name for check in verdict.checks} >= {
        "answers", "exactly once", "counted once", "order of workers", "pipelines", "read-modify-write",
        "own entries", "expiry", "held snapshots", "private runs", "serializable histories", "marks",
        "jobs", "leases",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "noticed_by", "counted_as"), DAMAGE, ids=[damage.__name__ for damage, _, _ in DAMAGE]
)
def test_the_judge_notices(
    judged: Judged, damage: Callable[[Journals, FinalState], None], noticed_by: str, counted_as: str
) -> None:
    journals, final = copy.deepcopy(judged)
    damage(journals, final)
    verdict = judge_chaos(journals, final, [])
    assert not verdict.ok
    assert noticed_by in wrong(verdict)
    tally = verdict.tally
    counts = {"lost": tally.lost, "doubled": tally.doubled, "errors": tally.errors}
    if counted_as:
        assert counts[counted_as] > 0, counts
    assert counted_as in ("lost", "doubled") or (tally.lost, tally.doubled) == (0, 0), counts


def wrong(verdict: ChaosVerdict) -> set[str]:
    return {check.name for check in verdict.checks if not check.ok}


def test_a_full_store_is_no_error_while_it_is_full(judged: Judged) -> None:
    journals, final = copy.deepcopy(judged)
    op = an_op(journals, "audit")
    assert op.answered_at is not None
    op.outcome, op.error = REFUSED, "StoreFullError"
    for phase, fine in (
        (Phase("memory", op.asked_at - 5, op.asked_at - 1), False),
        (Phase("memory", op.asked_at - 5, op.asked_at + 1), True),
        (Phase("memory", op.answered_at - 1, None), True),
        (Phase("memory", op.answered_at + 1, None), False),
    ):
        verdict = judge_chaos(journals, final, [phase])
        assert verdict.ok is fine
        assert (verdict.tally.full, verdict.tally.errors) == (int(fine), int(not fine))


@pytest.mark.parametrize("applied", [True, False])
def test_the_last_question_of_a_killed_worker_may_be_there_or_not(judged: Judged, applied: bool) -> None:
    journals, final = copy.deepcopy(judged)
    journal, run = journals[0], final.hot[0]
    asked_at = max(op.answered_at or 0 for journal in journals for op in journal.ops) + 1
    journal.ops.append(Op(0, len(journal.ops), "pipe", run, {"blocks": [[run, 1]]}, asked_at))
    if applied:
        there = final.runs[run]
        n = journal.ops[-1].n
        there.events.append((len(there.events), "pipe", [0, n, 0]))
        there.kv |= {"piped": there.kv["piped"] + 1, "p:0:0": [n, 0]}
    assert wrong(judge_chaos(journals, final, [])) == {"answers"}  # nobody killed it
    journal.killed = True
    verdict = judge_chaos(journals, final, [])
    assert verdict.ok, [check.summary() for check in verdict.checks if not check.ok]
    assert verdict.tally.open == 1
    if applied:
        del final.runs[run].kv["p:0:0"]  # half of it
        assert wrong(judge_chaos(journals, final, [])) == {"pipelines"}


def test_damage_to_a_store_is_noticed(site: Site, tmp_path: Path, short_linger: None) -> None:
    """The whole way: a store that was changed behind the journals' backs, read and judged."""
    runs, path = StressRuns("chaos:test", 2), path_of(tmp_path, 0)
    with inmem.open(tmp_path / "store") as db, Interrupt() as interrupt:
        prepare(db, runs)
        task = StressTask(str(db.path), str(tmp_path), runs, SEED, 30.0)
        with History(path) as history:
            ChaosWorker(db, task, _Told(300), history).run()
        journals = [read_journal(path, 0, killed=False)]
        wait_for(lambda: not any(db.kv.list(run, "t:") for run in runs.hot()), "entries have expired", 20)
        assert judge_chaos(journals, read_chaos(db, runs, journals, interrupt), []).ok
        run, found = runs.hot()[0], set()
        for damage, noticed_by in (
            (lambda: db.kv.add(run, "rmw"), "read-modify-write"),
            (lambda: db.kv.put(run, "s:0:0", -1), "own entries"),
            (lambda: db.events.append(run, "pipe", [0, 10**6, 0]), "pipelines"),
            (lambda: db.kv.put(run, "l:0.0", ["0.0.9"]), "serializable histories"),
            (lambda: db.queues.put(run, "jobs", [0, -1, 0]), "jobs"),
            (lambda: db.kv.put(run, "x:0", [0, -1]), "leases"),
        ):
            damage()
            now = wrong(judge_chaos(journals, read_chaos(db, runs, journals, interrupt), []))
            assert noticed_by in now - found
            found = now


def test_lists_are_read_and_written(judged: Judged) -> None:
    """The histories are worth judging: elements of one worker were read by the other."""
    journals, _ = judged
    steps: list[Any] = [
        (op.worker, step)
        for journal in journals
        for op in journal.ops
        if op.op == "txn" and op.outcome == OK
        for step in op.result["steps"]
    ]
    foreign = [
        step
        for worker, step in steps
        if step[0] == "read" and any(not element.startswith(f"{worker}.") for element in step[2])
    ]
    assert len(foreign) > 10
    assert {step[0] for _, step in steps} == {"read", "append", "add", "value"}
