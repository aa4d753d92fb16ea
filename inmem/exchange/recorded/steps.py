"""The steps of one recorded run, collected message by message.

Events of a step, in order: its messages (`system`, `user`, `assistant`,
`tool`, or `message` for another role), each assistant message followed by its
`tool_call`s with the arguments decoded; then, for SWE-agent, `thought`,
`action`, `observation` and `context`, which share out the fields of one
element of `trajectory`. The first event of all is `source`: everything that
is neither a message nor a step. Call ids repeat within a run in real data, so
a call is named by its step and position.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from inmem.exchange.recorded.traces import Called, StepTraces, label, text
from inmem.exchange.recorded.trajectory import Event, Trajectory, TrajectoryStep
from inmem.exchange.storable import convert, expect

MAX_NAME_CHARS: Final = 40  # of a file's name within a run id, which has at most 64 characters
MAX_LOOKUP_BYTES: Final = 200  # of what is looked up, within a key, which has at most 320 bytes

_ROLES: Final = frozenset({"system", "user", "assistant", "tool"})
_STEP_PARTS: Final = (
    ("thought", ("thought", "response")),
    ("action", ("action",)),
    ("observation", ("observation", "execution_time", "state")),
)


@dataclass(slots=True)
class StepBuilder:
    """Collects the steps of one run."""

    record: Any
    source_format: str
    name: str
    _index: int = 0
    _events: list[Event] = field(default_factory=list)
    _kv: dict[str, Any] = field(default_factory=dict)
    _state: dict[str, Any] = field(default_factory=dict)
    _calls: int = 0
    _open_calls: dict[str, tuple[str, Any, Called]] = field(default_factory=dict)
    _traces: StepTraces = field(default_factory=lambda: StepTraces(0))
    _steps: list[TrajectoryStep] = field(default_factory=list)
    _notes: list[str] = field(default_factory=list)

    def start(self, *listed: str) -> None:
        if isinstance(self.record, list):  # the messages and nothing else
            self._event("source", {"record": None, "lists": list(listed)})
            return
        rest = {key: part for key, part in self.record.items() if key not in listed}
        has = [key for key in listed if key in self.record]
        self._event("source", {"record": self._convert(rest, "the record"), "lists": has})

    def messages(self, messages: list[Any]) -> None:
        for message in messages:
            role = message["role"]
            kept = self._convert(message, f"step {self._index}, message of {role!r}")
            event_type = role if role in _ROLES else "message"
            self._event(event_type, {"step": self._index, "message": kept})
            self._state["last_role"] = self._convert(role, "role")
            self._traces.roles.append(self._state["last_role"])
            content = message.get("content")
            if role == "assistant" and isinstance(content, str) and content:
                self._traces.said.append(content)
            for number, call in enumerate(calls_of(message)):
                self._call(number, call)
            for call_id in _answered(message):
                self._answer(call_id, message, kept)

    def _call(self, number: int, call: dict[str, Any]) -> None:
        function = call["function"]
        call_id, text = call.get("id"), function.get("arguments")
        place = f"step {self._index}, tool call {number}"
        payload: dict[str, Any] = {"step": self._index, "call": number, "call_id": call_id}
        payload["name"] = function.get("name")
        arguments: Any = None
        try:
            arguments = json.loads(text) if isinstance(text, str) else text
            payload["arguments"] = arguments
        except (ValueError, RecursionError):
            self._notes.append(f"{place}: its arguments are no JSON; kept as text")
            payload["arguments_text"] = text
        kept = self._convert(payload, place)
        self._event("tool_call", kept)
        given = kept["arguments"] if "arguments" in kept else kept["arguments_text"]
        called = self._traces.call(function.get("name"), given)
        self._calls += 1
        self._state["calls"] = self._calls
        if isinstance(call_id, str):
            # The id may have been used before in this run: the latest call is the one answered.
            self._open_calls[call_id] = (str(function.get("name")), arguments, called)

    def _answer(self, call_id: str, message: Any, kept: Any) -> None:
        name: str
        arguments: Any
        called: Called | None
        name, arguments, called = self._open_calls.pop(call_id, ("", None, None))
        stored = kept.get("content") if isinstance(kept, dict) else None
        self._traces.answer(called, message.get("content"), stored)
        wanted = arguments.get(next(iter(arguments))) if _single(arguments) else None
        if not name.startswith("get_") or not isinstance(wanted, str):
            return
        try:
            found = json.loads(message.get("content"))
        except (TypeError, ValueError, RecursionError):
            return  # an error message, not a record
        key = f"lookup:{name}:{wanted}"
        if isinstance(found, dict) and _fits_key(key):
            self.put(key, found, key)

    def element(self, element: dict[str, Any]) -> None:
        taken: set[str] = set()
        for event_type, names in _STEP_PARTS:
            fields = {name: element[name] for name in names if name in element}
            taken.update(fields)
            if fields:
                self._fields(event_type, fields)
        rest = {name: part for name, part in element.items() if name not in taken}
        if rest or not taken:
            self._fields("context", rest)
        self._state["environment"] = self._convert(_decoded_state(element.get("state")), "state")
        if element.get("thought"):
            self._traces.thought.append(element["thought"])
        if element.get("action"):
            observation = element.get("observation")
            kept = self._convert(observation, "observation")
            self._traces.action(element["action"], observation, kept, element.get("execution_time"))

    def _fields(self, event_type: str, fields: dict[str, Any]) -> None:
        kept = self._convert(fields, f"step {self._index}, {event_type}")
        self._event(event_type, {"step": self._index, "fields": kept})

    def put(self, key: str, value: Any, where: str) -> None:
        self._kv[key] = self._convert(value, where)

    def close_step(self, last: bool, status: str | None, error: str | None) -> None:
        self._state["step"] = self._index
        if last:
            self._traces.failure = error
        state, kv = dict(self._state), dict(self._kv)
        ended = self._convert(status or "unknown", "status") if last else "running"
        traces = self._traces.close(state, sorted(kv))
        self._steps.append(TrajectoryStep(self._index, tuple(self._events), kv, state, ended, traces))
        self._events.clear()
        self._kv.clear()
        self._index += 1
        self._traces = StepTraces(self._index)

    def trajectory(
        self, outcome: str, error: str | None, tags: Iterable[str], metadata: dict[str, Any]
    ) -> Trajectory:
        canonical = json.dumps(self.record, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return Trajectory(
            run_id=f"{self.source_format}:{_safe(self.name)}:{digest[:12]}",
            name=self.name,
            source_format=self.source_format,
            digest=digest,
            outcome=outcome,
            error=error,
            tags=tuple(dict.fromkeys(label(tag) for tag in tags)),
            metadata=self._about(digest) | self._convert(metadata, "metadata"),
            steps=tuple(self._steps),
            record=self.record,
            notes=tuple(self._notes),
        )

    def _about(self, digest: str) -> dict[str, Any]:
        return {"name": text(self.name), "format": self.source_format, "digest": digest}

    def _event(self, event_type: str, payload: Any) -> None:
        self._events.append((event_type, payload))

    def _convert(self, value: Any, where: str) -> Any:
        return convert(value, where, self._notes.append)


def calls_of(message: dict[str, Any]) -> list[Any]:
    """The tool calls of a message."""
    return list(expect(message.get("tool_calls") or [], list, "tool_calls"))


def _answered(message: dict[str, Any]) -> list[str]:
    ids = message.get("tool_call_ids") or [message.get("tool_call_id")]
    return [one for one in ids if isinstance(one, str)] if isinstance(ids, list) else []


def _decoded_state(state: Any) -> Any:
    """The environment's state, whichever way the file holds it; text that is no JSON stays text."""
    if not isinstance(state, str):
        return state
    try:
        return json.loads(state)
    except (ValueError, RecursionError):
        return state


def _single(arguments: Any) -> bool:
    return isinstance(arguments, dict) and len(arguments) == 1


def _fits_key(key: str) -> bool:
    try:
        return len(key.encode()) <= MAX_LOOKUP_BYTES and "\0" not in key
    except UnicodeEncodeError:
        return False


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[:MAX_NAME_CHARS]
