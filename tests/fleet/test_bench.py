"""The benchmark suite measures what it says: its quick form is complete, and no failure looks fast.

Nothing here asks for a speed; see test_figures for bounds beside a probe.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import inmem
from bench import harness, processes, report, single, targets, workloads, ycsb
from bench.busy import busy
from bench.harness import Bench, Options, beside, main, parsed, parser
from bench.measuring import (
    BenchError,
    Done,
    Job,
    Measurement,
    MeasuringProcesses,
    Work,
    combine,
    cpu_ns,
    percentiles,
)
from bench.peers import CHECKOUT, Client, Unsupported, running
from bench.peers.before import adopt
from bench.peers.ours import ended

WRITES = {
    single.PUT, single.PUT_MANY, single.PIPELINE, single.APPEND, single.CAS, single.TRACE, single.STEP,
    single.MODIFY,
}  # fmt: skip
OPERATIONS = {single.GET} | WRITES | {beside(write, 1) for write in WRITES}


@pytest.mark.timeout(60)
def test_the_quick_form_runs_and_tells_everything(scratch: Path) -> None:
    file = scratch / "single.json"
    arguments = ["--quick", "--rounds", "1", "--seconds", "0.1", "--peers", "", "--scratch", str(scratch)]
    arguments += ["--beside", "1"]
    assert main("single", "", single.run, [*arguments, "--json", str(file)]) == 0
    document = json.loads(file.read_text())

    assert set(document["operations"]) == OPERATIONS
    assert document["subjects"]["inmem"]["durability"].startswith("buffered")
    assert set(document["skipped"]) == set(single.SUBJECTS) - {"inmem", "inmem before"}
    assert document["machine"]["cores"] >= 1 and document["machine"]["packages"]["lmdb"]
    rates = {}
    for name in OPERATIONS - {single.GET}:
        entry = document["operations"][name]
        assert (entry["operation"], entry["busy"]) == (name.partition(", beside")[0], int("beside" in name))
        ours = entry["subjects"]["inmem"]
        # A call's own processor time is in it, and the writer's; neither has more than it had time for.
        weight = workloads.MANY if entry["operation"] in (single.PUT_MANY, single.PIPELINE) else 1
        assert 1 < ours["cpu_us"]["median"] <= 4e6 / ours["per_second"]["median"]
        assert ours["latency_us"]["p50"]["median"] <= ours["latency_us"]["p99"]["median"]
        assert ours["latency_us"]["p50"]["median"] > weight
    for operation, found in document["operations"].items():
        assert not found["missing"], found["missing"]
        rate = found["subjects"]["inmem"]["per_second"]
        assert len(rate["rounds"]) == 1 and 0 < rate["min"] <= rate["median"] <= rate["max"]
        rates[operation] = rate["median"]
        probes = [entry for name, entry in found["subjects"].items() if name.startswith("probe: ")]
        assert probes and all(entry["ours_to_this"]["median"] > 0 for entry in probes)
    latency = document["operations"][single.PUT]["subjects"]["inmem"]["latency_us"]
    assert latency["p50"]["median"] <= latency["p95"]["median"] <= latency["p99"]["median"]
    assert document["figures"][f"{beside(single.PUT, 1)}: cpu us"]["median"] > 0
    # A read sends no message, and a hundred entries share one.
    assert rates[single.GET] > rates[single.PUT] and rates[single.PUT_MANY] > rates[single.PUT]

    verdicts = {v.target.figure: v.word for v in targets.judge({"single": document})}
    asked = {t.figure for t in targets.TARGETS if t.document == "single" and "redis" not in t.figure}
    assert {figure for figure in asked if verdicts[figure] == "not measured"} <= {
        figure for figure in asked if "stratadb" in figure or "sqlite" in figure or "beside" in figure
    }
    report.write({"single": document}, scratch / "report", scratch / "kept")
    text = (scratch / "kept" / "results.md").read_text()
    head = next(line for line in text.splitlines() if line.startswith("| operation"))
    columns = [word.strip() for word in head.strip("|").split("|")]
    assert columns[:3] == ["operation", "situation", "store"]
    assert {"per second", "p50 µs", "p99 µs", "CPU µs", "rate: inmem / this"} <= {*columns}
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    above = ["", ""]
    for line in text.partition(head)[2].partition("\n\n")[0].splitlines()[2:]:
        words = [word.strip() for word in line.strip("|").split("|")]
        above = words[:2] if words[0] else above
        rows[above[0], above[1], words[2]] = dict(zip(columns, words, strict=True))
    for write in WRITES:
        for situation in ("quiet", "beside 1 busy"):
            row = rows[write, situation, "inmem"]
            assert all(row[column] for column in ("per second", "p50 µs", "p99 µs", "CPU µs")), row
            assert rows[write, situation, targets.ECHO]["rate: inmem / this"]
    assert {path.name for path in (scratch / "kept").iterdir()} <= set(report.KEPT)
    assert json.loads((scratch / "report" / "results.json").read_text()) == {"single": document}


# --- what must not be mistaken for fast ---------------------------------------------------------


class Forgetful(Client):
    """Takes writes and keeps none."""

    def put(self, key: str, value: str) -> Any:
        return None

    def get(self, key: str) -> str | None:
        return None

    def append(self, log: str, value: str) -> Any:
        return None

    def log_length(self, log: str) -> int:
        return 0


class Keeper(Client):
    """A dict, and a log that loses every so manyth event."""

    def __init__(self, loses: int) -> None:
        self._data: dict[str, str] = {}
        self._loses, self._asked, self._log = loses, 0, 0

    def put(self, key: str, value: str) -> Any:
        self._data[key] = value

    def get(self, key: str) -> str | None:
        return self._data.get(key)

    def append(self, log: str, value: str) -> Any:
        self._asked += 1
        self._log += not self._loses or self._asked % self._loses != 0

    def log_length(self, log: str) -> int:
        return self._log


@pytest.fixture(scope="module")
def measuring() -> Iterator[MeasuringProcesses]:
    made = MeasuringProcesses()
    yield made
    made.close()


@pytest.mark.parametrize("build", [workloads.put, workloads.get, workloads.append])
def test_an_operation_that_does_nothing_has_no_rate(
    measuring: MeasuringProcesses, build: Callable[..., Any]
) -> None:
    with pytest.raises(BenchError, match=r"instead of|wrong result|the store counts 0"):
        measuring.measure(Forgetful, build, seconds=0.01)


def test_lost_events_are_noticed_and_kept_ones_counted(measuring: MeasuringProcesses) -> None:
    with pytest.raises(BenchError, match="the store counts"):
        measuring.measure(functools.partial(Keeper, 50), workloads.append, seconds=0.01)
    assert measuring.measure(functools.partial(Keeper, 0), workloads.append, seconds=0.01).rate > 0
    assert measuring.measure(functools.partial(Keeper, 0), workloads.put, seconds=0.01).rate > 0


def test_what_a_store_cannot_do_is_no_failure(measuring: MeasuringProcesses) -> None:
    with pytest.raises(Unsupported, match="no transactions"):
        measuring.measure(Forgetful, workloads.step, seconds=0.01)


# --- processor time, and processes that compute -------------------------------------------------------


def compute(seconds: float) -> None:
    """Take so much processor time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def computing(client: Client, index: int, each_s: float, threads: int = 1) -> Work:
    """An operation of known processor time, in threads that others might miss."""

    def operation(_: Any) -> None:
        started = [threading.Thread(target=compute, args=(each_s / threads,)) for _ in range(threads)]
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()

    return Work(operation, [None])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_processor_time_of_the_callers_is_counted(measuring: MeasuringProcesses, threads: int) -> None:
    found = measuring.measure(Client, computing, 0.01, threads, processes=2, seconds=0.1)
    assert found.cpu_us is not None
    # What starting a thread takes comes on top, and the time of a sample is not cut short.
    assert 10_000 <= found.cpu_us <= 15_000


def test_the_processor_time_of_a_server_is_counted(measuring: MeasuringProcesses) -> None:
    # It computes all the time, so it has taken more from before the run until after it than in it.
    job = Job(Client, computing, (0.01,))
    with busy(1) as pids:
        began, before = time.monotonic(), cpu_ns(pids[0])
        done, in_run = measuring.run([job], 0.2, servers=pids)
        around, elapsed = cpu_ns(pids[0]) - before, (time.monotonic() - began) * 1e9
        assert 0 < in_run < around <= elapsed
        # What the caller computes is not the server's, nor the other way round.
        callers = combine(done, 0).cpu_us
        both = combine(done, in_run).cpu_us
        assert callers is not None and 10_000 <= callers <= 15_000
        assert both == pytest.approx(callers + in_run / done[0].operations / 1000)
    with pytest.raises(OSError):
        cpu_ns(pids[0])
    with pytest.raises(BenchError, match="has ended"):
        measuring.measure(Client, computing, 0.0, seconds=0.01, servers=lambda: pids)
    parts = [Done(1.0, 10, cpu_ns=20_000, operations=10), Done(1.0, 5, cpu_ns=10_000, operations=5)]
    assert combine(parts, 15_000).cpu_us == 3.0 and combine(parts).cpu_us is None


def test_every_process_has_a_session_of_its_own(measuring: MeasuringProcesses) -> None:
    with busy(2) as pids:
        ours = [measuring.call(index, os.getpid) for index in range(2)]
        assert [os.getsid(pid) for pid in [*pids, *ours]] == [*pids, *ours]


@pytest.mark.parametrize("name", ["inmem", "redis", "stratadb", "manager"])
def test_the_processes_of_a_store_are_known(scratch: Path, name: str) -> None:
    with running([name], scratch) as (subjects, skipped):
        if name in skipped:
            pytest.skip(skipped[name])
        pids = subjects[name].peer.pids()
        assert len(pids) == 1 and os.getpid() not in pids
        assert os.getsid(pids[0]) == pids[0] and cpu_ns(pids[0]) > 0


def where() -> str:
    """Where this process has inmem from, now."""
    return str(Path(sys.modules["inmem"].__file__ or "").parents[1])


def test_another_checkout_is_a_store_of_its_own(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout, here = scratch / "before", str(Path(inmem.__file__).parents[1])
    shutil.copytree(Path(inmem.__file__).parent, checkout / "inmem")
    monkeypatch.setenv(CHECKOUT, str(checkout))
    both = MeasuringProcesses(), MeasuringProcesses(adopt)
    try:
        with running(["inmem", "inmem before"], scratch, []) as (subjects, skipped):
            assert not skipped and subjects["inmem before"].is_before and not subjects["inmem"].is_before
            assert subjects["inmem before"].facts.endswith(f"of {checkout}")
            pids = [subject.peer.pids()[0] for subject in subjects.values()]
            places = here, str(checkout)
            for subject, processes_of, place in zip(subjects.values(), both, places, strict=True):
                found = processes_of.measure(
                    subject.connector, workloads.put, processes=2, seconds=0.05, servers=subject.peer.pids
                )
                assert found.rate > 0 and found.cpu_us
                assert processes_of.call(1, where) == place
                environment = Path(f"/proc/{subject.peer.pids()[0]}/environ").read_bytes()
                assert f"PYTHONPATH={place}".encode() in environment
            for processes_of in both:
                processes_of.close()
        assert all(map(ended, pids))
    finally:
        for processes_of in both:
            processes_of.close()
    with pytest.raises(SystemExit, match="there is no inmem in"):
        parsed(parser("bench", "").parse_args(["--before", str(scratch / "nowhere")]))


def gone(pid: int) -> bool:
    """Whether there is no such process, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


def test_busy_processes_compute_and_end_with_their_block() -> None:
    with pytest.raises(KeyError, match="on purpose"), busy(2) as pids:
        before = [cpu_ns(pid) for pid in pids]
        deadline = time.monotonic() + 20
        while not all(cpu_ns(pid) > was for pid, was in zip(pids, before, strict=True)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        raise KeyError("on purpose")
    assert all(map(gone, pids))


def test_busy_processes_end_with_a_starter_that_is_killed() -> None:
    program = "from bench.busy import busy\nwith busy(2) as pids: print(*pids, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        pids = [int(word) for word in starter.stdout.readline().split()]
        starter.kill()
        starter.wait()
    deadline = time.monotonic() + 20
    while not all(map(ended, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_round_measures_quiet_and_beside_busy_processes(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]

    @contextlib.contextmanager
    def counted(count: int) -> Iterator[list[int]]:
        assert now == [0], "one situation at a time"
        with busy(count) as pids:
            now[0] = len(pids)
            yield pids
            now[0] = 0

    monkeypatch.setattr(harness, "busy", counted)
    options = Options(rounds=2, seconds=0.01, quick=True, peers=(), seed=1, beside=(1, 2))
    made = Bench("made", "?", options, scratch, "inmem", {}, {})
    for operation in ("one", "two"):
        for count in options.situations:
            made.case(operation, "inmem", lambda: now[0] + 1.0, count)
    made.rounds()
    document = made.document()
    for operation in ("one", "two"):
        for count in (0, 1, 2):
            entry = document["operations"][beside(operation, count)]
            assert entry["busy"] == count and entry["operation"] == operation
            assert entry["subjects"]["inmem"]["per_second"]["rounds"] == [count + 1.0] * 2


def test_table_and_picture_show_each_situation(scratch: Path) -> None:
    def document() -> dict[str, Any]:
        options = Options(rounds=3, seconds=0.01, quick=True, peers=(), seed=1, beside=(2, 4))
        made = Bench("single", "?", options, scratch, "inmem", {}, {})
        for count in options.situations:
            for name, rate in (("inmem", 6.0), ("redis", 2.0 + count)):
                latency = {"p50": 5.0, "p95": 6.0, "p99": 7.0, "max": 8.0}
                found = Measurement(rate, [rate], latency, 9.0 / rate)
                made.case("kv put", name, functools.partial(copy.copy, found), count)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(harness, "busy", contextlib.nullcontext)
            made.rounds()
        found_out: dict[str, Any] = json.loads(json.dumps(made.document()))
        return found_out

    found = document()
    assert found["figures"]["kv put: x redis"]["median"] == 3.0
    assert found["figures"]["kv put, beside 4 busy: x redis"]["median"] == 1.0
    assert found["figures"]["kv put, beside 4 busy: p99 x redis"]["median"] == 1.0
    assert found["figures"]["kv put, beside 2 busy: cpu x redis"]["median"] == pytest.approx(4 / 6)
    assert report.measured_table(found).splitlines()[2:] == [
        "| kv put | quiet | inmem | 6 | 5 | 7 | 1.5 |  |  |",
        "|  |  | redis | 2 | 5 | 7 | 4.5 | 3 | 0.333 |",
        "| kv put | beside 2 busy | inmem | 6 | 5 | 7 | 1.5 |  |  |",
        "|  |  | redis | 4 | 5 | 7 | 2.25 | 1.5 | 0.667 |",
        "| kv put | beside 4 busy | inmem | 6 | 5 | 7 | 1.5 |  |  |",
        "|  |  | redis | 6 | 5 | 7 | 1.5 | 1 | 1 |",
    ]
    words = {v.target.figure: v.word for v in targets.judge({"single": found})}
    assert words["kv put, beside 4 busy: x redis"] == "17% below the aim"
    assert words["kv put, beside 4 busy: p99 x redis"] == "met"
    if importlib.util.find_spec("matplotlib") is None:
        return  # of the extra `bench`: there are no pictures without it
    (scratch / "single.json").write_text(json.dumps(found))
    subprocess.run(  # not in this process, where fonts would stay open
        [sys.executable, "-m", "bench.report", scratch / "single.json", "--output", scratch / "report"],
        check=True, stdout=subprocess.DEVNULL, cwd=Path(report.__file__).parents[1],
    )
    drawn = (scratch / "report" / "ratios.svg").read_text()
    assert all(f">{text}</text>" in drawn for text in ("quiet", "beside 2 busy", "beside 4 busy", "redis"))


# --- anatomy -----------------------------------------------------------------------------------------


def test_percentiles_and_fairness() -> None:
    assert percentiles([]) is None
    assert percentiles([n * 1000 for n in range(100)]) == {"p50": 50, "p95": 95, "p99": 99, "max": 99}
    assert combine([]).rate == 0 and combine([]).fairness == 0


def test_a_target_says_by_how_much_it_is_missed() -> None:
    document = {"figures": {"kv get: x redis": {"median": 16.0}, "kv put: p50 us": {"median": 50.0}}}
    words = {v.target.figure: v.word for v in targets.judge({"single": document})}
    assert words["kv get: x redis"] == "missed: 20% below the must"
    assert words["kv put: p50 us"] == "25% above the aim"
    assert words["event append: per second"] == "not measured"


def test_a_machine_too_slow_for_a_rate_is_told_by_the_probe() -> None:
    figures = {"kv put: per second": {"median": 5_000.0}, f"kv put: x {targets.ECHO}": {"median": 0.5}}
    words = {v.target.figure: v.word for v in targets.judge({"single": {"figures": figures}})}
    assert words["kv put: per second"] == (
        "missed: 50% below the must (0.5 x the futex echo of this machine)"
    )


def test_every_target_is_a_figure_that_a_benchmark_names() -> None:
    assert processes.label("kv put", 8) == "kv put, 8 processes"
    assert len({(t.document, t.figure) for t in targets.TARGETS}) == len(targets.TARGETS)
    assert all(t.must is not None or t.aim is not None for t in targets.TARGETS)


def test_workload_files_say_what_is_built_in(scratch: Path) -> None:
    for letter, mix in ycsb.MIXES.items():
        lines = [f"{name}proportion={share}" for name, share in mix.items() if isinstance(share, float)]
        lines += [f"requestdistribution={mix['distribution']}", f"maxscanlength={mix['longest']}", "# a=b"]
        (scratch / f"workload{letter.lower()}").write_text("\n".join(lines))
    assert ycsb.mixes(scratch) == ycsb.MIXES == ycsb.mixes(None)


def test_options() -> None:
    options = parsed(parser("bench", "").parse_args(["--quick", "--peers", "redis"]))
    assert options.situations == (0, 2)
    assert parsed(parser("bench", "").parse_args([])).situations == (0, 2, 4)
    assert parsed(parser("bench", "").parse_args(["--beside", "8,2,8"])).situations == (0, 2, 8)
    assert parsed(parser("bench", "").parse_args(["--beside", ""])).situations == (0,)
    with pytest.raises(SystemExit, match="above 0"):
        parsed(parser("bench", "").parse_args(["--beside", "0"]))
    assert options.peers == ("redis",) and options.rounds < 5 and options.size(10, 1) == 1
    assert parsed(parser("bench", "").parse_args([])).rounds >= 5
    with pytest.raises(SystemExit, match="no such peer"):
        parsed(parser("bench", "").parse_args(["--peers", "nobody"]))
