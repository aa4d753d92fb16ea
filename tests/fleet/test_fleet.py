"""The main job as a user runs it: exact, the same for the same seed, and gone when it is over."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from commands import Site, wait_for

import inmem
from workers.fleet.plan import FleetSpec
from workers.fleet.program import run_fleet
from workers.fleet.verify import verify
from workers.pool import Interrupt
from workers.stores import StoreOptions

pytestmark = pytest.mark.usefixtures("short_linger")

SMALL = ("--workers", 3, "--steps", 40)
QUICK = (*SMALL, "--start-method", "fork")  # where that is not what is tested
ENDLESS = ("--workers", 3, "--steps", 1_000_000, "--timeout", 100)


def started(site: Site, *arguments: object) -> tuple[subprocess.Popen[str], str]:
    """A fleet that is at work, and the id of its database."""
    process = site.start("workers.fleet", *arguments)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"Store (.+), writer process \d+\n", line)
    assert found, line
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("INMEM_LINGER_S")  # whatever the store has
        with inmem.open(found[1]) as db:
            wait_for(lambda: db.status().commits >= 100, "a hundred commits")
    return process, site.database_id()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


class TestResult:
    def test_a_small_fleet_is_exact_and_leaves_nothing(self, site: Site) -> None:
        data = site.run_json("workers.fleet", *SMALL, "--seed", 3, really=True)
        assert data["ok"] is True
        assert data["problems"] == []
        assert all(check["ok"] and check["compared"] > 0 for check in data["checks"])
        assert {check["name"] for check in data["checks"]} == {
            "agents' reports", "shared totals", "tickets", "working memory",
            "agents' logs", "acknowledged heads", "shared log", "chains", "runs", "statistics",
            "cells", "task board", "traces", "trace queries", "deleted runs", "integrity",
        }  # fmt: skip
        assert set(data["primitives"]) == {"kv", "events", "cells", "traces", "runs"}
        assert all(count for counts in data["primitives"].values() for count in list(counts.values())[:1])
        assert data["primitives"]["cells"]["tasks claimed"] == 3 * 10
        assert data["primitives"]["runs"]["deleted"] >= 3
        assert data["total"]["steps"] == 120
        assert sum(agent["commits"] for agent in data["agents"]) == data["total"]["commits"] > 120
        assert re.fullmatch("[0-9a-f]{64}", data["digest"])
        site.assert_nothing_left()

    def test_the_digest_is_the_seeds(self, site: Site) -> None:
        digests = []
        for seed, method in ((3, "spawn"), (3, "forkserver"), (4, "fork")):
            data = site.run_json("workers.fleet", *SMALL, "--seed", seed, "--start-method", method)
            assert data["ok"]
            digests.append(data["digest"])
            site.assert_nothing_left()
        assert digests[0] == digests[1] != digests[2]

    @pytest.mark.parametrize("durability", ["memory", "sync"])
    def test_each_durability(self, site: Site, durability: str) -> None:
        data = site.run_json("workers.fleet", *QUICK, "--steps", 10, "--durability", durability)
        assert data["ok"]
        assert data["durability"] == durability

    def test_one_agent_alone(self, site: Site) -> None:
        data = site.run_json("workers.fleet", *QUICK, "--workers", 1, "--steps", 20)
        assert data["ok"]
        assert data["total"]["reruns"] == 0

    def test_a_store_with_a_path_stays_and_takes_more_than_one_fleet(
        self, site: Site, tmp_path: Path
    ) -> None:
        path = tmp_path / "store"
        first = site.run_json("workers.fleet", *QUICK, "--path", path)
        second = site.run_json("workers.fleet", *QUICK, "--path", path)
        assert first["ok"] and second["ok"]
        assert first["digest"] == second["digest"]
        assert first["fleet_id"] != second["fleet_id"]
        with inmem.open(path) as db:
            for data in (first, second):
                assert db.kv.get(f"{data['fleet_id']}:shared", "ticks") == 120
        site.assert_nothing_left()


class TestOutput:
    def test_without_a_terminal_there_are_plain_lines(self, site: Site) -> None:
        done = site.run("workers.fleet", *QUICK)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "\x1b" not in done.stdout
        assert re.search(r"^Store .+, writer process \d+$", done.stdout, re.MULTILINE)
        assert "OK: seed 1, 3 agents x 40 steps, digest " in done.stdout
        assert done.stderr == ""

    def test_quiet_is_one_line(self, site: Site) -> None:
        done = site.run("workers.fleet", *QUICK, "--quiet")
        assert done.returncode == 0
        assert re.fullmatch(r"OK: seed 1, 3 agents x 40 steps, digest [0-9a-f]{16}\n", done.stdout)

    def test_one_command_line_has_all_programs(self, site: Site) -> None:
        done = site.run_really("workers", "fleet", *QUICK, "--quiet")
        assert (done.returncode, done.stdout[:11]) == (0, "OK: seed 1,"), done.stderr
        assert site.run("workers", "stress", "--operations", 0).returncode == 2
        shown = site.run("workers", "--help").stdout
        assert all(f" {program} " in shown for program in ("fleet", "replay", "stress", "chaos"))

    def test_on_a_terminal_there_are_bars(self, site: Site) -> None:
        ours, theirs = pty.openpty()
        heard: list[bytes] = []

        def listen() -> None:
            while True:
                try:
                    data = os.read(ours, 65536)
                except OSError:  # the other end is closed
                    return
                heard.append(data)

        process = subprocess.Popen(
            site.command("workers.fleet", *QUICK),
            cwd=Path(__file__).parents[2], env=site.environment | {"TERM": "xterm"},
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        listener = threading.Thread(target=listen)
        listener.start()
        code = process.wait(100)
        listener.join(20)
        os.close(ours)
        text = b"".join(heard).decode()
        assert code == 0, text
        assert "together" in text
        assert "\x1b" in text
        assert "OK: seed" in text

    @pytest.mark.parametrize(
        "arguments",
        [("--workers", 0), ("--steps", 0), ("--durability", "maybe"), ("--start-method", "magic")],
    )
    def test_wrong_usage(self, site: Site, arguments: tuple[Any, ...]) -> None:
        done = site.run("workers.fleet", *arguments)
        assert done.returncode == 2
        assert arguments[0] in done.stderr

    def test_a_store_that_cannot_be_opened(self, site: Site, tmp_path: Path) -> None:
        path = tmp_path / "taken"
        path.write_text("not a directory")
        done = site.run("workers.fleet", *SMALL, "--path", path)
        assert done.returncode == 1
        assert "Error" in done.stderr
        assert "Traceback" not in done.stderr


class TestInterrupted:
    @pytest.mark.parametrize("to_group", [False, True], ids=["parent", "group"])
    def test_ctrl_c_leaves_no_process_and_no_file(self, site: Site, to_group: bool) -> None:
        if to_group:
            site.settings.clear()  # as it is without any settings
        process, database_id = started(site, *ENDLESS)
        assert site.images(database_id)
        assert len(site.agents(process.pid)) == 3
        (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
        code, text = finish(process)
        assert code == 130, text
        assert "Traceback" not in text
        site.assert_nothing_left(database_id)

    def test_ctrl_c_while_processes_start(self, site: Site) -> None:
        process = site.start("workers.fleet", *ENDLESS)
        wait_for(lambda: len(site.processes()) > 2, "the first processes")
        os.killpg(process.pid, signal.SIGINT)
        code, text = finish(process)
        assert code == 130, text
        assert "Traceback" not in text
        site.assert_nothing_left()

    def test_more_than_one_ctrl_c(self, site: Site) -> None:
        process, database_id = started(site, *ENDLESS)
        for _ in range(5):
            os.killpg(process.pid, signal.SIGINT)
        code, text = finish(process)
        assert code == 130, text
        site.assert_nothing_left(database_id)

    def test_sigterm(self, site: Site) -> None:
        process, database_id = started(site, *ENDLESS)
        process.terminate()
        code, text = finish(process)
        assert code == 128 + signal.SIGTERM, text
        site.assert_nothing_left(database_id)

    def test_killed_without_warning_the_rest_goes_by_itself(self, site: Site) -> None:
        process, database_id = started(site, *ENDLESS)
        process.kill()
        finish(process)
        wait_for(lambda: not site.processes(), "agents and writer gone", 40)
        site.assert_nothing_left(database_id)

    def test_the_time_allowed_is_over(self, site: Site) -> None:
        done = site.run("workers.fleet", *ENDLESS[:4], "--timeout", 2)
        assert done.returncode == 1
        assert "time allowed" in done.stderr
        site.assert_nothing_left()


class TestFailures:
    def test_a_killed_agent_fails_the_fleet(self, site: Site) -> None:
        process, database_id = started(site, *ENDLESS)
        os.kill(site.agents(process.pid)[0], signal.SIGKILL)
        code, text = finish(process)
        assert code == 1, text
        assert "ended by SIGKILL" in text
        assert "FAILED" in text
        site.assert_nothing_left(database_id)

    def test_a_killed_writer_does_not(self, site: Site) -> None:
        process, database_id = started(site, "--workers", 3, "--steps", 250, "--timeout", 100)
        (writer,) = (pid for pid, words in site.processes().items() if "inmem.writer" in words)
        os.kill(writer, signal.SIGKILL)
        code, text = finish(process)
        assert code == 0, text
        assert "OK: seed" in text
        site.assert_nothing_left(database_id)

    def test_a_change_behind_the_fleets_back_is_noticed(self, tmp_path: Path) -> None:
        path = str(tmp_path / "store")
        spec = FleetSpec(seed=2, workers=2, steps=12)
        with Interrupt() as interrupt, inmem.open(path) as db:
            result = run_fleet(spec, StoreOptions(path=path), interrupt)
            assert result.ok, result.problems()
            before = verify(db, spec, result.runs, result.reports)
            assert before.ok
            run, shared = result.runs.of(1), result.runs.shared
            alive = next(r for r in map(result.runs.of, (0, 1)) if db.runs.get_run(r).status != "archived")
            wrong: set[str] = set()
            digests = [before.digest]
            for damage, noticed_by in (
                (lambda: db.kv.put(run, "spent", float(db.kv.get(run, "spent"))), {"working memory"}),
                (lambda: db.events.append(run, "step.done", {}), {"agents' logs", "chains"}),
                (lambda: db.kv.add(shared, "total:calls"), {"shared totals"}),
                (lambda: db.cells.set(run, "focus", {"part": 1}), {"cells"}),
                (lambda: db.traces.record(run, inmem.Thought("late")), {"traces", "trace queries"}),
                (lambda: db.cells.set(shared, "task:000000", {}), {"task board"}),
                (lambda: db.runs.archive_run(alive), {"runs", "statistics"}),
                (lambda: db.runs.delete_run(run), set()),
            ):
                damage()
                verdict = verify(db, spec, result.runs, result.reports)
                found = {check.name for check in verdict.checks if not check.ok}
                assert found >= wrong | noticed_by
                assert len(verdict.problems()) == len(found)
                wrong = found
                digests.append(verdict.digest)
            # The board is no part of the digest: who got which task is a matter of luck.
            assert len(set(digests)) == len(digests) - 1
