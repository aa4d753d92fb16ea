"""Live progress of worker processes, on a terminal or as plain lines.

Invariant: showing progress never changes what is done; a display knows how
far each worker is and nothing else. Workers tell `(done, commits, reruns)`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

MAX_BARS: Final = 16  # more workers than this get one bar together
PLAIN_INTERVAL_S: Final = 2.0


class Display(Protocol):
    """What the programs need of a display."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def update(self, worker: int, payload: tuple[int, int, int]) -> None: ...

    def note(self, text: str) -> None: ...


class _Counted:
    """What all displays share: the last word of every worker, and the sums."""

    def __init__(self, totals: Sequence[int]) -> None:
        self._totals = totals
        self._last = [(0, 0, 0)] * len(totals)
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, worker: int, payload: tuple[int, int, int]) -> None:
        self._last[worker] = payload

    def note(self, text: str) -> None:
        pass

    def _sums(self) -> tuple[int, int, int]:
        done, commits, reruns = (sum(part) for part in zip(*self._last, strict=True))
        return done, commits, reruns

    def _rate(self, commits: int) -> str:
        return f"{commits / max(1e-9, time.perf_counter() - self._started):,.0f}/s"


class Silent(_Counted):
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self


class Plain(_Counted):
    """A line every two seconds, for pipes and files."""

    def __init__(self, totals: Sequence[int], unit: str) -> None:
        super().__init__(totals)
        self._unit = unit
        self._next = time.perf_counter() + PLAIN_INTERVAL_S

    def __enter__(self) -> Plain:
        return self

    def update(self, worker: int, payload: tuple[int, int, int]) -> None:
        super().update(worker, payload)
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + PLAIN_INTERVAL_S
            done, commits, reruns = self._sums()
            print(
                f"{now - self._started:6.1f} s  {done:,} of {sum(self._totals):,} {self._unit}  "
                f"{commits:,} commits ({self._rate(commits)})  {reruns:,} reruns",
                flush=True,
            )

    def note(self, text: str) -> None:
        print(text, flush=True)


class Bars(_Counted):
    """A bar per worker and one for all, redrawn in place."""

    def __init__(self, totals: Sequence[int], unit: str, console: Console) -> None:
        super().__init__(totals)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._bars: list[TaskID] = []
        if 1 < len(totals) <= MAX_BARS:
            self._bars = [
                self._progress.add_task(f"agent {worker}", total=total, figures="")
                for worker, total in enumerate(totals)
            ]
        self._all = self._progress.add_task("together", total=sum(totals), figures="")

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, worker: int, payload: tuple[int, int, int]) -> None:
        super().update(worker, payload)
        if self._bars:
            self._show(self._bars[worker], *payload)
        self._show(self._all, *self._sums())

    def _show(self, bar: TaskID, done: int, commits: int, reruns: int) -> None:
        figures = f"{commits:,} commits {self._rate(commits)} {reruns:,} reruns"
        self._progress.update(bar, completed=done, figures=figures)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)


def display(totals: Sequence[int], unit: str, *, show: bool, console: Any) -> Display:
    """The display for this console: bars on a terminal, lines elsewhere, nothing if not `show`."""
    if not show:
        return Silent(totals)
    if console.is_terminal:
        return Bars(totals, unit, console)
    return Plain(totals, unit)
