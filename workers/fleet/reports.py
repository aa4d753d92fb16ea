"""What an agent reports, and what it says of an answer that no store may give.

Invariant: a report counts what the store acknowledged, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


class StoreFault(Exception):
    """The store answered something that no correct store can answer."""


@dataclass(slots=True)
class AgentReport:
    """What one agent did, as far as the store acknowledged it."""

    worker: int
    # steps commits transactions reruns abandoned audits events tool_calls tool_failures entries
    # cell_changes races_lost traces runs_created status_changes runs_archived runs_deleted
    counts: Counter[str] = field(default_factory=Counter)
    most_reruns: int = 0  # of one transaction
    seconds: float = 0.0
    anchor: tuple[int, bytes] | None = None  # last own event: sequence and hash
    tickets: list[int] = field(default_factory=list)  # what each add to the shared counter returned
    sequences: list[int] = field(default_factory=list)  # of the agent's events in the shared log
    contributed: Counter[str] = field(default_factory=Counter)  # to the shared totals
    tasks: dict[str, list[int]] = field(default_factory=lambda: {"board": [], "queue": []})
