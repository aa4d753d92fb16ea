"""How everything is measured: rounds in which inmem, its peers and the probes take turns.

Machines are shared and noisy, and what disturbs lasts for seconds. So all that
is compared runs within moments of each other: a round goes through the
situations in random order: quiet, and beside processes that compute without
end. In each it goes through the operations in random order, and through all
stores, in random order too, at each. A ratio is taken within a round; reported
are the median of the rounds, the lowest and the highest.

pyperf is not used. It repeats one function in processes of its own, one
benchmark after the other; here one figure comes from many processes at once,
and the comparison is between neighbours in time.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import workloads
from bench.busy import busy
from bench.measuring import BenchError, Measurement, MeasuringProcesses
from bench.peers import CHECKOUT, FAMILIES, Subject, Unsupported, running
from bench.peers.before import adopt

LEAST_ROUNDS = 5
_SECONDS, _QUICK_SECONDS = 1.0, 0.03
_QUICK_ROUNDS = 2
_QUICK_PEERS = ("redis", "sqlite", "stratadb", "huey")  # those that targets name
_BESIDE, _QUICK_BESIDE = (2, 4), (2,)
_PACKAGES = (
    "lmdb", "msgpack", "pyzmq", "xxhash", "redis", "hiredis", "huey", "diskcache", "stratadb", "matplotlib",
    "langgraph-checkpoint",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int
    seconds: float
    quick: bool
    peers: tuple[str, ...]
    seed: int
    beside: tuple[int, ...] = ()
    scratch: Path | None = None
    workloads: Path | None = None
    records: int = 0
    largest: int = 0

    def size(self, full: int, quick: int) -> int:
        """The one or the other."""
        return quick if self.quick else full

    @property
    def situations(self) -> tuple[int, ...]:
        """How many busy processes there are beside: none, then each number that is asked for."""
        return (0, *self.beside)


def _listed(numbers: Sequence[int]) -> str:
    return ",".join(map(str, numbers))


def parser(program: str, description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    made = argparse.ArgumentParser(prog=program, description=description)
    made.add_argument("--quick", action="store_true", help="few short rounds: does it all work?")
    made.add_argument("--rounds", type=int, help=f"default {LEAST_ROUNDS}, quick {_QUICK_ROUNDS}")
    made.add_argument("--seconds", type=float, help="of one measurement")
    made.add_argument(
        "--peers",
        help=f"of {','.join(FAMILIES)}; '' for none (default: all, quick: {','.join(_QUICK_PEERS)})",
    )
    made.add_argument(
        "--beside",
        help="numbers of busy processes, beside which writes are measured too; '' for quiet alone "
        f"(default: {_listed(_BESIDE)}, quick: {_listed(_QUICK_BESIDE)})",
    )
    made.add_argument(
        "--before", type=Path, metavar="CHECKOUT",
        help="another checkout of inmem, measured beside this one as a store of its own",
    )
    made.add_argument("--seed", type=int, default=1, help="of the order of measurements")
    made.add_argument("--scratch", type=Path, help="where stores go: a disk, for fdatasync to mean something")
    made.add_argument("--workloads", type=Path, help="YCSB workload files; built in otherwise")
    made.add_argument("--records", type=int, default=0, help="YCSB records")
    made.add_argument("--largest", type=int, default=0, help="largest power of ten of keys in growth")
    return made


def parsed(found: argparse.Namespace) -> Options:
    """The options as the benchmarks want them."""
    if found.peers is None:
        names: tuple[str, ...] = _QUICK_PEERS if found.quick else FAMILIES
    else:
        names = tuple(name for name in found.peers.split(",") if name)
    if unknown := set(names) - set(FAMILIES):
        raise SystemExit(f"no such peer: {', '.join(sorted(unknown))}")
    if found.beside is None:
        beside: tuple[int, ...] = _QUICK_BESIDE if found.quick else _BESIDE
    else:
        beside = tuple(sorted({int(number) for number in found.beside.split(",") if number}))
        if beside and beside[0] < 1:
            raise SystemExit("--beside takes numbers above 0: quiet is always measured")
    if found.before is not None:
        checkout = found.before.resolve()
        if not (checkout / "inmem").is_dir():
            raise SystemExit(f"--before: there is no inmem in {checkout}")
        os.environ[CHECKOUT] = str(checkout)  # which all processes that are started from here on inherit
    return Options(
        rounds=found.rounds or (_QUICK_ROUNDS if found.quick else LEAST_ROUNDS),
        seconds=found.seconds or (_QUICK_SECONDS if found.quick else _SECONDS),
        quick=found.quick, peers=names, seed=found.seed, beside=beside, scratch=found.scratch,
        workloads=found.workloads, records=found.records, largest=found.largest,
    )


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


# --- results --------------------------------------------------------------------------------------


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest, highest, and all of them."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": [*values]}


def machine() -> dict[str, Any]:
    """What figures depend on, and can be read off without asking anybody."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            packages[name] = importlib.metadata.version(name)
    return {
        "processor": model, "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(), "python": platform.python_version(), "packages": packages,
    }


def beside(operation: str, count: int) -> str:
    """The name of an operation that is measured beside so many busy processes."""
    return f"{operation}, beside {count} busy" if count else operation


@dataclass
class _Operation:
    """What is compared: one operation, of several stores, in one situation."""

    name: str
    busy: int
    cases: list[_Case] = field(default_factory=list)


@dataclass
class _Case:
    subject: str
    measure: Callable[[], Measurement | float]


class Bench:
    """One benchmark: its stores, its processes, its cases, and what came of them."""

    def __init__(
        self, name: str, question: str, options: Options, scratch: Path, ours: str,
        subjects: dict[str, Subject], skipped: dict[str, str],
    ) -> None:
        self.name, self.question, self.ours = name, question, ours
        self.options, self.scratch = options, scratch
        self.subjects, self.skipped = subjects, skipped
        self.processes = MeasuringProcesses()
        self._before = MeasuringProcesses(adopt)
        self._random = random.Random(options.seed)
        self._operations: dict[str, _Operation] = {}
        self._found: dict[str, dict[str, list[Measurement | float | None]]] = {}
        self._missing: dict[str, dict[str, str]] = {}
        self._figures: dict[str, list[float]] = {}
        self._notes: list[str] = []
        self._failures: list[str] = []
        self._began, self._load = time.time(), os.getloadavg()

    def close(self) -> None:
        """End the processes."""
        self.processes.close()
        self._before.close()

    # --- what to do -------------------------------------------------------------------

    def of(self, subject: Subject) -> MeasuringProcesses:
        """The processes that can measure a store."""
        return self._before if subject.is_before else self.processes

    def load(self, count: int = workloads.KEYS) -> None:
        """Write the entries that are read later into every store."""
        for name in [*self.subjects]:
            self.prepare(name, workloads.load, count)

    def prepare(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function(client, *arguments)` on one store; a peer that cannot is left out."""
        try:
            subject = self.subjects[name]
            self.of(subject).with_client(0, subject.connector, function, *arguments)
        except (BenchError, Unsupported) as error:
            if name == self.ours:
                raise
            say(f"{self.name}: {name} is left out: {error}")
            self.skipped[name] = f"does not work: {str(error).strip().splitlines()[-1]:.200}"
            del self.subjects[name]

    def case(
        self, operation: str, subject: str, measure: Callable[[], Measurement | float], busy: int = 0
    ) -> None:
        """Something to measure once in each round, beside so many busy processes."""
        name = beside(operation, busy)
        self._operations.setdefault(name, _Operation(operation, busy)).cases.append(_Case(subject, measure))

    def cases(
        self, operation: str, build: Callable[..., Any], *arguments: Any,
        subjects: Sequence[str] | None = None, processes: int = 1, sample: bool = False,
        situations: Sequence[int] = (0,),
    ) -> None:
        """The same operation for several stores, all by default, in each of the situations."""
        for count in situations:
            for name in self.subjects if subjects is None else subjects:
                if name in self.subjects:
                    subject = self.subjects[name]
                    self.case(operation, name, functools.partial(
                        self.of(subject).measure, subject.connector, build, *arguments, processes=processes,
                        seconds=self.options.seconds, sample=sample, servers=subject.peer.pids,
                    ), count)  # fmt: skip

    def rounds(self) -> None:
        """Measure all cases as often as is asked for."""
        for number in range(1, self.options.rounds + 1):
            situations = sorted({operation.busy for operation in self._operations.values()})
            self._random.shuffle(situations)
            for count in situations:
                names = [name for name, operation in self._operations.items() if operation.busy == count]
                self._random.shuffle(names)
                with busy(count):
                    for name in names:
                        self._measure_all(number, name)

    def _measure_all(self, number: int, operation: str) -> None:
        """One operation of all stores."""
        cases = self._operations[operation].cases
        for case in self._random.sample(cases, len(cases)):
            self._measure(operation, case)
        self.say_round(number, f"{operation}: " + ", ".join(
            f"{case.subject} {_told(self._found[operation][case.subject][-1])}" for case in cases
        ))  # fmt: skip

    def _measure(self, operation: str, case: _Case) -> None:
        missing = self._missing.setdefault(operation, {})
        rounds = self._found.setdefault(operation, {}).setdefault(case.subject, [])
        if case.subject in missing:
            rounds.append(None)
            return
        try:
            rounds.append(case.measure())
        except Unsupported as error:
            missing[case.subject] = str(error)
            rounds.append(None)
        except BenchError as error:
            missing[case.subject] = f"failed: {str(error).strip().splitlines()[-1]:.200}"
            rounds.append(None)
            say(f"{self.name}: {operation}, {case.subject} failed:\n{error}")
            if case.subject == self.ours:
                self._failures.append(f"{operation}: {error}")

    def say_round(self, number: int, text: str) -> None:
        """A line of progress about a round."""
        say(f"{self.name}: round {number}/{self.options.rounds}  {text}")

    def figure(self, name: str, *values: float) -> None:
        """A figure that is no rate of a case; more values of one name are its rounds."""
        self._figures.setdefault(name, []).extend(values)

    def note(self, text: str) -> None:
        """A sentence for the report."""
        self._notes.append(text)

    def fail(self, text: str) -> None:
        """Something of inmem is wrong: the run ends with an error, after the report."""
        say(f"{self.name}: WRONG: {text}")
        self._failures.append(text)

    def found(self, operation: str, subject: str | None = None) -> list[Any]:
        """The measurements of one case, by round; None where it did not work."""
        return self._found.get(operation, {}).get(subject or self.ours, [])

    def compare(self, name: str, operation: str, to: str, subject: str | None = None) -> None:
        """A figure: the rate of an operation, of inmem by default, as a part of another's, round by round."""
        pairs = zip(self.found(operation, subject), self.found(to, subject), strict=True)
        self.figure(name, *(_rate(a) / _rate(b) for a, b in pairs if a is not None and b is not None))

    # --- what came of it ----------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """Everything, for JSON."""
        operations: dict[str, Any] = {}
        figures = {name: summary(values) for name, values in self._figures.items() if values}
        for operation, what in self._operations.items():
            found = self._found.get(operation, {})
            subjects = {case.subject: found[case.subject] for case in what.cases if case.subject in found}
            ours = subjects.get(self.ours, [])
            told = operations[operation] = {
                "operation": what.name, "busy": what.busy, "subjects": {},
                "missing": self._missing.get(operation, {}),
            }  # fmt: skip
            for subject, rounds in subjects.items():
                entry = _entry(rounds)
                if entry is None:
                    continue
                told["subjects"][subject] = entry
                if subject == self.ours:
                    figures |= _named(operation, entry)
                elif ours:
                    for name, ratios in _ratios(ours, rounds).items():
                        entry[f"{name}ours_to_this"] = figures[f"{operation}: {name}x {subject}"] = ratios
        return {
            "name": self.name, "question": self.question, "ours": self.ours, "quick": self.options.quick,
            "rounds": self.options.rounds, "seconds": self.options.seconds,
            "beside": [*self.options.beside], "seed": self.options.seed,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "took_s": round(time.time() - self._began, 1),
            "load_average": {"before": self._load, "after": os.getloadavg()}, "machine": machine(),
            "subjects": {
                name: {"durability": s.durability, "facts": s.facts} for name, s in self.subjects.items()
            },
            "skipped": self.skipped, "operations": operations, "figures": figures,
            "derived": [*self._figures], "notes": self._notes,
            "failures": self._failures,
        }


def _rate(found: Measurement | float) -> float:
    return found.rate if isinstance(found, Measurement) else found


def _costs(found: Measurement) -> dict[str, float | None]:
    """What is measured beside the rate; None where it was not."""
    latency = found.latency_us or {}
    return {"p50": latency.get("p50"), "p99": latency.get("p99"), "cpu": found.cpu_us}


def _entry(rounds: Sequence[Measurement | float | None]) -> dict[str, Any] | None:
    """What came of one store's rounds."""
    values = [value for value in rounds if value is not None]
    if not values:
        return None
    entry: dict[str, Any] = {"per_second": summary([_rate(value) for value in values])}
    measured = [value for value in values if isinstance(value, Measurement)]
    if measured and len(measured[0].each) > 1:
        entry["fairness"] = summary([found.fairness for found in measured])
    latencies = [found.latency_us for found in measured if found.latency_us is not None]
    if latencies:
        entry["latency_us"] = {
            name: summary([latency[name] for latency in latencies]) for name in latencies[0]
        }
    costs = [found.cpu_us for found in measured if found.cpu_us is not None]
    if costs:
        entry["cpu_us"] = summary(costs)
    return entry


def _named(operation: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What inmem's entry has, by the names that targets use."""
    named = {f"{operation}: per second": entry["per_second"]}
    for name, latency in entry.get("latency_us", {}).items():
        named[f"{operation}: {name} us"] = latency
    if "fairness" in entry:
        named[f"{operation}: slowest / mean"] = entry["fairness"]
    if "cpu_us" in entry:
        named[f"{operation}: cpu us"] = entry["cpu_us"]
    return named


def _ratios(
    ours: Sequence[Measurement | float | None], theirs: Sequence[Measurement | float | None]
) -> dict[str, Any]:
    """inmem's figures divided by another's, round by round: "" is the rate, others by their names."""
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    found = {"": [_rate(a) / _rate(b) for a, b in pairs if _rate(b)]}
    for a, b in pairs:
        if isinstance(a, Measurement) and isinstance(b, Measurement):
            other = _costs(b)
            for name, cost in _costs(a).items():
                divisor = other[name]
                if cost is not None and divisor:
                    found.setdefault(f"{name} ", []).append(cost / divisor)
    return {name: summary(values) for name, values in found.items() if values}


def _told(found: Measurement | float | None) -> str:
    return "-" if found is None else f"{_rate(found):,.0f}/s"


@contextlib.contextmanager
def bench(
    name: str, question: str, options: Options, subjects: Sequence[str], ours: str = "inmem"
) -> Iterator[Bench]:
    """Stores that run, processes that wait, a directory: nothing of them is left when the block ends."""
    before = signal.signal(signal.SIGTERM, _leave)  # so that a polite kill leaves nothing behind either
    scratch = Path(tempfile.mkdtemp(prefix="inmem-bench-", dir=options.scratch))
    say(f"{name}: {question}")
    try:
        with running(subjects, scratch, options.peers) as (started, skipped):
            for subject, why in skipped.items():
                say(f"{name}: without {subject}: {why}")
            made = Bench(name, question, options, scratch, ours, started, skipped)
            try:
                yield made
            finally:
                made.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)


def _leave(*_: object) -> None:
    raise SystemExit(143)


def main(name: str, description: str, run: Callable[[Options], dict[str, Any]],
         arguments: Sequence[str] | None = None) -> int:
    """`python -m bench.<name>`: measure, print the table, write JSON if asked to."""
    from bench import report  # which reads documents and knows nothing of how they come about

    made = parser(f"python -m bench.{name}", description)
    made.add_argument("--json", type=Path, help="write the results there")
    found = made.parse_args(arguments)
    document = run(parsed(found))
    print(report.document_table(document))
    if found.json is not None:
        found.json.parent.mkdir(parents=True, exist_ok=True)
        found.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if document["failures"] else 0
