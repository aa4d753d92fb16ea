"""What a stress tells at the end."""

from __future__ import annotations

from dataclasses import asdict

from workers.screen import Report, Table, listed, number, rate
from workers.stress.program import StressResult


def stress_report(result: StressResult) -> Report:
    """What was asked and answered, checks, verdict."""
    options, problems = result.options, result.problems()
    asked = sum(figures.asked for figures in result.figures.values())
    acknowledged = sum(figures.acknowledged for figures in result.figures.values())
    reruns = sum(told.reruns for told in result.told)
    verdict = f"OK: seed {options.seed}, {options.workers} workers, {asked:,} operations"
    if not result.ok:
        kept = f"; histories in {result.histories}" if result.histories else ""
        verdict = f"FAILED: {max(1, len(problems))} problems{kept}"
    rows = [
        (
            name, number(row.asked), number(row.acknowledged), number(row.mean_ms), number(row.p99_ms),
            listed(f"{count:,} {error}" for error, count in row.refused.items()),
        )
        for name, row in result.figures.items()
    ]  # fmt: skip
    return Report(
        result.ok,
        {
            "seed": options.seed, "workers": options.workers, "durability": result.durability,
            "work_s": round(result.work_s, 3), "asked": asked, "acknowledged": acknowledged,
            "asked_per_s": round(rate(asked, result.work_s), 1), "reruns": reruns,
            "operations": {
                name: asdict(row) | {"mean_ms": round(row.mean_ms, 3), "p99_ms": round(row.p99_ms, 3)}
                for name, row in result.figures.items()
            },
            "histories": result.histories or None,
        },
        shown=[
            Table(
                ("operation", "asked", "acked", "mean ms", "p99 ms", "refused"), rows,
                f"{options.workers} workers, {result.durability} store, {result.work_s:.1f} s",
            ),
            f"{asked:,} operations, {rate(asked, result.work_s):,.0f}/s; {acknowledged:,} acknowledged; "
            f"{reruns:,} reruns of transactions.",
        ],
        checks=result.checks, verify_s=result.verify_s, problems=problems,
        kept=f"Histories: {result.histories}" if result.histories else "", verdict=verdict,
    )  # fmt: skip
