"""What a person, or a program, is told at the end.

Invariant: every figure shown is taken from a result; nothing is computed here
but rates and sums. JSON goes out as one object on standard output.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from workers.account import AgentReport
from workers.checking import Check
from workers.fleet import FleetResult
from workers.replay import ReplayResult
from workers.stress import StressResult


def rate(count: int, seconds: float) -> float:
    """Per second; 0 if there was no time."""
    return count / seconds if seconds > 0 else 0.0


def fleet_as_data(result: FleetResult) -> dict[str, Any]:
    """The result of a fleet as plain data."""
    return {
        "ok": result.ok,
        "digest": result.verdict.digest if result.verdict else None,
        "seed": result.spec.seed,
        "workers": result.spec.workers,
        "steps": result.spec.steps,
        "fleet_id": result.runs.fleet_id,
        "durability": result.durability,
        "work_s": round(result.work_s, 3),
        "verify_s": round(result.verify_s, 3),
        "total": _figures(result.reports, result.work_s),
        "primitives": _primitives(result.reports),
        "agents": [
            {"agent": report.worker, **_figures([report], report.seconds)} for report in result.reports
        ],
        "checks": checks_as_data(result.verdict.checks if result.verdict else ()),
        "problems": result.problems(),
    }


def checks_as_data(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks as plain data."""
    return [
        {"name": check.name, "ok": check.ok, "compared": check.compared, "problems": check.problems}
        for check in checks
    ]


def _figures(reports: Sequence[AgentReport], seconds: float) -> dict[str, Any]:
    commits = sum(report.commits for report in reports)
    transactions = sum(report.transactions for report in reports)
    return {
        "seconds": round(seconds, 3),
        "steps": sum(report.steps for report in reports),
        "commits": commits,
        "commits_per_s": round(rate(commits, seconds), 1),
        "transactions": transactions,
        "reruns": sum(report.reruns for report in reports),
        "most_reruns": max((report.most_reruns for report in reports), default=0),
        "abandoned": sum(report.abandoned for report in reports),
        "events": sum(report.events for report in reports),
        "tool_calls": sum(report.tool_calls for report in reports),
        "tool_failures": sum(report.tool_failures for report in reports),
        "audits": sum(report.audits for report in reports),
    }


def _primitives(reports: Sequence[AgentReport]) -> dict[str, dict[str, int]]:
    def total(name: str) -> int:
        return sum(getattr(report, name) for report in reports)

    claimed = [len(numbers) for report in reports for numbers in report.tasks.values()]
    return {
        "kv": {"writes": total("entries")},
        "events": {"appended": total("events")},
        "cells": {
            "changes": total("cell_changes"), "tasks claimed": sum(claimed), "races lost": total("races_lost")
        },
        "traces": {"recorded": total("traces")},
        "runs": {
            "created": total("runs_created"), "status changes": total("status_changes"),
            "archived": total("runs_archived"), "deleted": total("runs_deleted"),
        },
    }


def print_primitives(console: Console, primitives: dict[str, dict[str, int]]) -> None:
    """One line for each primitive."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("primitive")
    table.add_column("acknowledged")
    for name, counts in primitives.items():
        table.add_row(name, ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    console.print(table)


# Ten columns that fit 80 characters.
_COLUMNS = (
    ("steps", "steps"),
    ("commits", "commits"),
    ("commits_per_s", "per s"),
    ("transactions", "txns"),
    ("reruns", "reruns"),
    ("events", "events"),
    ("tool_calls", "tools"),
    ("tool_failures", "failed"),
    ("seconds", "s"),
)


def print_fleet(console: Console, result: FleetResult) -> None:
    """The short report: rates, conflicts, checks, verdict."""
    data = fleet_as_data(result)
    title = f"{result.spec.workers} agents, {result.durability} store"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("agent", justify="right")
    for _, heading in _COLUMNS:
        table.add_column(heading, justify="right")
    for row in data["agents"]:
        table.add_row(str(row["agent"]), *(_number(row[key]) for key, _ in _COLUMNS))
    table.add_section()
    total = data["total"]
    table.add_row("all", *(_number(total[key]) for key, _ in _COLUMNS), style="bold")
    console.print(table)
    print_primitives(console, data["primitives"])
    runs = total["transactions"] + total["reruns"]
    share = 100 * rate(total["reruns"], runs)
    console.print(
        f"Conflicts: {total['reruns']:,} of {runs:,} attempts at a transaction ({share:.1f} %), each run "
        f"again, at most {total['most_reruns']} times in a row. Abandoned on purpose: "
        f"{total['abandoned']:,}. Snapshots audited: {total['audits']:,}.",
        highlight=False,
    )
    if result.verdict:
        print_checks(console, result.verdict.checks, result.verify_s)
    print_problems(console, data["problems"])
    console.print(fleet_verdict(result), highlight=False, markup=False, style="bold")


def fleet_verdict(result: FleetResult) -> str:
    """One line: the verdict, and the digest of what the seed determines."""
    if not result.ok or result.verdict is None:
        return f"FAILED: {max(1, len(result.problems()))} problems"
    spec = result.spec
    return (
        f"OK: seed {spec.seed}, {spec.workers} agents x {spec.steps} steps, "
        f"digest {result.verdict.digest[:16]}"
    )


def print_checks(console: Console, checks: Sequence[Check], seconds: float) -> None:
    """One line for each check."""
    title = f"Read back and compared in {seconds:.1f} s"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("check")
    table.add_column("verdict")
    table.add_column("detail")
    for check in checks:
        word = "[green]ok[/]" if check.ok else "[red]wrong[/]"
        table.add_row(check.name, word, escape(check.summary()))
    console.print(table)


def print_problems(console: Console, problems: Sequence[str]) -> None:
    """Each problem in full."""
    for text in problems:
        console.print(printable(text), style="red", markup=False, highlight=False)


def print_json(data: dict[str, Any]) -> None:
    """One JSON object, and nothing else, on standard output."""
    print(json.dumps(data, indent=2, sort_keys=False), flush=True)


def _number(value: float) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def replay_as_data(result: ReplayResult) -> dict[str, Any]:
    """The result of a replay as plain data."""
    inventory = result.inventory
    steps = sum(report.steps for report in result.reports)
    return {
        "ok": result.ok,
        "durability": result.durability,
        "files": inventory.files,
        "runs": len(inventory.items),
        "new": sum(report.new for report in result.reports),
        "continued": sum(report.continued for report in result.reports),
        "complete": sum(report.complete for report in result.reports),
        "duplicates": [printable(text) for text in inventory.duplicates],
        "rejected": [
            {"source": printable(one.source), "reason": printable(one.reason)} for one in inventory.rejected
        ],
        "notes": [printable(text) for text in inventory.notes],
        "steps": steps,
        "events": sum(report.events for report in result.reports),
        "reruns": sum(report.reruns for report in result.reports),
        "primitives": {
            "kv": {"writes": sum(report.entries for report in result.reports)},
            "events": {"appended": sum(report.events for report in result.reports)},
            "cells": {"changes": sum(report.cell_changes for report in result.reports)},
            "traces": {"recorded": sum(report.traces for report in result.reports)},
            "runs": _by_status(result),
        },
        "load_s": round(result.load_s, 3),
        "steps_per_s": round(rate(steps, max((report.seconds for report in result.reports), default=0)), 1),
        "verify_s": round(result.verify_s, 3),
        "checks": checks_as_data(result.checks),
        "problems": result.problems(),
    }


def _by_status(result: ReplayResult) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in result.inventory.items:
        counts[item.status] = counts.get(item.status, 0) + 1
    return dict(sorted(counts.items()))


def print_replay(console: Console, result: ReplayResult) -> None:
    """The short report: what was found, loaded, refused; checks, verdict."""
    data = replay_as_data(result)
    console.print(
        f"{data['files']} files: {data['runs']} runs, {len(data['duplicates'])} duplicates, "
        f"{len(data['rejected'])} rejected",
        highlight=False,
    )
    console.print(
        f"Loaded {data['new']} new and {data['continued']} half-done runs ({data['complete']} were "
        f"complete): {data['steps']:,} steps, {data['events']:,} events, {data['steps_per_s']:,.0f} "
        f"steps/s, {data['reruns']:,} reruns, {data['load_s']:.1f} s with the start of the processes",
        highlight=False,
    )
    print_primitives(console, data["primitives"])
    for text in (*data["duplicates"], *data["notes"]):
        console.print(text, highlight=False, markup=False, style="yellow")
    if result.checks:
        print_checks(console, result.checks, result.verify_s)
    print_problems(console, data["problems"])
    console.print(replay_verdict(result), highlight=False, markup=False, style="bold")


def replay_verdict(result: ReplayResult) -> str:
    """One line: the verdict."""
    rejected = len(result.inventory.rejected)
    if not result.ok:
        return f"FAILED: {len(result.problems())} problems, {rejected} rejected"
    return f"OK: {len(result.inventory.items)} runs equal their source, {rejected} rejected"


def stress_as_data(result: StressResult) -> dict[str, Any]:
    """The result of a stress as plain data."""
    options = result.options
    asked = sum(figures.asked for figures in result.figures.values())
    acknowledged = sum(figures.acknowledged for figures in result.figures.values())
    return {
        "ok": result.ok,
        "seed": options.seed,
        "workers": options.workers,
        "durability": result.durability,
        "work_s": round(result.work_s, 3),
        "verify_s": round(result.verify_s, 3),
        "asked": asked,
        "acknowledged": acknowledged,
        "asked_per_s": round(rate(asked, result.work_s), 1),
        "reruns": sum(told.reruns for told in result.told),
        "operations": {
            name: {
                "asked": figures.asked, "acknowledged": figures.acknowledged, "refused": figures.refused,
                "unknown": figures.unknown, "mean_ms": round(figures.mean_ms, 3),
                "p99_ms": round(figures.p99_ms, 3),
            }
            for name, figures in result.figures.items()
        },
        "checks": checks_as_data(result.checks),
        "problems": result.problems(),
        "histories": result.histories or None,
    }  # fmt: skip


def print_stress(console: Console, result: StressResult) -> None:
    """The short report: what was asked and answered, checks, verdict."""
    data = stress_as_data(result)
    title = f"{result.options.workers} workers, {result.durability} store, {result.work_s:.1f} s"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("operation")
    for heading in ("asked", "acked", "mean ms", "p99 ms"):
        table.add_column(heading, justify="right")
    table.add_column("refused")
    for name, row in data["operations"].items():
        refused = ", ".join(f"{count:,} {error}" for error, count in row["refused"].items())
        numbers = (row["asked"], row["acknowledged"], row["mean_ms"], row["p99_ms"])
        table.add_row(name, *map(_number, numbers), refused)
    console.print(table)
    console.print(
        f"{data['asked']:,} operations, {data['asked_per_s']:,.0f}/s; {data['acknowledged']:,} acknowledged; "
        f"{data['reruns']:,} reruns of transactions.",
        highlight=False,
    )
    if result.checks:
        print_checks(console, result.checks, result.verify_s)
    print_problems(console, data["problems"])
    if result.histories:
        console.print(f"Histories: {result.histories}", highlight=False, markup=False)
    console.print(stress_verdict(result), highlight=False, markup=False, style="bold")


def stress_verdict(result: StressResult) -> str:
    """One line: the verdict."""
    if not result.ok:
        kept = f"; histories in {result.histories}" if result.histories else ""
        return f"FAILED: {max(1, len(result.problems()))} problems{kept}"
    asked = sum(figures.asked for figures in result.figures.values())
    return f"OK: seed {result.options.seed}, {result.options.workers} workers, {asked:,} operations"


def printable(text: str) -> str:
    """Text that any stream can take: file names and data may hold lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()
