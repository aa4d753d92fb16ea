"""What a chaos tells at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from workers.chaos.result import ChaosResult, Recovery
from workers.screen import Report, Table, rate

_DONE: Final = {
    "kill_writer": "writer killed", "kill_next": "of these, while it started",
    "stop_writer": "writer stopped", "kill_worker": "worker killed and replaced",
    "stop_worker": "worker stopped",
    "checkpoint": "checkpoint begun", "fill_memory": "memory filled", "fill_disk": "disk filled",
}  # fmt: skip


def chaos_report(result: ChaosResult) -> Report:
    """What was done, what came of it, how long recovery took, checks, verdict."""
    options, tally, problems = result.options, result.tally, result.problems()
    per_s = rate(result.asked, result.work_s)
    recovery = {
        "recovery": _recovery(result.recoveries),
        "recovery_alone": _recovery([one for one in result.recoveries if one.alone]),
    }
    told = {"recovery": "all", "recovery_alone": "with no other disturbance"}
    shown: list[Table | str] = [
        Table(
            ("disturbance", "times"),
            [(text, f"{result.done[kind]:,}") for kind, text in _DONE.items() if kind in result.done],
            f"{options.workers} workers, {options.durability} store, {result.work_s:.1f} s",
        ),
        Table(
            ("recovery", "kills", "p50 s", "p99 s", "max s"),
            [(told[name], f"{row['count']:,}", *map(_seconds, [*row.values()][1:]))
             for name, row in recovery.items()],
        ),
    ]  # fmt: skip
    if tally is not None:
        shown += [
            f"{result.asked:,} operations of {result.processes} processes ({per_s:,.0f}/s), "
            f"{tally.acknowledged:,} acknowledged, {result.reruns:,} reruns, {tally.open} left open by "
            f"killed workers; told that the store is full: {tally.full:,}.",
            f"{tally.jobs:,} jobs done by {tally.claims:,} claims, {tally.leases:,} leases; refused as "
            f"too late: {tally.late:,}.",
            f"[bold]lost {tally.lost}, doubled {tally.doubled}, errors to workers {tally.errors}[/]",
        ]
    left_out = [f"left out, for lack of time: {result.left_out}"] if result.left_out else []
    kills = result.done.get("kill_writer", 0)
    return Report(
        result.ok,
        {
            "seed": options.seed, "command": options.command(), "workers": options.workers,
            "durability": options.durability, "work_s": round(result.work_s, 3),
            "disturbances": result.done, "left_out": result.left_out, "notes": result.notes, "kills": kills,
            "worker_processes": result.processes, "operations": result.asked,
            "operations_per_s": round(per_s, 1), "reruns": result.reruns,
            "image_bytes": result.image_bytes, "wal_bytes": result.wal_bytes,
            **(asdict(tally) if tally else {}), **recovery,
            "checkpoint_max_s": percentile(result.checkpoint_s, 1.0),
            "resumed_max_s": percentile(result.resumed_s, 1.0), "kept": result.kept or None,
        },
        shown=shown, warnings=left_out + result.notes,
        checks=result.checks, verify_s=result.verify_s, problems=problems,
        kept=f"Journals and store: {result.kept}" if result.kept else "",
        verdict=f"OK: seed {options.seed}, {kills:,} kills of the writer, {result.asked:,} operations"
        if result.ok else f"FAILED: {max(1, len(problems))} problems; again: {options.command()}",
    )  # fmt: skip


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share does not exceed, to 4 places; None of nothing."""
    if not values:
        return None
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 4)


def _recovery(recoveries: Sequence[Recovery]) -> dict[str, Any]:
    seconds = [one.seconds for one in recoveries]
    shares = {"p50_s": 0.5, "p99_s": 0.99, "max_s": 1.0}
    return {"count": len(seconds)} | {name: percentile(seconds, share) for name, share in shares.items()}


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
