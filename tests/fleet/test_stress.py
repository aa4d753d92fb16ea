"""The stress as a user runs it, in its short form: judged right, and gone when it is over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from commands import Site, wait_for

import inmem
from workers.judge.history import path_of, read_history
from workers.judge.stress import judge
from workers.pool import Interrupt
from workers.stress.program import StressOptions, read_final, run_stress


def test_twelve_workers_are_judged_right_and_leave_nothing(site: Site) -> None:
    data = site.run_json("workers.stress", "--workers", 12, "--seconds", 2, "--seed", 5, really=True)
    assert data["ok"] is True
    assert data["problems"] == []
    assert [check["name"] for check in data["checks"]] == [
        "histories", "answers", "counters", "appends", "chains", "cell winners", "cell versions",
        "transitions", "marks", "snapshots", "traces", "status histories", "deleted runs", "integrity",
    ]  # fmt: skip
    assert all(check["ok"] and check["compared"] > 0 for check in data["checks"])
    operations = data["operations"]
    for name, error in (
        ("cas", "VersionMismatchError"), ("contest", "TraceExistsError"), ("abort", "Abandoned"),
        ("status", "InvalidTransitionError"), ("cell.init", "CellExistsError"),
    ):  # fmt: skip
        assert operations[name]["refused"][error] > 0, name
    assert operations["abort"]["acknowledged"] == 0
    assert operations["delete"]["acknowledged"] > 0
    assert data["asked"] == sum(row["asked"] for row in operations.values())
    site.assert_nothing_left()


def test_histories_can_be_kept(site: Site, tmp_path: Path) -> None:
    kept = tmp_path / "histories"
    done = site.run("workers.stress", "--workers", 2, "--operations", 150, "--histories", kept)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK: seed 1, 2 workers" in done.stdout
    assert f"Histories: {kept}" in done.stdout
    for worker in range(2):
        ops = read_history(path_of(kept, worker), worker)
        assert len(ops) >= 150
        assert all(op.answered_at is not None for op in ops)
    again = site.run("workers.stress", "--workers", 2, "--operations", 5, "--histories", kept)
    assert again.returncode == 2
    assert "holds histories already" in " ".join(again.stderr.replace("│", " ").split())
    site.assert_nothing_left()


def test_a_writer_killed_before_it_answers_loses_and_doubles_nothing(site: Site, tmp_path: Path) -> None:
    flag = tmp_path / "killed"
    site.settings["INMEM_FAILPOINT"] = f"answering:400:{flag}"
    data = site.run_json("workers.stress", "--workers", 6, "--operations", 250, "--seed", 2)
    assert flag.exists()
    assert data["problems"] == []
    assert all(row["unknown"] == 0 for row in data["operations"].values())
    site.assert_nothing_left()


def test_a_change_behind_the_workers_backs_is_noticed(tmp_path: Path, short_linger: None) -> None:
    kept, path = tmp_path / "histories", str(tmp_path / "store")
    options = StressOptions(3, 2, operations=400, path=path, start_method="spawn", histories=str(kept))
    with Interrupt() as interrupt, inmem.open(path) as db:
        result = run_stress(options, interrupt)
        assert result.ok, result.problems()
        runs = result.runs
        assert runs is not None
        noted = [read_history(path_of(kept, worker), worker) for worker in range(2)]
        run = runs.hot()[0]
        wrong: set[str] = set()
        for damage, noticed_by in (
            (lambda: db.kv.add(run, "counter"), "counters"),
            (lambda: db.events.append(run, "tick", [0, 1_000_000, 0]), "appends"),
            (lambda: db.cells.set(run, "duel", [0, 0]), "cell winners"),
            (lambda: db.cells.set(run, "tally", db.cells.read(run, "tally").value), "transitions"),
            (lambda: db.traces.record(run, inmem.Thought("x"), id="t-9-9-0"), "traces"),
            (lambda: db.runs.add_tags(run, ["late"]), "marks"),
        ):
            damage()
            checks = judge(noted, read_final(db, runs, noted, interrupt))
            now = {check.name for check in checks if not check.ok}
            assert now == wrong | {noticed_by}
            wrong = now


def test_ctrl_c_leaves_no_process_and_no_file(site: Site) -> None:
    process = site.start("workers.stress", "--workers", 4, "--seconds", 100)
    wait_for(lambda: list(site.tmp.glob("inmem-stress-*/*.jsonl")), "the first history")
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    site.assert_nothing_left()


@pytest.mark.parametrize("arguments", [("--workers", 0), ("--seconds", 0), ("--operations", 0)])
def test_wrong_usage(site: Site, arguments: tuple[object, ...]) -> None:
    assert site.run("workers.stress", *arguments).returncode == 2
