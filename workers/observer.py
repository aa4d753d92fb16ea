"""Who is told how a program is getting on."""

from __future__ import annotations

from collections.abc import Sequence


class Observer:
    """Listens to nothing; `workers.screen` has the one that shows it."""

    def note(self, text: str) -> None:
        """A sentence for a person."""

    def problem(self, text: str) -> None:
        """Something is wrong with the input, and the program goes on."""

    def phase(self, totals: Sequence[int], unit: str) -> None:
        """Workers are about to start, each with so much to do."""

    def progress(self, worker: int, payload: tuple[int, int, int]) -> None:
        """A worker has done so much, with so many commits and reruns."""

    def figures(self, figures: dict[str, str], interval_s: float) -> None:
        """How it stands, by name; where lines are printed, one each `interval_s`."""
