"""What an agent accounts for, and what it says of an answer that no store may give.

Invariant: a report counts what the store acknowledged, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class StoreFault(Exception):
    """The store answered something that no correct store can answer."""


@dataclass(slots=True)
class AgentReport:
    """What one agent did, as far as the store acknowledged it."""

    worker: int
    steps: int = 0
    commits: int = 0
    transactions: int = 0
    reruns: int = 0
    most_reruns: int = 0
    abandoned: int = 0
    audits: int = 0
    events: int = 0
    tool_calls: int = 0
    tool_failures: int = 0
    entries: int = 0  # KV entries written or removed
    cell_changes: int = 0
    races_lost: int = 0  # for a task
    traces: int = 0
    runs_created: int = 0
    status_changes: int = 0
    runs_archived: int = 0
    runs_deleted: int = 0
    seconds: float = 0.0
    anchor: tuple[int, bytes] | None = None  # last own event: sequence and hash
    tickets: list[int] = field(default_factory=list)  # what each add to the shared counter returned
    sequences: list[int] = field(default_factory=list)  # of the agent's events in the shared log
    contributed: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, list[int]] = field(default_factory=lambda: {"board": [], "queue": []})
