"""The benchmark suite measures what it says: its quick form is complete, and no failure looks fast.

Nothing here asks for a speed; see test_figures for bounds beside a probe.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import processes, report, single, targets, workloads, ycsb
from bench.harness import main, parsed, parser
from bench.measuring import BenchError, MeasuringProcesses, combine, percentiles
from bench.peers import Client, Unsupported

OPERATIONS = {
    single.GET, single.PUT, single.PUT_MANY, single.APPEND, single.CAS, single.TRACE, single.STEP,
    single.MODIFY,
}  # fmt: skip


@pytest.mark.timeout(60)
def test_the_quick_form_runs_and_tells_everything(scratch: Path) -> None:
    file = scratch / "single.json"
    arguments = ["--quick", "--rounds", "1", "--seconds", "0.1", "--peers", "", "--scratch", str(scratch)]
    assert main("single", "", single.run, [*arguments, "--json", str(file)]) == 0
    document = json.loads(file.read_text())

    assert set(document["operations"]) == OPERATIONS
    assert document["subjects"]["inmem"]["durability"].startswith("buffered")
    assert set(document["skipped"]) == set(single.SUBJECTS) - {"inmem"}
    assert document["machine"]["cores"] >= 1 and document["machine"]["packages"]["lmdb"]
    rates = {}
    for operation, found in document["operations"].items():
        assert not found["missing"], found["missing"]
        rate = found["subjects"]["inmem"]["per_second"]
        assert len(rate["rounds"]) == 1 and 0 < rate["min"] <= rate["median"] <= rate["max"]
        rates[operation] = rate["median"]
        probes = [entry for name, entry in found["subjects"].items() if name.startswith("probe: ")]
        assert probes and all(entry["ours_to_this"]["median"] > 0 for entry in probes)
    latency = document["operations"][single.PUT]["subjects"]["inmem"]["latency_us"]
    assert latency["p50"]["median"] <= latency["p95"]["median"] <= latency["p99"]["median"]
    # A read sends no message, and a hundred entries share one.
    assert rates[single.GET] > rates[single.PUT] and rates[single.PUT_MANY] > rates[single.PUT]

    verdicts = {v.target.figure: v.word for v in targets.judge({"single": document})}
    asked = {t.figure for t in targets.TARGETS if t.document == "single" and "redis" not in t.figure}
    assert {figure for figure in asked if verdicts[figure] == "not measured"} <= {
        figure for figure in asked if "stratadb" in figure
    }
    report.write({"single": document}, scratch / "report", scratch / "kept")
    assert "kv get" in (scratch / "kept" / "results.md").read_text()
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


# --- arithmetic --------------------------------------------------------------------------------------


def test_percentiles_and_fairness() -> None:
    assert percentiles([]) is None
    assert percentiles([n * 1000 for n in range(100)]) == {"p50": 50, "p95": 95, "p99": 99, "max": 99}
    assert combine([]).rate == 0 and combine([]).fairness == 0


def test_a_target_says_by_how_much_it_is_missed() -> None:
    document = {"figures": {"kv get: x redis": {"median": 12.0}, "kv put: p50 us": {"median": 50.0}}}
    words = {v.target.figure: v.word for v in targets.judge({"single": document})}
    assert words["kv get: x redis"] == "missed: 20% below the must"
    assert words["kv put: p50 us"] == "25% above the aim"
    assert words["event append: per second"] == "not measured"


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
    assert options.peers == ("redis",) and options.rounds < 5 and options.size(10, 1) == 1
    assert parsed(parser("bench", "").parse_args([])).rounds >= 5
    with pytest.raises(SystemExit, match="no such peer"):
        parsed(parser("bench", "").parse_args(["--peers", "nobody"]))
