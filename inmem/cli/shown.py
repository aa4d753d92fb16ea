"""What the details of a row say: values in full, and what else is known of an event, a trace or a run.

Invariant: every text has been made harmless (`plain`, `in_lines`), and all
that one `Details` gives has a bounded size.
"""

from __future__ import annotations

import itertools
from typing import Any, Final

from inmem.cli.gist import in_lines, line_of, message_of, words_of
from inmem.cli.text import clock, day, indented, plain
from inmem.primitives.events.rules import Event
from inmem.primitives.runs.rules import RunMetadata
from inmem.primitives.traces.rules import Custom, Decision, ErrorTrace, Query, Thought, ToolCall, Trace

LINE: Final = 300  # characters of a message in a row
VALUE: Final = 4000  # characters of one value
_TOTAL: Final = 24 * 1024 * 1024  # characters of all values together
_ABOUT: Final = 40  # names in the metadata of a run
_KINDS: Final = {
    ToolCall: "tool", Decision: "decision", Query: "query", Thought: "thought", ErrorTrace: "error",
    Custom: "custom",
}
Pairs = list[list[str]]  # titles and texts


class Details:
    """Values as text, each of at most `most` characters, and all together within a budget."""

    def __init__(self, most: int = VALUE) -> None:
        self._most = most
        self._budget = _TOTAL

    def _within(self, text: str, room: int, is_cut: bool) -> str:
        self._budget -= len(text)
        return f"{text}\n… (shortened after {room:,} characters)" if is_cut else text

    def _room(self) -> int:
        return max(LINE, min(self._most, self._budget))

    def value(self, value: Any) -> str:
        """A value in full, as far as there is room: a text as it is, the rest as JSON."""
        room = self._room()
        if isinstance(value, str):
            return self._within(in_lines(value, room), room, len(value) > room)
        text, is_cut = indented(value, room)
        return self._within(text, room, is_cut)

    def event(self, event: Event, *, is_timed: bool = True) -> Pairs:
        """An event: its message, if that is not in its line, payload, time and hash."""
        details = []
        if not isinstance(event.payload, str):
            room = self._room()
            said = message_of(event.payload, room)
            if said != line_of(event.payload, LINE):
                details.append(["message", self._within(said, room, False)])
        return [
            *details, ["payload", self.value(event.payload)],
            ["time" if is_timed else "stored", f"{day(event.timestamp)} {clock(event.timestamp)}"],
            ["hash", event.hash.hex()],
        ]

    def trace(self, trace: Trace, *, is_timed: bool = True) -> Pairs:
        """A trace: what is known of it, in the order of its fields."""
        details = [["type", plain(trace.type_name)]]
        for name in trace.body.__slots__:
            value = getattr(trace.body, name)
            if value is not None:
                details.append([name.replace("_", " "), self.value(value)])
        if trace.metadata:
            details.append(["metadata", self.value(trace.metadata)])
        when = f"{day(trace.timestamp)} {clock(trace.timestamp)}"
        return [
            *details, ["time" if is_timed else "stored", when], ["id", trace.id],
            ["below", trace.parent_id or ""],
        ]


def about(run: RunMetadata | None) -> Pairs:
    """The metadata of a run, each name with a line."""
    given = {} if run is None else run.metadata
    first = itertools.islice(given.items(), _ABOUT)
    shown = [[plain(name), words_of(value, LINE)] for name, value in first]
    if len(given) > _ABOUT:
        shown.append(["…", f"and {len(given) - _ABOUT:,} more"])
    return shown


def kind_of(trace: Trace) -> str:
    """Which of the six kinds a trace is of."""
    return _KINDS[type(trace.body)]


def name_of(trace: Trace) -> str:
    """What a trace is called: the tool that was called, or its type."""
    return plain(trace.body.tool_name if isinstance(trace.body, ToolCall) else trace.type_name)


def tags_of(trace: Trace) -> list[str]:
    """The tags of a trace, but for what its name says."""
    told = f"tool:{trace.body.tool_name}" if isinstance(trace.body, ToolCall) else ""
    return [plain(tag) for tag in trace.tags if tag != told]
