"""Recorded agent runs as steps: from the files of two projects to events and state.

Invariant: a mapping, not a selection. `rebuild` gives back, from the events
of a run alone, the record that was read, equal in every value: so nothing of
the source is left out, and a reader of the store needs no source. Traces,
state and status say the same again, for who looks for something. Knows no
store and no process.

Two formats are known, and told apart by the name of the file if nobody says
which it is:

    swe-agent     *.traj: one object; `trajectory` holds steps (action,
                  observation, response, state, thought and more), `history`
                  the messages; either may be missing. `state` is JSON text in
                  older files and an object in newer ones.
    openai-chat   *.json, *.jsonl: chat messages with tool calls, whose
                  arguments are JSON text. A run is an object with `messages`,
                  or one of tau-bench (task_id, trial, reward, info, traj),
                  `traj` being the messages. A file holds a list of runs, or
                  one run, or the messages of one, or a run in each line.

A run is cut into steps at each message of the assistant: step 0 is what came
before the first. Events of a step, in order: its messages (`system`, `user`,
`assistant`, `tool`, or `message` for another role), each assistant message
followed by its `tool_call`s with the arguments decoded; then, for SWE-agent,
`thought`, `action`, `observation` and `context`, which share out the fields
of one element of `trajectory`. The first event of all is `source`: everything
that is neither a message nor a step. Call ids repeat within a run in real
data, so a call is named by its step and position.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from inmem.exchange.recorded_traces import Called, StepTraces, label, text
from inmem.exchange.storable import (
    Unstorable,
    convert,
    expect,
    kind_of,
    parse_json,
    read_json,
    read_lines,
    restore,
)
from inmem.primitives.trace_store import NewTrace

SUFFIXES: Final = (".json", ".traj")
FORMATS: Final = ("swe-agent", "openai-chat")
MAX_NAME_CHARS: Final = 40  # of a file's name within a run id, which has at most 64 characters
MAX_LOOKUP_BYTES: Final = 200  # of what is looked up, within a key, which has at most 320 bytes

_ROLES: Final = frozenset({"system", "user", "assistant", "tool"})
_STEP_PARTS: Final = (
    ("thought", ("thought", "response")),
    ("action", ("action",)),
    ("observation", ("observation", "execution_time", "state")),
)
_TEXT_FIELDS: Final = ("action", "observation", "response", "thought")

Event = tuple[str, Any]  # type, payload


@dataclass(frozen=True, slots=True)
class TrajectoryStep:
    """What one transaction stores: events and traces, and what changes with them in KV and cells."""

    index: int
    events: tuple[Event, ...]
    kv: dict[str, Any]
    state: dict[str, Any]  # the agent's, after the step
    status: Any  # "running", and with the last step how it ended
    traces: tuple[NewTrace, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One recorded run, ready to be stored."""

    run_id: str  # from format, name and content: the same record has the same id anywhere
    name: str
    source_format: str
    digest: str  # of the source record
    outcome: str  # "completed", "failed" or "unknown"
    error: str | None  # of one that failed
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    steps: tuple[TrajectoryStep, ...]
    record: Any  # the source record as it was read
    notes: tuple[str, ...]  # what could not be kept in its plain form


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file, or a record in one, that is no trajectory, and why."""

    source: str
    reason: str


def find_files(root: Path) -> list[Path]:
    """The candidate files under a directory (or the file itself), in order of their paths."""
    if root.is_file():
        return [root]
    return sorted(path for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file())


def parse_file(
    path: Path, source: str, wanted: Container[int] | None = None, source_format: str | None = None
) -> Iterator[tuple[int, Trajectory | Rejected]]:
    """Everything in one file, numbered: trajectories, and what had to be rejected.

    `source` names the file in messages; `wanted` limits the work to some of
    the numbers; `source_format` is one of FORMATS, None goes by the file's
    name. Bad data never raises.
    """
    if source_format == "openai-chat" and path.suffix == ".jsonl":
        yield from _chat_lines(path, source, wanted)
        return
    try:
        data = read_json(path)
    except Unstorable as error:
        yield 0, Rejected(source, str(error))
        return
    if source_format == "swe-agent" or (source_format is None and path.suffix == ".traj"):
        yield 0, _attempt(source, path.stem, data, swe_agent)
    elif source_format == "openai-chat" and _is_one_run(data):
        yield 0, _attempt(source, path.stem, data, openai_chat)
    elif not isinstance(data, list):
        yield 0, Rejected(source, f"is {kind_of(data)}, expected a list of runs")
    elif not data:
        yield 0, Rejected(source, "an empty list: no runs")
    else:
        mapping = tau_bench if source_format is None else openai_chat
        for number, record in enumerate(data):
            if wanted is None or number in wanted:
                yield number, _attempt(f"{source}[{number}]", path.stem, record, mapping)


def _chat_lines(
    path: Path, source: str, wanted: Container[int] | None
) -> Iterator[tuple[int, Trajectory | Rejected]]:
    try:
        for number, line in read_lines(path):
            if wanted is None or number in wanted:
                place = f"{source}[{number}]"
                try:
                    record = parse_json(line)
                except Unstorable as error:
                    yield number, Rejected(place, str(error))
                else:
                    yield number, _attempt(place, path.stem, record, openai_chat)
    except Unstorable as error:
        yield 0, Rejected(source, str(error))


def _is_one_run(data: Any) -> bool:
    """Whether this is a run, and not a list of them; a list of messages is one run."""
    first = data[0] if isinstance(data, list) and data else None
    return isinstance(data, dict) or (isinstance(first, dict) and "role" in first)


def _attempt(
    source: str, name: str, record: Any, mapping: Callable[[Any, str], Trajectory]
) -> Trajectory | Rejected:
    try:
        return mapping(record, name)
    except Unstorable as error:
        return Rejected(source, str(error))
    except RecursionError:
        return Rejected(source, "nested too deeply to be read")


def swe_agent(record: Any, name: str) -> Trajectory:
    """The mapping of a SWE-agent file.

    Raises:
        Unstorable: it is not such a file, or holds what cannot be stored.
    """
    expect(record, dict, "the file")
    history = _messages(record.get("history", []), "history")
    elements = expect(record.get("trajectory", []), list, "trajectory")
    for number, element in enumerate(elements):
        _check_element(element, f"trajectory[{number}]")
    if not history and not elements:
        raise Unstorable("neither history nor trajectory has anything in it")
    info = expect(record.get("info", {}), dict, "info")
    build = _Builder(record, "swe-agent", name)
    build.start("history", "trajectory")
    segments = _segments(history)
    status = info.get("exit_status")
    outcome = "unknown" if status is None else "completed" if status == "submitted" else "failed"
    error = text(f"exit status {status}") if outcome == "failed" else None
    for number in range(max(len(segments), 1 + len(elements))):
        build.messages(segments[number] if number < len(segments) else [])
        if 0 < number <= len(elements):
            build.element(elements[number - 1])
        last = _last(number, segments, elements)
        if last and info.get("submission") is not None:
            build.put("submission", info["submission"], "info['submission']")
        build.close_step(last, status if isinstance(status, str) else None, error)
    tags = ["swe-agent"] + ([f"exit:{status}"] if isinstance(status, str) else [])
    metadata = {"exit_status": status}
    metadata |= {key: record[key] for key in ("environment",) if key in record}
    metadata |= {key: info[key] for key in ("model_stats",) if key in info}
    return build.trajectory(outcome, error, tags, metadata)


def tau_bench(record: Any, name: str) -> Trajectory:
    """The mapping of one run of a tau-bench file.

    Raises:
        Unstorable: it is not such a run, or holds what cannot be stored.
    """
    expect(record, dict, "a run")
    for key in ("task_id", "trial", "reward", "traj"):
        if key not in record:
            raise Unstorable(f"no {key!r}: not a run of tau-bench")
    for key in ("task_id", "trial"):
        if type(record[key]) not in (int, str):
            raise Unstorable(f"{key} is {kind_of(record[key])}, expected a number or text")
    if type(record["reward"]) not in (int, float):
        raise Unstorable(f"reward is {kind_of(record['reward'])}, expected a number")
    messages = _messages(record["traj"], "traj")
    if not messages:
        raise Unstorable("traj is empty")
    build = _Builder(record, "tau-bench", f"{name}-{record['task_id']}-{record['trial']}")
    build.start("traj")
    segments = _segments(messages)
    outcome = "completed" if record["reward"] == 1 else "failed"
    error = f"reward {record['reward']}" if outcome == "failed" else None
    for number, segment in enumerate(segments):
        build.messages(segment)
        build.close_step(number + 1 == len(segments), outcome, error)
    metadata = {key: record[key] for key in ("task_id", "trial", "reward")}
    tags = [f"task:{record['task_id']}", f"trial:{record['trial']}", f"reward:{record['reward']}"]
    return build.trajectory(outcome, error, ["tau-bench", *tags], metadata)


def openai_chat(record: Any, name: str) -> Trajectory:
    """The mapping of one run as chat messages: of tau-bench, with `messages`, or the bare messages.

    Raises:
        Unstorable: it is not such a run, or holds what cannot be stored.
    """
    if isinstance(record, dict) and "messages" not in record:
        return tau_bench(record, name)
    bare = isinstance(record, list)
    run = {"messages": record} if bare else expect(record, dict, "a run")
    messages = _messages(run["messages"], "messages")
    if not messages:
        raise Unstorable("messages is empty")
    build = _Builder(record, "openai-chat", name)
    build.start("messages")
    segments = _segments(messages)
    for number, segment in enumerate(segments):
        build.messages(segment)
        build.close_step(number + 1 == len(segments), None, None)
    model = run.get("model")
    tags = ["openai-chat"] + ([f"model:{model}"] if isinstance(model, str) else [])
    metadata = {key: run[key] for key in ("id", "model", "metadata") if key in run}
    return build.trajectory("unknown", None, tags, metadata)


def rebuild(events: Iterable[Event]) -> Any:
    """The source record, from the events of a run."""
    record: Any = {}
    messages: list[Any] = []
    elements: dict[int, dict[str, Any]] = {}
    lists: list[str] = []
    bare = False
    for event_type, payload in events:
        if event_type == "source":
            record, lists = restore(payload["record"]), payload["lists"]
            if record is None:
                record, bare = {}, True
        elif event_type in ("thought", "action", "observation", "context"):
            elements.setdefault(payload["step"], {}).update(restore(payload["fields"]))
        elif event_type != "tool_call":
            messages.append(restore(payload["message"]))
    for key in lists:
        record[key] = messages if key != "trajectory" else [elements[step] for step in sorted(elements)]
    return messages if bare else record


@dataclass(slots=True)
class _Builder:
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
            for number, call in enumerate(_calls(message)):
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


def _segments(messages: list[Any]) -> list[list[Any]]:
    """Messages cut before each one of the assistant; the first part has none of those."""
    segments: list[list[Any]] = [[]]
    for message in messages:
        if message["role"] == "assistant":
            segments.append([])
        segments[-1].append(message)
    return segments


def _last(number: int, segments: list[list[Any]], elements: list[Any]) -> bool:
    return number + 1 == max(len(segments), 1 + len(elements))


def _messages(value: Any, where: str) -> list[Any]:
    for number, message in enumerate(expect(value, list, where)):
        place = f"{where}[{number}]"
        expect(message, dict, place)
        if not isinstance(message.get("role"), str):
            raise Unstorable(f"{place} has no role")
        for index, call in enumerate(_calls(message)):
            spot = f"{place}['tool_calls'][{index}]"
            expect(call, dict, spot)
            expect(call.get("function"), dict, f"{spot}['function']")
    return list(value)


def _check_element(element: Any, where: str) -> None:
    expect(element, dict, where)
    for name in _TEXT_FIELDS:
        if not isinstance(element.get(name), (str, type(None))):
            raise Unstorable(f"{where}[{name!r}] is {kind_of(element[name])}, expected text")
    if not isinstance(element.get("state"), (str, dict, type(None))):
        raise Unstorable(f"{where}['state'] is {kind_of(element['state'])}, expected text or an object")


def _calls(message: dict[str, Any]) -> list[Any]:
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
