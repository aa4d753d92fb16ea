"""The traces of one recorded step, below one root.

Invariant: a step has exactly one root, which says what the step changed; and
each child is there once, with siblings in the order of their ids. A thought
and an action are found twice in the files of SWE-agent, in the messages and
in the element of the step: it becomes one trace. Ids of tool calls repeat
within a run in real data, so a trace is named by its step and its place.

    Step (custom)   step, roles of its messages, the agent's state, KV entries
    ├── Thought     what the agent said, or thought
    ├── ToolCall    with its result
    │   └── Error   if the result is one
    ├── Result      (custom) of a call of an earlier step
    └── Error       the end of a run that failed
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from inmem.primitives.traces.facade import NewTrace
from inmem.primitives.traces.rules import Custom, ErrorTrace, Thought, ToolCall

# What a shell, an editor or a tool says when something went wrong.
_FAILURES: Final = (
    "EXECUTION TIMED OUT",
    "Your proposed edit has introduced new syntax error",
    "Traceback (most recent call last)",
    "command not found",
)


@dataclass(slots=True)
class Called:
    """One tool call, whose result may come later in the step."""

    step: int
    name: str
    arguments: Any
    result: Any = None
    duration_ms: float | None = None
    error: str | None = None


@dataclass(slots=True)
class StepTraces:
    """Collects the traces of one step."""

    index: int
    roles: list[Any] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # by messages
    thought: list[str] = field(default_factory=list)  # by the element
    calls: list[Called] = field(default_factory=list)  # of messages
    actions: list[Called] = field(default_factory=list)  # of the element
    late: list[dict[str, Any]] = field(default_factory=list)
    failure: str | None = None

    def call(self, name: Any, arguments: Any) -> Called:
        """A tool is called."""
        called = Called(self.index, text(name), arguments)
        self.calls.append(called)
        return called

    def answer(self, called: Called | None, result: Any, kept: Any) -> None:
        """A result came; `kept` is the form of it that the store takes."""
        if called is None or called.step != self.index:
            step = None if called is None else called.step
            self.late.append({"of step": step, "result": kept})
            return
        called.result = kept
        called.error = failure_in(result)

    def action(self, command: str, observation: Any, kept: Any, seconds: Any) -> None:
        """What the element of a step did, and what came of it."""
        name = (command.split() or ["action"])[0]
        duration_ms = float(seconds) * 1000 if type(seconds) in (int, float) else None
        error = failure_in(observation)
        arguments = {"action": text(command)}
        self.actions.append(Called(self.index, text(name), arguments, kept, duration_ms, error))

    def close(self, state: dict[str, Any], entries: list[str]) -> tuple[NewTrace, ...]:
        """All traces, parents before children."""
        root = f"s{self.index:06d}"
        data = {"step": self.index, "roles": self.roles, "state": state, "entries": entries}
        traces = [NewTrace(Custom("Step", data), id=root, tags=("step",))]
        number = 0

        def add(body: Any, tags: tuple[str, ...] = ()) -> str:
            nonlocal number
            name = f"{root}.{number:05d}"
            number += 1
            traces.append(NewTrace(body, id=name, parent_id=root, tags=tags))
            return name

        for content in self.thought or self.said:
            add(Thought(text(content)))
        for called in self.calls or self.actions:
            body = ToolCall(called.name, called.arguments, called.result, called.duration_ms)
            name = add(body, (label(f"tool:{called.name}"),))
            if called.error is not None:
                error = ErrorTrace("tool", called.error, recoverable=True)
                traces.append(NewTrace(error, id=f"{name}.e", parent_id=name, tags=("failure",)))
        for late in self.late:
            add(Custom("Result", late))
        if self.failure is not None:
            add(ErrorTrace("run", self.failure, recoverable=False), ("failure",))
        return tuple(traces)


def failure_in(result: Any) -> str | None:
    """What a result says went wrong, in one line; None if nothing did."""
    if isinstance(result, list):  # of parts, in newer files
        result = "\n".join(part["text"] for part in result if is_text_part(part))
    if not isinstance(result, str):
        return None
    if result.startswith("Error"):
        return text(result.partition("\n")[0][:500])
    for line in result.splitlines():
        if any(failure in line for failure in _FAILURES):
            return text(line.strip()[:500])
    return None


def is_text_part(part: Any) -> bool:
    """Whether this is a part of a message that is text."""
    return isinstance(part, dict) and isinstance(part.get("text"), str)


def text(value: Any) -> str:
    """A string that UTF-8 can hold; what cannot is escaped."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def label(tag: str) -> str:
    """A tag that the store takes: not empty, no NUL, at most 128 bytes."""
    return text(tag).replace("\0", " ").encode()[:128].decode("utf-8", "ignore") or "-"
