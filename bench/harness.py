"""How everything is measured: rounds in which inmem, its peers and the probes take turns.

Machines are shared and noisy, and what disturbs lasts for seconds. So all that
is compared runs within moments of each other: a round goes through the
operations in random order, and through all stores, in random order too, at
each. A ratio is taken within a round; reported are the median of the rounds,
the lowest and the highest.

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import workloads
from bench.measuring import BenchError, Measurement, MeasuringProcesses
from bench.peers import FAMILIES, Subject, Unsupported, running

LEAST_ROUNDS = 5
_SECONDS, _QUICK_SECONDS = 1.0, 0.1
_QUICK_ROUNDS = 2
_QUICK_PEERS = ("redis", "sqlite", "stratadb")  # those that targets name
_PACKAGES = (
    "lmdb", "msgpack", "pyzmq", "xxhash", "redis", "hiredis", "diskcache", "stratadb", "matplotlib"
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    rounds: int
    seconds: float
    quick: bool
    peers: tuple[str, ...]
    seed: int
    scratch: Path | None = None
    workloads: Path | None = None
    records: int = 0
    largest: int = 0

    def size(self, full: int, quick: int) -> int:
        """The one or the other."""
        return quick if self.quick else full


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
    return Options(
        rounds=found.rounds or (_QUICK_ROUNDS if found.quick else LEAST_ROUNDS),
        seconds=found.seconds or (_QUICK_SECONDS if found.quick else _SECONDS),
        quick=found.quick, peers=names, seed=found.seed, scratch=found.scratch,
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
        self._random = random.Random(options.seed)
        self._cases: dict[str, list[_Case]] = {}
        self._found: dict[str, dict[str, list[Measurement | float | None]]] = {}
        self._missing: dict[str, dict[str, str]] = {}
        self._figures: dict[str, list[float]] = {}
        self._notes: list[str] = []
        self._failures: list[str] = []
        self._began, self._load = time.time(), os.getloadavg()

    # --- what to do -------------------------------------------------------------------

    def load(self, count: int = workloads.KEYS) -> None:
        """Write the entries that are read later into every store."""
        for name in [*self.subjects]:
            self.prepare(name, workloads.load, count)

    def prepare(self, name: str, function: Callable[..., None], *arguments: Any) -> None:
        """Run `function(client, *arguments)` on one store; a peer that cannot is left out."""
        try:
            self.processes.with_client(0, self.subjects[name].connector, function, *arguments)
        except (BenchError, Unsupported) as error:
            if name == self.ours:
                raise
            say(f"{self.name}: {name} is left out: {error}")
            self.skipped[name] = f"does not work: {str(error).strip().splitlines()[-1]:.200}"
            del self.subjects[name]

    def case(self, operation: str, subject: str, measure: Callable[[], Measurement | float]) -> None:
        """Something to measure once in each round."""
        self._cases.setdefault(operation, []).append(_Case(subject, measure))

    def cases(
        self, operation: str, build: Callable[..., Any], *arguments: Any,
        subjects: Sequence[str] | None = None, processes: int = 1, sample: bool = False,
    ) -> None:
        """The same operation for several stores, all by default."""
        for name in self.subjects if subjects is None else subjects:
            if name in self.subjects:
                connector = self.subjects[name].connector
                self.case(operation, name, functools.partial(
                    self.processes.measure, connector, build, *arguments, processes=processes,
                    seconds=self.options.seconds, sample=sample,
                ))  # fmt: skip

    def rounds(self) -> None:
        """Measure all cases as often as is asked for."""
        for number in range(1, self.options.rounds + 1):
            operations = [*self._cases]
            self._random.shuffle(operations)
            for operation in operations:
                cases = [*self._cases[operation]]
                self._random.shuffle(cases)
                for case in cases:
                    self._measure(operation, case)
                self.say_round(number, f"{operation}: " + ", ".join(
                    f"{case.subject} {_told(self._found[operation][case.subject][-1])}"
                    for case in self._cases[operation]
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
        for operation, cases in self._cases.items():
            found = self._found.get(operation, {})
            subjects = {case.subject: found[case.subject] for case in cases if case.subject in found}
            ours = subjects.get(self.ours, [])
            told = operations[operation] = {"subjects": {}, "missing": self._missing.get(operation, {})}
            for subject, rounds in subjects.items():
                values = [value for value in rounds if value is not None]
                if not values:
                    continue
                entry: dict[str, Any] = {"per_second": summary([_rate(v) for v in values])}
                measured = [v for v in values if isinstance(v, Measurement)]
                if measured and len(measured[0].each) > 1:
                    entry["fairness"] = summary([m.fairness for m in measured])
                latencies = [m.latency_us for m in measured if m.latency_us is not None]
                if latencies:
                    entry["latency_us"] = {
                        name: summary([latency[name] for latency in latencies]) for name in latencies[0]
                    }
                ratios = [
                    _rate(a) / _rate(b) for a, b in zip(ours, rounds, strict=True)
                    if a is not None and b is not None and _rate(b)
                ] if ours and subject != self.ours else []  # fmt: skip
                if ratios:
                    entry["ours_to_this"] = summary(ratios)
                    figures[f"{operation}: x {subject}"] = entry["ours_to_this"]
                if subject == self.ours:
                    figures[f"{operation}: per second"] = entry["per_second"]
                    for name, latency in entry.get("latency_us", {}).items():
                        figures[f"{operation}: {name} us"] = latency
                    if "fairness" in entry:
                        figures[f"{operation}: slowest / mean"] = entry["fairness"]
                told["subjects"][subject] = entry
        return {
            "name": self.name, "question": self.question, "ours": self.ours, "quick": self.options.quick,
            "rounds": self.options.rounds, "seconds": self.options.seconds, "seed": self.options.seed,
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
                made.processes.close()
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
