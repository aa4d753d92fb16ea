"""What a person, or a program, is told: progress while processes work, and a report at the end.

A report's figures are those of its data, which is what `--json` prints.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich import table as rich_table
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from workers.judge.checks import Check
from workers.observer import Observer

MAX_BARS: Final = 16  # more workers than this get one bar together
PLAIN_INTERVAL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Table:
    """Cells as text; a column of figures is aligned to the right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str | None = None
    sums: Sequence[str] = ()  # a last row


@dataclass(slots=True)
class Report:
    """What came of a program."""

    ok: bool
    data: dict[str, Any]  # for JSON
    shown: list[Table | str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    checks: Sequence[Check] = ()
    verify_s: float = 0.0
    problems: Sequence[str] = ()
    kept: str = ""  # a line that says where something was kept
    verdict: str = ""

    def __post_init__(self) -> None:
        self.data = {"ok": self.ok} | self.data | {
            "verify_s": round(self.verify_s, 3),
            "checks": [
                {"name": check.name, "ok": check.ok, "compared": check.compared, "problems": check.problems}
                for check in self.checks
            ],
            "problems": [printable(text) for text in self.problems],
        }  # fmt: skip

    def tell(self, *, as_json: bool, quiet: bool) -> None:
        """On standard output; with `quiet` the verdict alone, and the problems on standard error."""
        if as_json:
            print(json.dumps(self.data, indent=2), flush=True)
        elif quiet:
            print_problems(self.problems)
            print(printable(self.verdict), flush=True)
        else:
            self._show(Console(highlight=False))

    def _show(self, console: Console) -> None:
        for part in self.shown:
            console.print(part if isinstance(part, str) else _drawn(part))
        for text in self.warnings:
            console.print(printable(text), markup=False, style="yellow")
        if self.checks:
            title = f"Read back and compared in {self.verify_s:.1f} s"
            rows = [
                (check.name, "[green]ok[/]" if check.ok else "[red]wrong[/]", escape(check.summary()))
                for check in self.checks
            ]
            console.print(_drawn(Table(("check", "verdict", "detail"), rows, title)))
        print_problems(self.problems, console)
        if self.kept:
            console.print(self.kept, markup=False, soft_wrap=True)
        console.print(printable(self.verdict), markup=False, style="bold", soft_wrap=True)


def _drawn(table: Table) -> rich_table.Table:
    drawn = rich_table.Table(title=table.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(table.headings):
        first = table.rows[0][number] if table.rows else ""
        figures = first and not any(map(str.isalpha, first))
        drawn.add_column(heading, justify="right" if figures else "left")
    for row in table.rows:
        drawn.add_row(*row)
    if table.sums:
        drawn.add_section()
        drawn.add_row(*table.sums, style="bold")
    return drawn


def primitives(counts: dict[str, dict[str, int]]) -> Table:
    """One line for each primitive."""
    rows = [(name, listed(f"{n:,} {what}" for what, n in found.items())) for name, found in counts.items()]
    return Table(("primitive", "acknowledged"), rows)


def rate(count: int, seconds: float) -> float:
    """Per second; 0 if there was no time."""
    return count / seconds if seconds > 0 else 0.0


def number(value: float) -> str:
    """A figure of a table."""
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def listed(parts: Iterable[str]) -> str:
    """Parts in one line."""
    return ", ".join(parts)


def printable(text: str) -> str:
    """Text that any stream can take: file names and data may hold lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode()


def print_problems(problems: Iterable[str], console: Console | None = None) -> None:
    """Each problem in full, on standard error unless a console is given."""
    console = console or Console(stderr=True, soft_wrap=True)
    for text in problems:
        console.print(printable(text), style="red", markup=False, highlight=False)


class Screen(Observer):
    """Shows progress: bars or figures on a terminal, a line now and then elsewhere."""

    def __init__(self, show: bool) -> None:
        self._show = show
        self._console = Console(highlight=False)
        self._live: Live | Progress | None = None
        self._next = 0.0

    def note(self, text: str) -> None:
        if isinstance(self._live, Live):
            self.close()
        if self._show:
            self._console.print(text, markup=False, soft_wrap=True)

    def problem(self, text: str) -> None:
        # On standard error in every mode: a person sees it, and JSON stays JSON.
        print_problems([text])

    def phase(self, totals: Sequence[int], unit: str) -> None:
        self.close()
        self._totals, self._unit = totals, unit
        self._last = [(0, 0, 0)] * len(totals)
        self._started = time.perf_counter()
        self._next = self._started + PLAIN_INTERVAL_S
        if self._show and self._console.is_terminal:
            bars = self._live = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), console=self._console,
            )  # fmt: skip
            shown = enumerate(totals if 1 < len(totals) <= MAX_BARS else ())
            self._bars: list[TaskID] = [
                bars.add_task(f"agent {worker}", total=total, figures="") for worker, total in shown
            ]
            self._all = bars.add_task("together", total=sum(totals), figures="")
            bars.start()

    def progress(self, worker: int, payload: tuple[int, int, int]) -> None:
        self._last[worker] = payload
        now = time.perf_counter()
        done, commits, reruns = (sum(part) for part in zip(*self._last, strict=True))
        if isinstance(self._live, Progress):
            if self._bars:
                self._advance(self._live, self._bars[worker], *payload)
            self._advance(self._live, self._all, done, commits, reruns)
        elif self._show and now >= self._next:
            self._next = now + PLAIN_INTERVAL_S
            self.note(
                f"{now - self._started:6.1f} s  {done:,} of {sum(self._totals):,} {self._unit}  "
                f"{commits:,} commits ({self._per_second(commits)})  {reruns:,} reruns"
            )

    def _advance(self, bars: Progress, bar: TaskID, done: int, commits: int, reruns: int) -> None:
        figures = f"{commits:,} commits {self._per_second(commits)} {reruns:,} reruns"
        bars.update(bar, completed=done, figures=figures)

    def _per_second(self, commits: int) -> str:
        return f"{commits / max(1e-9, time.perf_counter() - self._started):,.0f}/s"

    def figures(self, figures: dict[str, str], interval_s: float) -> None:
        if self._show and self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=2, transient=True)
                self._live.start()
            table = rich_table.Table.grid(padding=(0, 2, 0, 0))
            for name, value in figures.items():
                table.add_row(name, value)
            assert isinstance(self._live, Live)
            self._live.update(table)
        elif self._show and (now := time.perf_counter()) >= self._next:
            first, self._next = not self._next, now + interval_s
            if first:
                return
            self.note(listed(f"{name} {value}" for name, value in figures.items()))

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
