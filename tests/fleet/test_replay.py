"""Recorded runs, loaded by real processes: equal to their source, and never doubled."""

from __future__ import annotations

import copy
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import REAL_DATA, Site, wait_for
from plain_store import PlainStore
from test_trajectories import swe_run, swe_step, tau_run

import inmem
from inmem.exchange.recorded import Trajectory, parse_file
from workers.fleet.loading import CHECKS, Anchor, ForeignRun, compare, expected_contents, load_step
from workers.fleet.replay import check_run_queries, merge, share_out, take_inventory
from workers.judge.checks import Check
from workers.observer import Observer
from workers.pool import Interrupt

pytestmark = pytest.mark.usefixtures("short_linger")

QUICK = ("--workers", 2, "--start-method", "fork")  # where neither is what is tested


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with 3 + 12 runs, and nothing wrong in it."""
    root = tmp_path / "data"
    (root / "deep").mkdir(parents=True)
    for number in range(3):
        (root / "deep" / f"run-{number}.traj").write_text(json.dumps(swe_run(3 + number)))
    (root / "runs.json").write_text(json.dumps([tau_run(trial=number) for number in range(12)]))
    (root / "LICENSE").write_text("not a run")
    return root


def parsed(path: Path) -> list[Trajectory]:
    return [one for _, one in parse_file(path, path.name) if isinstance(one, Trajectory)]


def spoil(root: Path) -> int:
    """Add malformed files; how many records are to be rejected."""
    (root / "empty.traj").write_bytes(b"")
    (root / "cut.traj").write_text(json.dumps(swe_run())[:-40])
    (root / "binary.json").write_bytes(bytes(range(256)))
    (root / "deep.json").write_text("[" * 100_000)
    (root / "wrong.json").write_text('{"a": 1}')
    (root / "types.traj").write_text('{"history": 5}')
    (root / "partly.json").write_text(json.dumps([5, tau_run(trial=99), {"traj": 1}]))
    return 8


class TestCommand:
    def test_everything_is_loaded_and_compared(self, site: Site, source: Path) -> None:
        data = site.run_json("workers.replay", source, "--workers", 3, really=True)
        assert data["ok"] is True
        assert (data["files"], data["runs"], data["new"]) == (4, 15, 15)
        assert (data["rejected"], data["duplicates"], data["problems"]) == ([], [], [])
        assert [check["name"] for check in data["checks"]] == [*CHECKS, "run queries", "integrity"]
        assert data["primitives"]["runs"] == {"completed": 15}
        assert all(check["ok"] and check["compared"] > 0 for check in data["checks"])
        assert data["steps"] == (4 + 5 + 6) + 12 * 4
        site.assert_nothing_left()

    def test_a_person_is_told(self, site: Site, source: Path) -> None:
        spoil(source)
        done = site.run("workers.replay", source, *QUICK)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "OK: 16 runs equal their source, 8 rejected" in done.stdout
        assert "rejected cut.traj: invalid JSON, or cut short" in done.stderr
        assert "rejected binary.json: not a text file: byte 128" in done.stderr
        assert "rejected partly.json[2]: no 'task_id'" in done.stderr
        assert "Traceback" not in done.stderr

    def test_malformed_files_are_counted_and_the_rest_goes_on(self, site: Site, source: Path) -> None:
        rejected = spoil(source)
        data = site.run_json("workers.replay", source, *QUICK)
        assert data["ok"]
        assert len(data["rejected"]) == rejected
        assert data["runs"] == data["new"] == 16

    def test_nothing_to_load_is_a_failure(self, site: Site, tmp_path: Path) -> None:
        root = tmp_path / "data"
        root.mkdir()
        data = site.run_json("workers.replay", root, *QUICK, code=1)
        assert data["problems"] == ["no trajectory could be loaded"]
        spoil(root)
        (root / "partly.json").unlink()
        data = site.run_json("workers.replay", root, *QUICK, code=1)
        assert len(data["rejected"]) == 6
        site.assert_nothing_left()

    def test_one_file_can_be_given(self, site: Site, source: Path) -> None:
        data = site.run_json("workers.replay", source / "runs.json", *QUICK)
        assert data["ok"]
        assert data["runs"] == 12

    def test_duplicates_are_told_and_loaded_once(self, site: Site, source: Path) -> None:
        (source / "deep" / "more").mkdir()
        (source / "deep" / "more" / "run-0.traj").write_bytes((source / "deep/run-0.traj").read_bytes())
        data = site.run_json("workers.replay", source, *QUICK)
        assert data["ok"]
        assert data["runs"] == 15
        assert len(data["duplicates"]) == 1

    def test_odd_values_are_kept_and_told(self, site: Site, source: Path) -> None:
        record = swe_run(1) | {"trajectory": [swe_step(0, tokens=1 << 70, raw="\ud83d", cost=float("nan"))]}
        (source / "odd.traj").write_text(json.dumps(record))
        data = site.run_json("workers.replay", source, *QUICK)
        assert data["ok"], data["problems"]
        assert len(data["notes"]) == 2
        assert all(note.startswith("odd.traj: step 1, context") for note in data["notes"])

    def test_a_missing_directory_is_wrong_usage(self, site: Site, tmp_path: Path) -> None:
        done = site.run("workers.replay", tmp_path / "nowhere")
        assert done.returncode == 2

    def test_the_exit_codes_are_in_the_help(self, site: Site) -> None:
        done = site.run("workers.replay", "--help")
        assert done.returncode == 0
        assert "no trajectory could be loaded" in " ".join(done.stdout.replace("│", " ").split())

    def test_ctrl_c_leaves_nothing(self, site: Site, tmp_path: Path) -> None:
        root = tmp_path / "data"
        root.mkdir()
        for number in range(4):
            (root / f"run-{number}.traj").write_text(json.dumps(swe_run(1_000 + number)))
        process = site.start("workers.replay", root, "--durability", "sync")
        wait_for(lambda: len(site.agents(process.pid)) == 4, "the loaders")
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, out + err
        assert "Traceback" not in out + err
        site.assert_nothing_left()


class TestAgain:
    def test_loading_again_verifies_and_doubles_nothing(
        self, site: Site, source: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "store"
        first = site.run_json("workers.replay", source, "--path", path, *QUICK)
        again = site.run_json("workers.replay", source, "--path", path, *QUICK)
        assert (first["new"], first["complete"]) == (15, 0)
        assert (again["new"], again["complete"], again["steps"]) == (0, 15, 0)
        assert again["ok"]
        (source / "deep" / "late.traj").write_text(json.dumps(swe_run(9)))
        more = site.run_json("workers.replay", source, "--path", path, *QUICK)
        assert (more["new"], more["complete"], more["ok"]) == (1, 15, True)

    def test_a_half_done_run_goes_on_after_its_last_step(
        self, site: Site, source: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "store"
        (trajectory,) = parsed(source / "deep" / "run-2.traj")
        with inmem.open(path) as db:
            for step in trajectory.steps[:2]:
                load_step(db, trajectory, step, 30.0)
        data = site.run_json("workers.replay", source, "--path", path, *QUICK)
        assert data["ok"]
        assert (data["new"], data["continued"], data["complete"]) == (14, 1, 0)

    def test_killed_and_started_again_it_ends_whole(
        self, site: Site, tmp_path: Path
    ) -> None:
        root, path = tmp_path / "data", tmp_path / "store"
        root.mkdir()
        for number in range(4):
            (root / f"run-{number}.traj").write_text(json.dumps(swe_run(300 + number)))
        process = site.start("workers.replay", root, "--path", path, "--durability", "sync")
        loaders = wait_for(lambda: site.agents(process.pid), "the loaders")
        wait_for(lambda: (path / "settings.json").exists(), "the store")
        run_ids = [parsed(root / f"run-{number}.traj")[0].run_id for number in range(4)]
        with inmem.open(path) as db:
            wait_for(lambda: any(db.kv.exists(run, "progress") for run in run_ids), "a first step")
        for pid in (*loaders, process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=60)
        data = site.run_json("workers.replay", root, "--path", path, *QUICK)
        assert data["ok"], data["problems"]
        assert data["continued"] > 0
        wait_for(lambda: not site.processes(), "everything gone", 30)

    def test_two_at_once_double_nothing(self, site: Site, source: Path, tmp_path: Path) -> None:
        path = tmp_path / "store"
        both = [site.start("workers.replay", source, "--path", path, "--json", *QUICK) for _ in range(2)]
        texts = [process.communicate(timeout=100) for process in both]
        assert [process.returncode for process in both] == [0, 0], texts
        results = [json.loads(out) for out, _ in texts]
        assert sum(data["steps"] for data in results) == (4 + 5 + 6) + 12 * 4
        assert site.run_json("workers.replay", source, "--path", path, *QUICK)["complete"] == 15

    @pytest.mark.parametrize("damage", ["progress", "others"])
    def test_damage_is_noticed_when_loading_again(
        self, site: Site, source: Path, tmp_path: Path, damage: str
    ) -> None:
        path = tmp_path / "store"
        site.run_json("workers.replay", source, "--path", path, *QUICK)
        (trajectory,) = parsed(source / "deep" / "run-1.traj")
        run = trajectory.run_id
        with inmem.open(path) as db:
            if damage == "progress":
                db.kv.put(run, "progress", db.kv.get(run, "progress") | {"digest": "0" * 64})
            else:
                db.events.append(run, "user", {"step": 9, "message": {"role": "user"}})
                db.cells.set(run, "status", "running")
                db.traces.record(run, inmem.Thought("later"), parent_id="s000000")
                db.runs.add_tags(run, ["late"])
        data = site.run_json("workers.replay", source, "--path", path, *QUICK, code=1)
        assert not data["ok"]
        assert any(run in problem for problem in data["problems"])
        if damage == "others":
            wrong = {check["name"] for check in data["checks"] if not check["ok"]}
            assert wrong == {
                "events", "source records", "chains", "acknowledged events", "runs", "cells", "traces",
                "trace queries",
            }  # fmt: skip


class TestRealRuns:
    def test_the_recorded_runs_are_loaded_and_compared(self, site: Site, tmp_path: Path) -> None:
        if not REAL_DATA.is_dir():
            pytest.skip(f"no recorded runs at {REAL_DATA}: nothing real to load")
        path = tmp_path / "store"
        data = site.run_json("workers.replay", REAL_DATA, "--path", path, *QUICK)
        assert data["ok"], data["problems"]
        assert (data["runs"], data["rejected"], data["notes"]) == (213, [], [])
        assert data["events"] > data["steps"] > 2_000
        assert data["primitives"]["runs"] == {"completed": 97, "failed": 116}
        assert data["primitives"]["traces"]["recorded"] > 2 * data["steps"]
        again = site.run_json("workers.replay", REAL_DATA / "swe-agent", "--path", path, *QUICK)
        assert (again["ok"], again["complete"], again["events"]) == (True, 13, 0)


def loaded(trajectory: Trajectory) -> PlainStore:
    store = PlainStore()
    for step in trajectory.steps:
        load_step(store, trajectory, step, 30.0)
    return store


def checks_of(store: Any, trajectory: Trajectory, anchor: Any = None) -> dict[str, Check]:
    checks = [Check(name) for name in CHECKS]
    compare(store, trajectory, anchor, checks)
    return {check.name: check for check in checks}


class TestLoading:
    """The loader and the comparison, on a store in plain dicts."""

    @pytest.fixture
    def trajectory(self, source: Path) -> Trajectory:
        return parsed(source / "deep" / "run-1.traj")[0]

    def test_a_run_that_was_loaded_equals_its_source(self, trajectory: Trajectory) -> None:
        checks = checks_of(loaded(trajectory), trajectory)
        assert all(check.ok for check in checks.values()), checks

    def test_a_step_is_stored_once(self, trajectory: Trajectory) -> None:
        store = loaded(trajectory)
        before = copy.deepcopy(store)
        for step in trajectory.steps:
            done, last, _ = load_step(store, trajectory, step, 30.0)
            assert (done, last) == (len(trajectory.steps), None)
        for part in ("entries", "logs", "states", "trees", "records"):
            assert getattr(store, part) == getattr(before, part)

    def test_the_state_is_there_after_every_step(self, trajectory: Trajectory) -> None:
        store = PlainStore()
        for step in trajectory.steps:
            load_step(store, trajectory, step, 30.0)
            state = store.cells.read(trajectory.run_id, "state")
            assert state is not None and (state.value, state.version) == (step.state, step.index + 1)
            status = store.records[trajectory.run_id].status
            assert status == ("completed" if step is trajectory.steps[-1] else "active")
            assert store.kv.get(trajectory.run_id, "progress")["done"] == step.index + 1

    def test_another_record_under_the_id_is_left_alone(self, trajectory: Trajectory) -> None:
        store = PlainStore()
        store.kv.put(trajectory.run_id, "progress", {"digest": "other", "steps": 1, "done": 1})
        with pytest.raises(ForeignRun):
            load_step(store, trajectory, trajectory.steps[0], 30.0)
        assert not store.logs and not store.records and not store.states and not store.trees

    @pytest.mark.parametrize("number", range(8))
    def test_any_damaged_event_is_noticed(self, trajectory: Trajectory, number: int) -> None:
        run = trajectory.run_id
        for damage in ("drop", "double", "swap", "change"):
            store = loaded(trajectory)
            log = store.logs[run]
            if damage == "drop":
                del log[number]
            elif damage == "double":
                log.insert(number, log[number])
            elif damage == "swap":
                log[number], log[number + 3] = log[number + 3], log[number]
            else:
                log[number].payload["extra"] = None
            store.rechain(run)
            assert not checks_of(store, trajectory)["events"].ok, damage

    def test_a_lost_message_keeps_the_record_from_being_rebuilt(self, trajectory: Trajectory) -> None:
        store = loaded(trajectory)
        del store.logs[trajectory.run_id][2]
        assert not checks_of(store, trajectory)["source records"].ok

    def test_any_damaged_entry_is_noticed(self, trajectory: Trajectory) -> None:
        for key in expected_contents(trajectory).kv:
            store = loaded(trajectory)
            del store.entries[trajectory.run_id][key]
            assert not checks_of(store, trajectory)["final state"].ok, key
        store = loaded(trajectory)
        store.kv.put(trajectory.run_id, "extra", None)
        assert not checks_of(store, trajectory)["final state"].ok

    def test_a_failed_trajectory_fails_its_run(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.json"
        path.write_text(json.dumps([tau_run(reward=0.0)]))
        (trajectory,) = parsed(path)
        store = loaded(trajectory)
        record = store.records[trajectory.run_id]
        assert (record.status, record.error, record.version) == ("failed", "reward 0.0", 2)
        assert all(check.ok for check in checks_of(store, trajectory).values())

    def test_a_run_of_one_step_is_created_and_ended_at_once(self, tmp_path: Path) -> None:
        path = tmp_path / "one.traj"
        path.write_text(json.dumps({"history": [{"role": "user", "content": "Hello"}]}))
        (trajectory,) = parsed(path)
        assert len(trajectory.steps) == 1
        assert all(check.ok for check in checks_of(loaded(trajectory), trajectory).values())
        with inmem.open() as db:
            load_step(db, trajectory, trajectory.steps[0], 30.0)
            assert all(check.ok for check in checks_of(db, trajectory).values())

    def test_any_damaged_cell_trace_or_record_is_noticed(self, trajectory: Trajectory) -> None:
        run = trajectory.run_id

        def noticed(damage: Any) -> set[str]:
            store = loaded(trajectory)
            damage(store)
            return {name for name, check in checks_of(store, trajectory).items() if not check.ok}

        for name in ("state", "status"):
            assert noticed(lambda store, name=name: store.states[run].pop(name)) == {"cells"}
            assert noticed(lambda s, name=name: s.cells.set(run, name, s.cells.read(run, name).value)) == {
                "cells"
            }
        for trace in loaded(trajectory).traces.list(run):
            assert "traces" in noticed(lambda store, trace=trace: store.trees[run].pop(trace.id))
        record = loaded(trajectory).records[run]
        for change in (
            {"status": inmem.RunStatus.ACTIVE}, {"tags": record.tags[1:]}, {"metadata": {}}, {"error": "x"},
            {"version": 3}, {"parent_run": "other"},
        ):  # fmt: skip
            changed = replace(record, **change)
            assert noticed(lambda store, changed=changed: store.records.update({run: changed})) == {"runs"}

    def test_a_broken_chain_and_a_foreign_head_are_noticed(self, trajectory: Trajectory) -> None:
        store = loaded(trajectory)
        log = store.logs[trajectory.run_id]
        step = len(trajectory.steps) - 1
        head = Anchor(step, log[-1].sequence, log[-1].hash)
        assert checks_of(store, trajectory, head)["acknowledged events"].ok
        for wrong in (
            replace(head, hash=bytes(32)),
            replace(head, step=step - 1),
            replace(head, sequence=head.sequence - 1, hash=log[-2].hash),
        ):
            assert not checks_of(store, trajectory, wrong)["acknowledged events"].ok, wrong
        log.pop()
        assert not checks_of(store, trajectory, head)["acknowledged events"].ok
        assert not checks_of(store, trajectory)["chains"].ok

    def test_an_acknowledged_event_before_the_end_is_enough(self, trajectory: Trajectory) -> None:
        store = PlainStore()
        _, last, _ = load_step(store, trajectory, trajectory.steps[0], 30.0)
        for step in trajectory.steps[1:]:  # by another program
            load_step(store, trajectory, step, 30.0)
        anchor = Anchor(0, last.sequence, last.hash)
        assert checks_of(store, trajectory, anchor)["acknowledged events"].ok

    def test_an_empty_store_equals_nothing(self, trajectory: Trajectory) -> None:
        checks = checks_of(PlainStore(), trajectory)
        assert not any(check.ok for check in checks.values())


class TestSharing:
    def test_every_run_goes_to_one_worker(self, source: Path) -> None:
        with Interrupt() as interrupt:
            items = take_inventory(source, interrupt, Observer()).items
        for workers in (1, 2, 7, 100):
            shares = share_out(items, workers)
            assert len(shares) == min(workers, 15)
            assert sorted(item.run_id for share in shares for item in share) == sorted(
                item.run_id for item in items
            )
            loads = [sum(item.steps for item in share) for share in shares]
            assert max(loads) - min(loads) <= max(item.steps for item in items)

    def test_a_run_that_a_query_does_not_find_is_noticed(self, source: Path) -> None:
        with Interrupt() as interrupt:
            items = take_inventory(source / "runs.json", interrupt, Observer()).items
        store = PlainStore()
        for item in items:
            store.runs.create_run(item.run_id, tags=item.tags)
            store.runs.complete_run(item.run_id)
        check = Check("run queries")
        check_run_queries(check, store, items)
        assert check.ok
        run = store.records[items[3].run_id]
        store.records[run.run_id] = replace(run, tags=run.tags[1:])
        check_run_queries(check, store, items)
        assert not check.ok

    def test_merged_checks_keep_every_count(self) -> None:
        parts = []
        for _ in range(3):
            part = [Check(name) for name in CHECKS]
            for number in range(8):
                part[0].require(False, f"problem {number}")
                part[1].require(True, "")
            parts.append(part)
        merged = merge(parts)
        assert (merged[0].compared, merged[0].problem_count, len(merged[0].problems)) == (24, 24, 5)
        assert merged[1].ok
        assert not merged[2].ok
