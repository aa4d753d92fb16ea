"""What a value says, in words: for who reads, where JSON is for who checks.

Agents keep their messages in envelopes: a chat message in an event's payload,
a list of parts in the message, JSON text in a part. `message_of` opens them.
What holds no message is told as names and what they stand for, without the
quotes and braces of JSON.

Invariant: nothing that is returned holds a control character or a mark of
direction, but for the line feeds of `message_of`. Cost: that of what is
returned, plus one of at most `_PARSED` characters for JSON inside a text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from inmem.cli.text import ELLIPSIS, plain
from inmem.primitives.traces.rules import Custom, Decision, ErrorTrace, Query, Thought, ToolCall, Trace

_PARSED: Final = 16_384  # characters of a text that may be JSON itself
_DEEP: Final = 6  # envelopes within each other
_ENVELOPES: Final = ("message", "fields", "data", "payload", "body", "delta")
_SAID: Final = (
    "content", "text", "message", "thought", "action", "observation", "response", "reasoning", "error",
    "summary", "output", "title", "question", "answer",
)  # fmt: skip


def line_of(value: Any, limit: int) -> str:
    """What a value says, in one line of at most about so many characters.

    >>> line_of({"step": 3, "message": {"role": "user", "content": "Find\\na  flight"}}, 80)
    'Find a flight'
    >>> line_of({"seats": [1, 2], "class": "economy", "why": None}, 80)
    'seats: 1, 2 · class: economy · why: none'
    """
    return in_one_line(message_of(value, 4 * limit), limit)


def words_of(value: Any, limit: int) -> str:
    """All of a value in one line of at most about so many characters, as names and what they stand for.

    >>> words_of({"title": "Oslo", "legs": [{"from": "BER"}], "raw": b"xx"}, 80)
    'title: Oslo · legs: [(from: BER)] · raw: 2 bytes'
    """
    return in_one_line(_joined(_words(value, " · "), limit), limit)


def message_of(value: Any, limit: int) -> str:
    """What a value says, with its lines as they are.

    >>> message_of({"message": {"content": [{"type": "text", "text": "a\\nb"}, {"type": "image"}]}}, 80)
    'a\\nb\\n[image]'
    """
    said = _said(value, _DEEP)
    found = None if said is None else _parsed(said)
    if found is not None:
        value, said = found, _said(found, _DEEP)
    return _cut(_joined(_words(value, " · "), limit) if said is None else in_lines(said, limit + 1), limit)


def trace_line(trace: Trace, limit: int) -> str:
    """What a trace is about, without the name of its type and its tool, in one line."""
    body = trace.body
    if isinstance(body, ToolCall):
        text = line_of(body.arguments, limit) if body.arguments not in (None, {}, []) else ""
        if body.result is not None:
            text = f"{text} → {line_of(body.result, limit)}".strip()
        return text
    if isinstance(body, Decision):
        why = "" if body.reasoning is None else f", because {line_of(body.reasoning, limit)}"
        return f"{line_of(body.question, limit)} → {line_of(body.chosen, limit)}{why}"
    if isinstance(body, Query):
        found = f"{body.results_count:,} results"
        return f"{line_of(body.query_type, limit)}: {line_of(body.query, limit)} → {found}"
    if isinstance(body, Thought):
        sure = "" if body.confidence is None else f" (confidence {line_of(body.confidence, limit)})"
        return line_of(body.content, limit) + sure
    if isinstance(body, ErrorTrace):
        return f"{line_of(body.error_type, limit)}: {line_of(body.message, limit)}"
    assert isinstance(body, Custom)
    return line_of(body.data, limit)


def in_one_line(text: str, limit: int) -> str:
    """A text with its white space made single spaces.

    >>> in_one_line(" a\\n  b c", 3)
    'a b…'
    """
    return _cut(plain(" ".join(text[: 4 * limit + 4].split())), limit)


def in_lines(text: str, limit: int) -> str:
    """A text of several lines with what does not show as itself escaped, cut at so many characters."""
    start = text[:limit].replace("\r\n", "\n").expandtabs(4)
    return "\n".join(plain(line) for line in start.split("\n"))


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit].rstrip() + ELLIPSIS


# --- envelopes ----------------------------------------------------------------------------------


def _said(value: Any, depth: int) -> str | None:
    """The text that a message is about; None if there is no message."""
    if isinstance(value, str):
        return value
    if depth == 0 or not value:
        return None
    if isinstance(value, list):
        return _parts(value, depth)
    if not isinstance(value, dict):
        return None
    for name in _ENVELOPES:
        if isinstance(value.get(name), dict):
            inner = _said(value[name], depth - 1)
            if inner is not None:
                return inner
    calls = _called(value)
    for name in _SAID:
        inner = _said(value[name], depth - 1) if isinstance(value.get(name), str | list) else None
        if inner:
            return f"{inner}\n{calls}" if calls else inner
    return calls or None


def _parts(parts: list[Any], depth: int) -> str | None:
    """The text of the parts of a message; None if it is a list of something else."""
    texts = []
    for part in parts[:64]:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            return None
        inner = _said(part, depth - 1)
        texts.append(f"[{part['type'][:40]}]" if inner is None else inner)
    return "\n".join(texts)


def _called(value: dict[str, Any]) -> str:
    """The calls of tools in a message, or that the value is itself."""
    if "arguments" in value and isinstance(value.get("name"), str):
        given = value["arguments"]
        found = _parsed(given) if isinstance(given, str) else given
        words = _joined(_words(given if found is None else found, ", "), _PARSED)
        return f"{value['name']}({words})"
    calls = value.get("tool_calls")
    if not isinstance(calls, list):
        return ""
    functions = [call.get("function") for call in calls[:64] if isinstance(call, dict)]
    return "\n".join(_called(one) for one in functions if isinstance(one, dict))


def _parsed(text: str) -> Any:
    """The list or dict that a text is in JSON; None if it is another text."""
    if text[:1] not in ("{", "[") or text[-1:] not in ("}", "]") or len(text) > _PARSED:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# --- words --------------------------------------------------------------------------------------


def _joined(pieces: Iterator[str], limit: int) -> str:
    parts: list[str] = []
    length = 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length > limit:
            break
    return "".join(parts)


def _words(value: Any, separator: str) -> Iterator[str]:
    """A value bit by bit: names and what they stand for. Values nest to 128, which is no danger."""
    if isinstance(value, dict) and value:
        for number, (name, item) in enumerate(value.items()):
            yield separator if number else ""
            yield f"{plain(str(name)[:_PARSED])}: "
            yield from _inner(item)
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield ", " if number else ""
            yield from _inner(item)
    elif isinstance(value, str):
        yield plain(" ".join(value[:_PARSED].split())) or "(empty)"
    elif isinstance(value, bytes):
        yield f"{len(value):,} bytes"
    elif isinstance(value, dict | list) or value is None:
        yield "none"
    else:
        yield json.dumps(value)


def _inner(value: Any) -> Iterator[str]:
    if isinstance(value, dict) and value:
        yield "("
        yield from _words(value, ", ")
        yield ")"
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        yield "["
        yield from _words(value, ", ")
        yield "]"
    else:
        yield from _words(value, ", ")
