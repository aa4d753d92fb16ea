"""What a fleet, and a replay, tell at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from workers.fleet.loading import LoadReport
from workers.fleet.program import FleetResult
from workers.fleet.replay import ReplayResult
from workers.fleet.reports import AgentReport
from workers.screen import Report, Table, number, primitives, printable, rate

# Column of the table of agents: key of the data, heading. They fit 80 characters.
_COLUMNS = (
    ("agent", "agent"), ("steps", "steps"), ("commits", "commits"), ("commits_per_s", "per s"),
    ("transactions", "txns"), ("reruns", "reruns"), ("events", "events"), ("tool_calls", "tools"),
    ("tool_failures", "failed"), ("seconds", "s"),
)  # fmt: skip
_SUMMED = (
    "steps", "commits", "transactions", "reruns", "abandoned", "events", "tool_calls", "tool_failures",
    "audits",
)  # fmt: skip


def fleet_report(result: FleetResult) -> Report:
    """Rates, conflicts, checks, verdict."""
    spec = result.spec
    total = _figures(result.reports, result.work_s)
    agents = [{"agent": one.worker, **_figures([one], one.seconds)} for one in result.reports]
    done = _primitives(result.reports)
    problems = result.problems()
    verdict = f"FAILED: {max(1, len(problems))} problems"
    if result.ok and result.digest is not None:
        what = f"{spec.workers} agents x {spec.steps} steps"
        verdict = f"OK: seed {spec.seed}, {what}, digest {result.digest[:16]}"
    runs = total["transactions"] + total["reruns"]
    share = 100 * rate(total["reruns"], runs)
    return Report(
        result.ok,
        {
            "digest": result.digest, "seed": spec.seed, "workers": spec.workers, "steps": spec.steps,
            "fleet_id": result.runs.fleet_id, "durability": result.durability,
            "work_s": round(result.work_s, 3), "total": total, "primitives": done, "agents": agents,
        },
        shown=[
            Table(
                [heading for _, heading in _COLUMNS],
                [[number(row[key]) for key, _ in _COLUMNS] for row in agents],
                f"{spec.workers} agents, {result.durability} store",
                ["all", *(number(total[key]) for key, _ in _COLUMNS[1:])],
            ),
            primitives(done),
            f"Conflicts: {total['reruns']:,} of {runs:,} attempts at a transaction ({share:.1f} %), each run "
            f"again, at most {total['most_reruns']} times in a row. Abandoned on purpose: "
            f"{total['abandoned']:,}. Snapshots audited: {total['audits']:,}.",
        ],
        checks=result.checks, verify_s=result.verify_s, problems=problems, verdict=verdict,
    )  # fmt: skip


def _sums(reports: Sequence[AgentReport | LoadReport]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for report in reports:
        sums.update(report.counts)
    return sums


def _figures(reports: Sequence[AgentReport], seconds: float) -> dict[str, Any]:
    sums = _sums(reports)
    return {"seconds": round(seconds, 3)} | {name: sums[name] for name in _SUMMED} | {
        "commits_per_s": round(rate(sums["commits"], seconds), 1),
        "most_reruns": max((report.most_reruns for report in reports), default=0),
    }  # fmt: skip


def _primitives(reports: Sequence[AgentReport]) -> dict[str, dict[str, int]]:
    sums = _sums(reports)
    claimed = sum(len(numbers) for report in reports for numbers in report.tasks.values())
    return {
        "kv": {"writes": sums["entries"]},
        "events": {"appended": sums["events"]},
        "cells": {
            "changes": sums["cell_changes"], "tasks claimed": claimed, "races lost": sums["races_lost"],
        },
        "traces": {"recorded": sums["traces"]},
        "runs": {
            "created": sums["runs_created"], "status changes": sums["status_changes"],
            "archived": sums["runs_archived"], "deleted": sums["runs_deleted"],
        },
    }  # fmt: skip


def replay_report(result: ReplayResult) -> Report:
    """What was found, loaded, refused; checks, verdict."""
    inventory, problems = result.inventory, result.problems()
    sums = _sums(result.reports)
    done = {
        "kv": {"writes": sums["entries"]},
        "events": {"appended": sums["events"]},
        "cells": {"changes": sums["cell_changes"]},
        "traces": {"recorded": sums["traces"]},
        "runs": dict(sorted(Counter(item.status for item in inventory.items).items())),
    }
    duplicates, notes = ([printable(one) for one in some] for some in (inventory.duplicates, inventory.notes))
    rejected = len(inventory.rejected)
    per_s = rate(sums["steps"], max((report.seconds for report in result.reports), default=0))
    return Report(
        result.ok,
        {
            "durability": result.durability, "files": inventory.files, "runs": len(inventory.items),
            **{name: sums[name] for name in ("new", "continued", "complete", "steps", "events", "reruns")},
            "duplicates": duplicates,
            "rejected": [
                {"source": printable(one.source), "reason": printable(one.reason)}
                for one in inventory.rejected
            ],
            "notes": notes, "primitives": done, "load_s": round(result.load_s, 3),
            "steps_per_s": round(per_s, 1),
        },
        shown=[
            f"{inventory.files} files: {len(inventory.items)} runs, {len(duplicates)} duplicates, "
            f"{rejected} rejected",
            f"Loaded {sums['new']} new and {sums['continued']} half-done runs ({sums['complete']} were "
            f"complete): {sums['steps']:,} steps, {sums['events']:,} events, {per_s:,.0f} steps/s, "
            f"{sums['reruns']:,} reruns, {result.load_s:.1f} s with the start of the processes",
            primitives(done),
        ],
        warnings=[*duplicates, *notes],
        checks=result.checks, verify_s=result.verify_s, problems=problems,
        verdict=f"OK: {len(inventory.items)} runs equal their source, {rejected} rejected" if result.ok
        else f"FAILED: {len(problems)} problems, {rejected} rejected",
    )  # fmt: skip
