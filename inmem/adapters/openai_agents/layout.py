"""Where the items of a session are, and what they look like there.

A session is a run of its own: `RunId.from_external("session/" + its id)`, with
the tag `openai_agents`, and the id as it is in the metadata. In the run:

    session              {"first", "next"}: the first index that is in use, and the next new one
    i/<index>            an item, in the order of its adding
    p/<token>/<number>   parts of long items, see `inmem.adapters.foreign`

An index is given once: it is not used again when its item is gone. So an item
that is found under the same key is the same item. Entries before `first` are
of before the session was cleared, and about to be removed.

An item is stored as the value that its JSON stands for, which other programs
can read. One that cannot be a value as it is, or that is long, is stored as
the text of its JSON, `["json", bytes]` or in parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

import inmem
from inmem.adapters.foreign import Packed, foreign, unpacked

TAG: Final = "openai_agents"
STATE: Final = "session"
ITEMS: Final = "i/"
PARTS: Final = "p/"
UNREADABLE: Final = object()  # in place of an item: somebody else has written what is stored there

_JSON: Final = "json"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_MAX_DEPTH: Final = 100  # of a value, which may have a little more
_INTS: Final = range(-(1 << 63), 1 << 63)
_MANY_ITEMS: Final = 10**15  # all indices are below, and have 15 digits
_FLOATS_PER: Final = 40  # bytes of JSON with one float, or more, may come to more as a value than as JSON


def run_of(session_id: str) -> inmem.RunId:
    """The run of a session.

    Raises:
        InvalidInputError: the id is no text, empty, or has a lone surrogate.
    """
    if not isinstance(session_id, str) or not session_id or _SURROGATE.search(session_id):
        problem = "session_id must be a str with something in it, and without lone surrogates"
        raise inmem.InvalidInputError(f"{problem}, not {session_id!r:.80}", argument="session_id")
    return inmem.RunId.from_external(f"session/{session_id}")


def item_key(index: int) -> str:
    """Where the item of an index is."""
    return f"{ITEMS}{index:015}"


def stored_as(item: Any, name: str, packed: Packed) -> Any:
    """What is stored of an item; `name` is what errors call it.

    Raises:
        InvalidValueError: it cannot be JSON.
    """
    try:
        text = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise inmem.InvalidValueError(
            f"{name} cannot be JSON: {error}", argument="items",
            hint="Items are dictionaries of texts, numbers, lists and dictionaries.",
        ) from None
    try:
        data, is_text = text.encode(), True
    except UnicodeEncodeError:  # a lone surrogate: as a JSON escape it is kept
        data, is_text = json.dumps(item, separators=(",", ":")).encode(), False
    entry = packed.add(_JSON, data)
    value = _value_of(text) if is_text and len(entry) == 2 else None
    return entry if value is None else value


def _value_of(text: str) -> dict[str, Any] | None:
    """A JSON object as a value of the store; None if it would not come back, or be much larger than JSON."""
    numbers: list[float] = []
    wide: list[int] = []

    def number(digits: str) -> float:
        numbers.append(float(digits))
        return numbers[-1]

    def integer(digits: str) -> int:
        found = int(digits)
        if found not in _INTS:
            wide.append(found)
        return found

    value = json.loads(text, parse_float=number, parse_int=integer)
    if not isinstance(value, dict) or wide or len(numbers) * _FLOATS_PER > len(text):
        return None
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        inside = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for values in inside for each in values if isinstance(each, dict | list)]
        if not level:
            return value
    return None


def loaded(stored: Any, read: Callable[[str], Any]) -> Any:
    """The item that is stored, or `UNREADABLE`; `read` gives the part under a key."""
    if isinstance(stored, dict):
        return stored
    try:
        return json.loads(unpacked(stored, read)[1])
    except (inmem.CorruptionError, ValueError, RecursionError):  # a part is missing, or it is no JSON
        return UNREADABLE


def indices_in(state: Any) -> tuple[int, int]:
    """The first index of a session that is in use, and the next new one.

    Raises:
        CorruptionError: another program has stored something else there.
    """
    match state:
        case {"first": int() as first, "next": int() as following} if 0 <= first <= following < _MANY_ITEMS:
            return first, following
    raise foreign("the state of a session", state)
