"""Values of the store as attributes of spans, and attributes as values of the store."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from inmem.adapters.otel.names import is_content

CONTENT_CHARS: Final = 16_384  # of one attribute with content that is sent
STORED_CHARS: Final = 1_000_000  # of one text in an attribute that is recorded
_CUT: Final = "…"
_INT64: Final = range(-(1 << 63), 1 << 63)


def as_text(value: Any) -> str:
    """A value for people and programs: a string is itself, all else JSON; cut after `CONTENT_CHARS`."""
    text = value if isinstance(value, str) else _json(value)
    return text if len(text) <= CONTENT_CHARS else text[: CONTENT_CHARS - 1] + _CUT


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_encoded, separators=(",", ":"))


def _encoded(data: bytes) -> str:
    """Bytes in JSON."""
    return base64.b64encode(data).decode()


def passed_on(metadata: Mapping[str, Any], *, content: bool) -> dict[str, Any]:
    """The entries of metadata that are attributes of the GenAI conventions already."""
    return {
        name: value for name, value in metadata.items()
        if name.startswith("gen_ai.") and _is_attribute(value) and (content or not is_content(name))
    }


def _is_attribute(value: Any) -> bool:
    if isinstance(value, list):
        kinds = {type(each) for each in value}
        return len(kinds) <= 1 and kinds <= {str, bool, int, float}
    return isinstance(value, str | bool | int | float)


def without_content(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes but for prompts, arguments, results and the like."""
    return {name: value for name, value in attributes.items() if not is_content(name)}


def stored(value: Any) -> Any:
    """An attribute as the store takes it; what has no place there becomes text."""
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, str):
        value = value.encode("utf-8", "backslashreplace").decode()  # lone surrogates, which UTF-8 lacks
        return value if len(value) <= STORED_CHARS else value[: STORED_CHARS - 1] + _CUT
    if isinstance(value, int):
        return value if value in _INT64 else str(value)
    if isinstance(value, Mapping):
        return {stored(str(name)): stored(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [stored(item) for item in value]
    return stored(str(value))


def restored(value: Any) -> Any:
    """The attribute that was stored so."""
    if isinstance(value, list):
        return tuple(restored(item) for item in value)
    if isinstance(value, dict):
        return {name: restored(item) for name, item in value.items()}
    return value
