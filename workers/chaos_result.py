"""What came of a chaos, and how it is told: figures, tables, JSON.

Invariant: every figure shown is taken from a result; nothing is computed here
but sums and percentiles.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workers.chaos_judge import ChaosVerdict
from workers.chaos_plan import Rates
from workers.report import checks_as_data, print_checks, print_problems, rate

# The quota: room that is filled and freed, and what the work leaves in a minute, measured and doubled.
ROOM_MIB: Final = 64
MIB_PER_MINUTE: Final = 20


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """How a chaos is run."""

    seed: int
    minutes: float = 10.0
    workers: int = 16
    durability: str = "buffered"
    rates: Rates = field(default_factory=Rates)
    quota_mib: int | None = None  # None: as much as the work of so many minutes needs, and room to fill
    rate: float = 40.0  # operations of each worker per second, at most
    disk_mib: int | None = None  # the data directory is on a file system of this size
    directory: str | None = None  # where all of it is put; None: the system's place for temporary files
    timeout_s: float = 60.0  # of one commit, recoveries included

    @property
    def seconds(self) -> float:
        return self.minutes * 60

    def quota(self) -> int:
        """The quota of the store, in MiB."""
        if self.quota_mib is not None:
            return self.quota_mib
        return ROOM_MIB + math.ceil(MIB_PER_MINUTE * self.minutes)

    def command(self) -> str:
        """What repeats this."""
        words: list[Any] = ["python", "-m", "workers.chaos", "--minutes", f"{self.minutes:g}"]
        words += ["--seed", self.seed, "--workers", self.workers, "--durability", self.durability]
        for name, value in asdict(self.rates).items():
            if value != getattr(Rates(), name) and (name != "fill_disk" or self.disk_mib is not None):
                words += [OPTION_OF[name], f"{value:g}"]
        if self.rate != ChaosOptions(0).rate:
            words += ["--rate", f"{self.rate:g}"]
        if self.quota_mib is not None:
            words += ["--quota-mib", self.quota_mib]
        if self.disk_mib is not None:
            words += ["--disk", "--disk-mib", self.disk_mib]
        if self.directory is not None:
            words += ["--directory", self.directory]
        return shlex.join(map(str, words))


OPTION_OF: Final = {
    "kill_writer": "--kills-per-minute",
    "stop_writer": "--stops-per-minute",
    "kill_worker": "--worker-kills-per-minute",
    "stop_worker": "--worker-stops-per-minute",
    "checkpoint": "--checkpoints-per-minute",
    "fill_memory": "--fills-per-minute",
    "fill_disk": "--disk-fills-per-minute",
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """One kill of the writer, until a commit was answered again."""

    seconds: float
    alone: bool  # nothing else was stopped, full or killed meanwhile


@dataclass(slots=True)
class ChaosResult:
    """What came of a chaos."""

    options: ChaosOptions
    done: dict[str, int] = field(default_factory=dict)  # disturbances, by kind
    left_out: int = 0  # that were planned, and for which there was no time
    notes: list[str] = field(default_factory=list)  # what could not be done, and why
    recoveries: list[Recovery] = field(default_factory=list)
    checkpoint_s: list[float] = field(default_factory=list)
    resumed_s: list[float] = field(default_factory=list)
    processes: int = 0
    image_bytes: int = 0
    wal_bytes: int = 0
    asked: int = 0
    reruns: int = 0
    work_s: float = 0.0
    verify_s: float = 0.0
    verdict: ChaosVerdict | None = None
    problems: list[str] = field(default_factory=list)
    kept: str = ""  # where journals and store are, if something is wrong

    @property
    def ok(self) -> bool:
        return not self.problems and self.verdict is not None and self.verdict.ok

    def all_problems(self) -> list[str]:
        checks = self.verdict.checks if self.verdict else []
        return [*self.problems, *(f"{check.name}: {check.summary()}" for check in checks if not check.ok)]


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share does not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def _recovery(recoveries: Sequence[Recovery]) -> dict[str, Any]:
    seconds = [one.seconds for one in recoveries]
    return {
        "count": len(seconds),
        "p50_s": _rounded(percentile(seconds, 0.5)),
        "p99_s": _rounded(percentile(seconds, 0.99)),
        "max_s": _rounded(percentile(seconds, 1.0)),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def chaos_as_data(result: ChaosResult) -> dict[str, Any]:
    """The result as plain data."""
    options, verdict = result.options, result.verdict
    tally = asdict(verdict.tally) if verdict else {}
    return {
        "ok": result.ok,
        "seed": options.seed,
        "command": options.command(),
        "workers": options.workers,
        "durability": options.durability,
        "work_s": round(result.work_s, 3),
        "verify_s": round(result.verify_s, 3),
        "disturbances": result.done,
        "left_out": result.left_out,
        "notes": result.notes,
        "kills": result.done.get("kill_writer", 0),
        "worker_processes": result.processes,
        "operations": result.asked,
        "operations_per_s": round(rate(result.asked, result.work_s), 1),
        "reruns": result.reruns,
        "image_bytes": result.image_bytes,
        "wal_bytes": result.wal_bytes,
        **tally,
        "recovery": _recovery(result.recoveries),
        "recovery_alone": _recovery([one for one in result.recoveries if one.alone]),
        "checkpoint_max_s": _rounded(percentile(result.checkpoint_s, 1.0)),
        "resumed_max_s": _rounded(percentile(result.resumed_s, 1.0)),
        "checks": checks_as_data(verdict.checks if verdict else ()),
        "problems": result.all_problems(),
        "kept": result.kept or None,
    }


def write_json(result: ChaosResult, file: Path) -> None:
    """The result as one JSON object."""
    file.write_text(json.dumps(chaos_as_data(result), indent=2) + "\n", encoding="utf-8")


_DONE: Final = {
    "kill_writer": "writer killed", "kill_next": "of these, while it started",
    "stop_writer": "writer stopped", "kill_worker": "worker killed and replaced",
    "stop_worker": "worker stopped",
    "checkpoint": "checkpoint begun", "fill_memory": "memory filled", "fill_disk": "disk filled",
}  # fmt: skip


def print_chaos(console: Console, result: ChaosResult) -> None:
    """The report: what was done, what came of it, how long recovery took, checks, verdict."""
    data = chaos_as_data(result)
    title = f"{data['workers']} workers, {data['durability']} store, {data['work_s']:.1f} s"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("disturbance")
    table.add_column("times", justify="right")
    for kind, text in _DONE.items():
        if kind in result.done:
            table.add_row(text, f"{result.done[kind]:,}")
    console.print(table)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("recovery")
    for heading in ("kills", "p50 s", "p99 s", "max s"):
        table.add_column(heading, justify="right")
    for name, text in (("recovery", "all"), ("recovery_alone", "with no other disturbance")):
        row = data[name]
        table.add_row(text, f"{row['count']:,}", *(_seconds(row[key]) for key in ("p50_s", "p99_s", "max_s")))
    console.print(table)
    if result.left_out:
        console.print(f"left out, for lack of time: {result.left_out}", highlight=False, style="yellow")
    for note in result.notes:
        console.print(note, highlight=False, markup=False, style="yellow")
    if result.verdict is not None:
        tally = result.verdict.tally
        console.print(
            f"{data['operations']:,} operations of {data['worker_processes']} processes "
            f"({data['operations_per_s']:,.0f}/s), {tally.acknowledged:,} acknowledged, {data['reruns']:,} "
            f"reruns, {tally.open} left open by killed workers; told that the store is full: {tally.full:,}.",
            highlight=False,
        )
        console.print(
            f"lost {tally.lost}, doubled {tally.doubled}, errors to workers {tally.errors}",
            highlight=False, style="bold",
        )  # fmt: skip
        print_checks(console, result.verdict.checks, result.verify_s)
    print_problems(console, data["problems"])
    if result.kept:
        console.print(f"Journals and store: {result.kept}", highlight=False, markup=False, soft_wrap=True)
    console.print(chaos_verdict(result), highlight=False, markup=False, style="bold", soft_wrap=True)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def chaos_verdict(result: ChaosResult) -> str:
    """One line, with what repeats it if it failed."""
    if not result.ok:
        return f"FAILED: {max(1, len(result.all_problems()))} problems; again: {result.options.command()}"
    kills = result.done.get("kill_writer", 0)
    return f"OK: seed {result.options.seed}, {kills:,} kills of the writer, {result.asked:,} operations"
