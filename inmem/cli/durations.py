"""How long runs and traces took, as far as it is known.

Invariant: the time that an import took is never a run's duration. A run that
`inmem import --format` has made is a recording: its record says when it was
imported, so only what its traces say themselves counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from inmem.cli.text import span
from inmem.primitives.runs.rules import RunMetadata, RunStatus
from inmem.primitives.traces.rules import ToolCall, Trace

_RECORDED: Final = ("swe-agent", "tau-bench", "openai-chat")  # what an import writes as the format of a run
_DIGEST_CHARS: Final = 64


def is_recording(run: RunMetadata | None) -> bool:
    """Whether the run was recorded elsewhere, without the times at which things happened."""
    about = {} if run is None else run.metadata
    digest = about.get("digest")
    return about.get("format") in _RECORDED and isinstance(digest, str) and len(digest) == _DIGEST_CHARS


def lasted_s(run: RunMetadata, now_us: int) -> float | None:
    """For how long a run went, or has gone until now; None if that is not known.

    It is not known of a recording, and where the clock was set back meanwhile.
    """
    if is_recording(run):
        return None
    end = run.completed_at or (now_us if run.status is RunStatus.ACTIVE else run.updated_at)
    return (end - run.created_at) / 1e6 if end >= run.created_at else None


def took(run: RunMetadata, now_us: int) -> str:
    """The same, short; a dash if it is not known."""
    seconds = lasted_s(run, now_us)
    return "–" if seconds is None else span(seconds)


def duration_s(trace: Trace) -> float | None:
    """How long it took, if it says so: the `duration_ms` of a tool call, or of the metadata."""
    milliseconds: Any = trace.metadata.get("duration_ms")
    if isinstance(trace.body, ToolCall) and trace.body.duration_ms is not None:
        milliseconds = trace.body.duration_ms
    if type(milliseconds) not in (int, float) or not 0 <= milliseconds < 1e15:  # also if it is no number
        return None
    return float(milliseconds) / 1e3


def parents_of(traces: Sequence[Trace]) -> list[int]:
    """Where in the list each one's parent is, -1 if it is not there. Parents stand before their children."""
    index = {trace.id: number for number, trace in enumerate(traces)}
    return [index.get(trace.parent_id or "", -1) for trace in traces]


def reach_of(traces: Sequence[Trace], parents: Sequence[int], begins: Sequence[int]) -> list[int]:
    """When each trace ended, microseconds: by its own duration, else with the last one below it."""
    own = [duration_s(trace) for trace in traces]
    ends = [begin + round((length or 0) * 1e6) for begin, length in zip(begins, own, strict=True)]
    for number in range(len(traces) - 1, -1, -1):
        above = parents[number]
        if above >= 0 and own[above] is None:
            ends[above] = max(ends[above], ends[number])
    return ends
