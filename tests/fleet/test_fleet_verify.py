"""The fleet's plan, and its verification: exact on what is right, and able to fail on what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from plain_store import PlainStore

import inmem
from workers.fleet.agent import Agent, AgentTask
from workers.fleet.expected import agent_log, expect
from workers.fleet.lifecycle import QUEUE, ending, paused_after, scratches
from workers.fleet.plan import MAX_TRIES, FleetRuns, FleetSpec, perform, plan
from workers.fleet.program import conclude, prepare
from workers.fleet.reports import AgentReport, StoreFault
from workers.fleet.traces import all_traces
from workers.fleet.verify import FleetVerdict, verify

SPEC = FleetSpec(seed=5, workers=3, steps=40)
RUNS = FleetRuns("fleet:test")


class NoLink:
    def progress(self, payload: Any, *, last: bool = False) -> None:
        pass

    def check(self) -> None:
        pass


def run_agents(store: Any, spec: FleetSpec = SPEC, order: Callable[[int], Any] = int) -> list[AgentReport]:
    """All agents of a fleet, one after the other, in this process."""
    prepare(store, spec, RUNS)
    reports = {}
    for worker in sorted(range(spec.workers), key=order):
        task = AgentTask(store, spec, RUNS, worker, 30.0)
        reports[worker] = Agent(store, task, NoLink()).run()  # type: ignore[arg-type]
    conclude(store, RUNS, spec.workers, 0)
    return [reports[worker] for worker in range(spec.workers)]


@dataclass
class Done:
    store: PlainStore
    reports: list[AgentReport]

    def verdict(self) -> FleetVerdict:
        return verify(self.store, SPEC, RUNS, self.reports)


@pytest.fixture(scope="module")
def finished() -> Done:
    store = PlainStore()
    return Done(store, run_agents(store))


@pytest.fixture
def done(finished: Done) -> Done:
    return copy.deepcopy(finished)


class TestPlan:
    def test_a_plan_is_a_function_of_the_seed(self) -> None:
        assert list(plan(SPEC, 1)) == list(plan(SPEC, 1))
        assert list(plan(SPEC, 1)) != list(plan(SPEC, 2))
        assert list(plan(SPEC, 1)) != list(plan(replace(SPEC, seed=6), 1))

    def test_a_longer_plan_starts_with_the_shorter(self) -> None:
        longer = list(plan(replace(SPEC, steps=50), 1))
        assert longer[:40] == list(plan(SPEC, 1))

    def test_every_kind_of_step_occurs(self) -> None:
        steps = [step for worker in range(SPEC.workers) for step in plan(SPEC, worker)]
        assert any(step.abandoned for step in steps)
        assert any(step.hand_over for step in steps)
        assert any(step.forget for step in steps)
        kinds = {type(value) for step in steps for _, value in step.remember}
        assert kinds == {type(None), bool, int, float, str, bytes, list, dict}

    def test_no_agent_hands_over_to_itself(self) -> None:
        for worker in range(SPEC.workers):
            peers = {step.hand_over[0] for step in plan(SPEC, worker) if step.hand_over}
            assert worker not in peers
            assert peers <= set(range(SPEC.workers))

    def test_one_agent_alone_hands_nothing_over(self) -> None:
        assert all(step.hand_over is None for step in plan(replace(SPEC, workers=1), 0))

    def test_tools_fail_sometimes_and_are_tried_again(self) -> None:
        kinds = [kind for worker in range(SPEC.workers) for kind, _ in agent_log(SPEC, worker)]
        assert 0 < kinds.count("tool.error") < kinds.count("tool.result")
        assert kinds.count("tool.call") == kinds.count("tool.error") + kinds.count("tool.result")
        for step in plan(SPEC, 0):
            assert perform(SPEC, 0, step).counts["calls"] <= MAX_TRIES * len(step.calls)

    def test_runs_end_in_every_way(self) -> None:
        spec = replace(SPEC, workers=12, steps=400)
        ends = [ending(spec, worker) for worker in range(spec.workers)]
        assert {(end.status, end.archived) for end in ends} == {
            ("completed", False), ("completed", True), ("failed", False), ("failed", True)
        }  # fmt: skip
        fates = [scratch.fate for worker in range(spec.workers) for scratch in scratches(spec, worker)]
        assert {"deleted", "completed", "archived"} == set(fates)
        pauses = [paused_after(spec, worker) for worker in range(spec.workers)]
        assert all(pause is not None and pause + 1 < spec.steps for pause in pauses)
        assert paused_after(replace(spec, steps=1), 0) is None

    def test_traces_are_trees_of_every_kind_in_order_of_time(self) -> None:
        traces = [trace for worker in range(SPEC.workers) for trace in all_traces(SPEC, worker)]
        assert {type(trace.body).__name__ for trace in traces} == {
            "ToolCall", "Decision", "Query", "Thought", "ErrorTrace", "Custom"
        }  # fmt: skip
        for worker in range(SPEC.workers):
            seen: set[str | None] = {None}
            times = []
            for trace in all_traces(SPEC, worker):
                assert trace.parent_id in seen
                assert trace.id not in seen
                seen.add(trace.id)
                times.append(trace.timestamp)
            assert times == sorted(times, key=int)  # type: ignore[arg-type]

    def test_the_expected_totals_are_the_sums_of_their_parts(self) -> None:
        expected = expect(SPEC, RUNS)
        shared = expected.shared
        parts = sum(value for key, value in shared.items() if key.startswith("total:calls:"))
        assert shared["total:calls"] == parts > 0
        assert sum(run.kv.get("credits", 0) for run in expected.kept.values()) == 1_000 * SPEC.workers


class TestAgents:
    def test_what_agents_leave_behind_is_what_was_expected(self, done: Done) -> None:
        verdict = done.verdict()
        assert verdict.ok, verdict.problems()
        assert all(check.compared for check in verdict.checks)

    def test_the_digest_does_not_depend_on_the_order_of_the_agents(self, done: Done) -> None:
        backwards = PlainStore()
        reports = run_agents(backwards, order=lambda worker: -worker)
        verdict = verify(backwards, SPEC, RUNS, reports)
        assert verdict.ok
        assert verdict.digest == done.verdict().digest

    def test_the_digest_depends_on_the_seed(self, done: Done) -> None:
        spec = replace(SPEC, seed=6)
        other = PlainStore()
        assert verify(other, spec, RUNS, run_agents(other, spec)).digest != done.verdict().digest

    def test_an_abandoned_attempt_leaves_nothing(self, done: Done) -> None:
        assert sum(report.counts["abandoned"] for report in done.reports) > 0
        for run, entries in done.store.entries.items():
            assert "abandoned" not in entries, run
            assert "abandoned" not in {event.event_type for event in done.store.logs[run]}
            assert "abandoned" not in done.store.states[run]
            assert "abandoned" not in done.store.records[run].tags

    def test_a_store_that_commits_in_spite_of_an_error_is_noticed(self) -> None:
        class Careless(PlainStore):
            def transact(self, run: str, fn: Callable[[Any], Any], **_: Any) -> Any:
                try:
                    return super().transact(run, fn)
                except Exception:
                    return None

        with pytest.raises(StoreFault, match="committed"):
            run_agents(Careless())

    def test_a_torn_snapshot_is_noticed(self) -> None:
        class Torn(PlainStore):
            def snapshot(self, run: str) -> Any:
                view = super().snapshot(run)
                self.entries[run]["total:calls"] += 1
                return view

        with pytest.raises(StoreFault, match="snapshot"):
            run_agents(Torn())

    def test_reruns_are_counted(self) -> None:
        class Conflicting(PlainStore):
            def transact(self, run: str, fn: Callable[[Any], Any], **_: Any) -> Any:
                class Again(Exception):
                    pass

                def lost(txn: Any) -> Any:
                    fn(txn)
                    raise Again

                try:
                    super().transact(run, lost)
                except Again:
                    pass
                return super().transact(run, fn)

        store = Conflicting()
        reports = run_agents(store)
        assert all(report.counts["reruns"] == report.counts["transactions"] for report in reports)
        assert all(report.most_reruns == 1 for report in reports)
        verdict = verify(store, SPEC, RUNS, reports)
        assert verdict.ok, verdict.problems()


def lose_a_key(done: Done) -> None:
    del done.store.entries[RUNS.of(1)]["spent"]


def bring_back_a_key(done: Done) -> None:
    done.store.entries[RUNS.of(1)]["lease"] = {"agent": 1}


def lose_an_update(done: Done) -> None:
    done.store.entries[RUNS.shared]["total:cost"] -= 1


def change_a_type(done: Done) -> None:
    entries = done.store.entries[RUNS.of(0)]
    entries["spent"] = float(entries["spent"])


def create_credits(done: Done) -> None:
    done.store.entries[RUNS.of(2)]["credits"] += 1


def lose_an_event(done: Done) -> None:
    del done.store.logs[RUNS.of(1)][7]
    done.store.rechain(RUNS.of(1))


def lose_the_last_event(done: Done) -> None:
    done.store.logs[RUNS.of(1)].pop()


def double_an_event(done: Done) -> None:
    log = done.store.logs[RUNS.of(1)]
    log.insert(7, log[7])
    done.store.rechain(RUNS.of(1))


def swap_two_events(done: Done) -> None:
    log = done.store.logs[RUNS.of(1)]
    log[3], log[9] = log[9], log[3]
    done.store.rechain(RUNS.of(1))


def change_an_event(done: Done) -> None:
    log = done.store.logs[RUNS.of(1)]
    log[0] = replace(log[0], payload=log[0].payload | {"step": False})  # equal to 0, of another type
    done.store.rechain(RUNS.of(1))


def break_a_chain(done: Done) -> None:
    log = done.store.logs[RUNS.of(1)]
    log[4] = replace(log[4], hash=bytes(32))


def lose_a_shared_event(done: Done) -> None:
    del done.store.logs[RUNS.shared][20]
    done.store.rechain(RUNS.shared)


def double_a_shared_event(done: Done) -> None:
    log = done.store.logs[RUNS.shared]
    log.append(log[20])
    done.store.rechain(RUNS.shared)


def leave_an_abandoned_event(done: Done) -> None:
    done.store.events.append(RUNS.shared, "abandoned", {"agent": 1})


def lose_the_first_event(done: Done) -> None:
    del done.store.logs[RUNS.shared][0]
    done.store.rechain(RUNS.shared)


def acknowledge_another_sequence(done: Done) -> None:
    done.reports[1].sequences[3] += 1


def acknowledge_one_more(done: Done) -> None:
    done.reports[1].sequences.append(10_000)


def double_a_ticket(done: Done) -> None:
    done.reports[0].tickets[5] = done.reports[0].tickets[4]


def lose_a_ticket(done: Done) -> None:
    done.reports[0].tickets.pop()


def move_an_anchor(done: Done) -> None:
    anchor = done.reports[2].anchor
    assert anchor is not None
    done.reports[2].anchor = (anchor[0], bytes(32))


def tell_of_another_total(done: Done) -> None:
    done.reports[2].contributed["cost"] += 1


def tell_of_fewer_steps(done: Done) -> None:
    done.reports[2].counts["steps"] -= 1


def lose_a_report(done: Done) -> None:
    done.reports.pop()


def lose_everything(done: Done) -> None:
    done.store.entries.clear()
    done.store.logs.clear()


def change_a_record(done: Done, run: str, **changes: Any) -> None:
    done.store.records[run] = replace(done.store.records[run], **changes)


def lose_a_record(done: Done) -> None:
    del done.store.records[RUNS.of(1)]


def revive_a_run(done: Done) -> None:
    change_a_record(done, RUNS.of(1), status=inmem.RunStatus.ACTIVE)


def double_a_status_change(done: Done) -> None:
    change_a_record(done, RUNS.of(1), version=done.store.records[RUNS.of(1)].version + 1)


def lose_a_tag(done: Done) -> None:
    change_a_record(done, RUNS.of(1), tags=done.store.records[RUNS.of(1)].tags[:-1])


def change_metadata(done: Done) -> None:
    run = done.store.records[RUNS.of(1)]
    change_a_record(done, RUNS.of(1), metadata=run.metadata | {"worker": True})


def lose_an_error(done: Done) -> None:
    failed = next(run for run in done.store.records.values() if run.error)
    change_a_record(done, failed.run_id, error=None)


def orphan_a_run(done: Done) -> None:
    change_a_record(done, RUNS.scratch(1, 1), parent_run=None)


def add_a_run_of_this_fleet(done: Done) -> None:
    done.store.runs.create_run(run_id=RUNS.of(9), parent_run=RUNS.shared)


def miscount_the_runs(done: Done) -> None:
    def get_stats(_: Any = None) -> Any:
        stats = type(done.store.runs).get_stats(done.store.runs)
        stats.total += 1
        return stats

    done.store.runs.get_stats = get_stats  # type: ignore[method-assign]


def change_a_cell(done: Done, run: str, name: str, **changes: Any) -> None:
    done.store.states[run][name] = replace(done.store.states[run][name], **changes)


def turn_back_a_version(done: Done) -> None:
    change_a_cell(done, RUNS.of(1), "state", version=SPEC.steps)


def lose_a_cell(done: Done) -> None:
    del done.store.states[RUNS.of(1)]["focus"]


def steal_a_task(done: Done) -> None:
    change_a_cell(done, RUNS.shared, "task:000002", value={"state": "done", "by": 1})


def give_a_task_twice(done: Done) -> None:
    done.reports[2].tasks["board"][0] = done.reports[1].tasks["board"][0]


def forget_a_task(done: Done) -> None:
    noted = done.store.states[RUNS.of(1)]["tasks"].value
    change_a_cell(done, RUNS.of(1), "tasks", value=noted | {"queue": noted["queue"][1:]})


def leave_one_in_the_queue(done: Done) -> None:
    done.store.queues.put_many(RUNS.shared, QUEUE, [99])


def steal_a_job(done: Done) -> None:
    jobs = done.store.jobs[RUNS.shared]
    jobs[1] = replace(jobs[1], result=jobs[1].result | {"by": 7})


def do_a_job_twice(done: Done) -> None:
    jobs = done.store.jobs[RUNS.shared]
    jobs[1] = replace(jobs[1], attempt=2)


def lose_a_trace(done: Done) -> None:
    del done.store.trees[RUNS.of(1)]["s000004.c00"]


def change_a_trace(done: Done) -> None:
    traces = done.store.trees[RUNS.of(1)]
    trace = next(trace for trace in traces.values() if isinstance(trace.body, inmem.Decision))
    traces[trace.id] = replace(trace, body=replace(trace.body, chosen="nothing"))


def move_a_trace_in_its_tree(done: Done) -> None:
    traces = done.store.trees[RUNS.of(1)]
    traces["s000004.c00"] = replace(traces["s000004.c00"], parent_id="s000003")


def lose_an_index_entry(done: Done) -> None:
    def query_by_tag(run: str, tag: str) -> Any:
        return type(done.store.traces).query_by_tag(done.store.traces, run, tag)[1:]

    done.store.traces.query_by_tag = query_by_tag  # type: ignore[method-assign]


def leave_something_of_a_deleted_run(done: Done) -> None:
    done.store.traces.record(RUNS.scratch(1, 0), inmem.Thought("still here"))


def lift_a_fence(done: Done) -> None:
    done.store.fences.discard(RUNS.scratch(2, 0))


def find_something_inside(done: Done) -> None:
    report = type("Report", (), {"problems": ["an index entry without a record"], "records": 1})
    done.store.check = lambda: report  # type: ignore[method-assign,assignment,return-value]


@pytest.mark.parametrize(
    ("damage", "noticed_by"),
    [
        (lose_a_key, "working memory"),
        (bring_back_a_key, "working memory"),
        (lose_an_update, "shared totals"),
        (change_a_type, "working memory"),
        (create_credits, "shared totals"),
        (lose_an_event, "agents' logs"),
        (lose_the_last_event, "acknowledged heads"),
        (double_an_event, "agents' logs"),
        (swap_two_events, "agents' logs"),
        (change_an_event, "agents' logs"),
        (break_a_chain, "chains"),
        (lose_a_shared_event, "shared log"),
        (double_a_shared_event, "shared log"),
        (leave_an_abandoned_event, "shared log"),
        (lose_the_first_event, "shared log"),
        (acknowledge_another_sequence, "shared log"),
        (acknowledge_one_more, "shared log"),
        (double_a_ticket, "tickets"),
        (lose_a_ticket, "tickets"),
        (move_an_anchor, "acknowledged heads"),
        (tell_of_another_total, "agents' reports"),
        (tell_of_fewer_steps, "agents' reports"),
        (lose_a_report, "agents' reports"),
        (lose_everything, "working memory"),
        (lose_a_record, "runs"),
        (revive_a_run, "runs"),
        (double_a_status_change, "runs"),
        (lose_a_tag, "runs"),
        (change_metadata, "runs"),
        (lose_an_error, "runs"),
        (orphan_a_run, "runs"),
        (add_a_run_of_this_fleet, "runs"),
        (miscount_the_runs, "statistics"),
        (turn_back_a_version, "cells"),
        (lose_a_cell, "cells"),
        (steal_a_task, "task board"),
        (give_a_task_twice, "task board"),
        (forget_a_task, "task board"),
        (leave_one_in_the_queue, "task board"),
        (steal_a_job, "task board"),
        (do_a_job_twice, "task board"),
        (lose_a_trace, "traces"),
        (change_a_trace, "traces"),
        (move_a_trace_in_its_tree, "trace queries"),
        (lose_an_index_entry, "trace queries"),
        (leave_something_of_a_deleted_run, "deleted runs"),
        (lift_a_fence, "deleted runs"),
        (find_something_inside, "integrity"),
    ],
)
def test_damage_is_noticed(done: Done, damage: Callable[[Done], None], noticed_by: str) -> None:
    damage(done)
    verdict = done.verdict()
    assert not verdict.ok
    assert noticed_by in {check.name for check in verdict.checks if not check.ok}
    assert verdict.problems()
