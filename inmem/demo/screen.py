"""What a person sees of a fleet: a picture that moves on a terminal, lines elsewhere, and the verdict.

Invariant: with `as_json` standard output is one document, and with `is_quiet`
one line.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from inmem.cli.text import plain
from inmem.demo.fleet import DemoKill, DemoObserver, DemoOptions, DemoResult, DemoState

_LINE_S: Final = 1.0  # between two lines where there is no terminal
_FRAME_S: Final = 0.1
_NARROW: Final = 64  # columns: below, process ids and counts of starts are left out
_REST: Final = 9  # lines of the picture that are not of processes


class DemoScreen(DemoObserver):
    """Shows a fleet at work. Use it as a context manager."""

    def __init__(self, *, is_silent: bool) -> None:
        self._console = Console(highlight=False, markup=False)
        self._is_silent = is_silent
        self._can_move = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live: Live | None = None
        self._next = 0.0
        self._told: set[int] = set()

    def __enter__(self) -> DemoScreen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the picture: lines may be printed again."""
        live, self._live = self._live, None
        self._is_silent = True
        if live is not None:
            live.stop()

    def draw(self, state: DemoState) -> None:
        """As its base says."""
        now = time.monotonic()
        if self._live is None and self._can_move and not self._is_silent:
            self._live = Live(
                console=self._console, auto_refresh=False, vertical_overflow="crop", transient=True
            )
            self._live.start()
        if self._live is not None:
            if now >= self._next:
                self._next = now + _FRAME_S
                picture = picture_of(state, self._console.width, self._console.height)
                self._live.update(picture, refresh=True)
        elif not self._is_silent:
            self._say_kills(state)
            if now >= self._next and state.phase == "works":
                self._next = now + _LINE_S
                self._print(f"{state.elapsed_s:5.1f} s  {_figures(state)}")

    def _say_kills(self, state: DemoState) -> None:
        for kill in state.kills:
            for is_back, text in ((False, "was killed"), (True, _back(kill))):
                key = 2 * kill.pid + is_back
                if key not in self._told and (kill.back_s is not None or not is_back):
                    self._told.add(key)
                    self._print(f"{state.elapsed_s:5.1f} s  {kill.name} (process {kill.pid}) {text}")

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
        sys.stdout.flush()


def _figures(state: DemoState) -> str:
    return (
        f"{state.planned:,} jobs planned, {state.done:,} done ({state.jobs_per_s:,.0f}/s), "
        f"{state.approved:,} approved, {state.commits_per_s:,.0f} commits/s"
    )


def _back(kill: DemoKill) -> str:
    return "did not come back" if kill.back_s is None else f"was back after {kill.back_s:.2f} s"


def picture_of(state: DemoState, width: int, height: int) -> RenderableType:
    """The fleet at a moment, in so many columns and lines."""
    head = Text.assemble(
        ("inmem demo ", "bold"), (state.phase, "cyan"),
        f"  {min(state.elapsed_s, state.seconds):.1f} of {state.seconds:g} s", no_wrap=True,
    )
    totals = Table.grid(padding=(0, 2, 0, 0))
    totals.add_column(style="dim", no_wrap=True)
    totals.add_column(no_wrap=True, overflow="ellipsis")
    totals.add_row("store", plain(state.place))
    totals.add_row("jobs", f"{state.planned:,} planned, {state.done:,} done, {state.approved:,} approved")
    totals.add_row("rates", f"{state.jobs_per_s:,.0f} jobs/s, {state.commits_per_s:,.0f} commits/s")
    totals.add_row("amount", f"{state.amount / 100:,.2f}")
    survived = ", ".join(
        kill.name + (" is killed" if kill.back_s is None else f" back in {kill.back_s:.2f} s")
        for kill in state.kills
    )
    totals.add_row("kills", Text(survived or "none yet", "red" if survived else "dim"))
    parts: list[RenderableType] = [head, totals, Text(), _processes(state, width, height)]
    return Group(*parts)


def _processes(state: DemoState, width: int, height: int) -> Table:
    is_wide = width >= _NARROW
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    if is_wide:
        table.add_column(no_wrap=True, justify="right", style="dim")
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, overflow="ellipsis")
    shown = state.children[: max(1, height - _REST)]
    for child in shown:
        kills = " ×" * child.kills if is_wide else ""
        doing = Text(child.doing + kills, "yellow" if child.kills and not child.is_ready else "")
        done = f"{child.done:,}"
        row: list[RenderableType] = [child.name, str(child.pid or ""), done, doing]
        table.add_row(*(row if is_wide else [child.name, done, doing]))
    if left := len(state.children) - len(shown):
        table.add_row(f"and {left} more")
    return table


def document_of(options: DemoOptions, result: DemoResult) -> dict[str, Any]:
    """What `--json` prints."""
    state = result.state
    return {
        "ok": result.ok, "seed": options.seed, "seconds": options.seconds, "workers": options.workers,
        "store": state.place if options.path is not None else None, "run": state.run,
        "durability": state.durability, "planned": state.planned, "done": state.done,
        "approved": state.approved, "amount": state.amount, "spared": state.spared or None,
        "kills": [asdict(kill) for kill in state.kills],
        "checks": [
            {"name": each.name, "ok": each.ok, "compared": each.compared, "unit": each.unit,
             "problems": each.problems}
            for each in result.checks
        ],
        "problems": result.problems,
    }


def tell_result(options: DemoOptions, result: DemoResult, *, as_json: bool, is_quiet: bool) -> None:
    """Print what came of it."""
    if as_json:
        print(json.dumps(document_of(options, result), indent=2), flush=True)
        return
    console = Console(highlight=False, markup=False)
    if not is_quiet:
        _print_checks(console, result)
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    for problem in result.problems:
        errors.print(problem, style="red")
    state = result.state
    if result.ok:
        names = ", ".join(kill.name for kill in state.kills)
        verdict = (
            f"All of it holds: {state.done:,} jobs, each done once, while these were killed and came back: "
            f"{names}."
        )
    else:
        verdict = f"It does not hold: {len(result.problems)} problems."
    console.print(verdict, style="bold green" if result.ok else "bold red", soft_wrap=True)
    sys.stdout.flush()


def _print_checks(console: Console, result: DemoResult) -> None:
    state = result.state
    for kill in state.kills:
        console.print(f"{kill.name}, process {kill.pid}, was killed at {kill.at_s:.1f} s and {_back(kill)}.")
    if state.spared:
        console.print(f"The writer was left alone: {state.spared}.")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    for check in result.checks:
        verdict = Text("ok", "green") if check.ok else Text("wrong", "red")
        table.add_row(verdict, check.name, f"{check.compared:,} {check.unit}")
    console.print(table)
