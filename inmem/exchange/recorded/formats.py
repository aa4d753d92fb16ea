"""The files of recorded agent runs, as trajectories.

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
before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Final

from inmem.exchange.recorded.steps import StepBuilder, calls_of
from inmem.exchange.recorded.traces import text
from inmem.exchange.recorded.trajectory import Rejected, Trajectory
from inmem.exchange.storable import Unstorable, expect, kind_of, parse_json, read_json, read_lines

SUFFIXES: Final = (".json", ".traj")
FORMATS: Final = ("swe-agent", "openai-chat")

_TEXT_FIELDS: Final = ("action", "observation", "response", "thought")


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
    build = StepBuilder(record, "swe-agent", name)
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
    build = StepBuilder(record, "tau-bench", f"{name}-{record['task_id']}-{record['trial']}")
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
    build = StepBuilder(record, "openai-chat", name)
    build.start("messages")
    segments = _segments(messages)
    for number, segment in enumerate(segments):
        build.messages(segment)
        build.close_step(number + 1 == len(segments), None, None)
    model = run.get("model")
    tags = ["openai-chat"] + ([f"model:{model}"] if isinstance(model, str) else [])
    metadata = {key: run[key] for key in ("id", "model", "metadata") if key in run}
    return build.trajectory("unknown", None, tags, metadata)


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
        for index, call in enumerate(calls_of(message)):
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
