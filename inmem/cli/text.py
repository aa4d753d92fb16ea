"""What is stored, as text that a terminal, or a program, can be given.

Invariant: nothing that this module returns makes a terminal do anything but
show it. What agents store is not to be trusted: a key may hold the sequence
that clears a screen, a value the mark that shows what follows backwards.
Whatever does not show as itself is shown as the escape that JSON has for it.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from rich.cells import cell_len, chop_cells

from inmem.errors import InvalidInputError

ELLIPSIS: Final = "…"
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhdw])\Z")
_MAX_US: Final = (1 << 63) - 1


# --- text ---------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """The text with all that does not show as itself escaped. Cost: about 1 ns a character.

    That is every control character, every mark of direction, join or width
    that has no width itself, line separators, and what Unicode has not given
    a meaning yet. Spaces of all widths stay.

    >>> plain("red \\x1b[31m, backwards \\u202e, next\\nline, fine é 漢")
    'red \\\\u001b[31m, backwards \\\\u202e, next\\\\nline, fine é 漢'
    """
    if text.isprintable():
        return text
    return "".join([c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text])


def _escape(character: str) -> str:
    if character == "\n":
        return "\\n"
    if character == "\t":
        return "\\t"
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def fitted(text: str, cells: int) -> str:
    """The text in at most so many cells of a terminal, with an ellipsis if it is longer.

    >>> fitted("planning", 8), fitted("planning", 5)
    ('planning', 'plan…')
    """
    # A character is at most two cells wide, or none: looking at more of them is never needed.
    start = text[: 4 * cells + 4]
    if len(start) == len(text) and cell_len(text) <= cells:
        return text
    parts = chop_cells(start, max(1, cells - 1))
    return (parts[0] if parts and cells > 1 else "") + ELLIPSIS


def padded(text: str, cells: int, *, right: bool = False) -> str:
    """The text in exactly so many cells."""
    text = fitted(text, cells)
    space = " " * (cells - cell_len(text))
    return space + text if right else text + space


# --- values -------------------------------------------------------------------------------------


def one_line(value: Any, limit: int | None = None) -> tuple[str, bool]:
    """A value as JSON in one line, bytes as Python writes them; whether it was cut at `limit` characters.

    Cost: that of what is shown, not of the whole value.

    >>> one_line({"plan": ["search", 1, None], "raw": b"\\x00x"})
    ('{"plan": ["search", 1, null], "raw": b\\'\\\\x00x\\'}', False)
    >>> one_line("a long story", 7)
    ('"a long', True)
    """
    return _joined(_pieces(value, limit, None, ""), limit)


def indented(value: Any, limit: int | None = None) -> tuple[str, bool]:
    """A value as JSON over several lines."""
    return _joined(_pieces(value, limit, "  ", "\n"), limit)


def _joined(pieces: Iterator[str], limit: int | None) -> tuple[str, bool]:
    parts: list[str] = []
    length = 0
    for piece in pieces:
        if limit is not None and length + len(piece) > limit:
            return "".join(parts) + piece[: limit - length], True
        parts.append(piece)
        length += len(piece)
    return "".join(parts), False


def _pieces(value: Any, limit: int | None, step: str | None, line: str) -> Iterator[str]:
    """The text of a value, bit by bit. Values nest to 128, which is no danger to recursion."""
    if isinstance(value, dict | list) and value:
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        inner = line if step is None else line + step
        separator = ", " if step is None else ","
        yield opening
        names = iter(value) if isinstance(value, dict) else iter(())
        for number, item in enumerate(value.values() if isinstance(value, dict) else value):
            yield (separator if number else "") + inner
            if isinstance(value, dict):
                yield f"{_scalar(next(names), limit)}: "
            yield from _pieces(item, limit, step, inner)
        yield line + closing
    elif isinstance(value, dict | list):
        yield "{}" if isinstance(value, dict) else "[]"
    else:
        yield _scalar(value, limit)


def _scalar(value: Any, limit: int | None) -> str:
    if isinstance(value, str | bytes):
        if limit is not None and len(value) > limit:
            value = value[: limit + 1]
        return repr(value) if isinstance(value, bytes) else plain(json.dumps(value, ensure_ascii=False))
    return json.dumps(value)


# --- time ---------------------------------------------------------------------------------------


def moment_us(text: str, now_us: int, argument: str) -> int:
    """A time that a user names, microseconds: `10m` (ago), a date, a date and time, or microseconds.

    Without a zone it is local time.

    >>> moment_us("1.5m", 100_000_000, "since")
    10000000
    >>> moment_us("1970-01-01T00:00:01+00:00", 0, "since")
    1000000

    Raises:
        InvalidInputError: it is none of these.
    """
    ago = _AGO.match(text)
    if ago:
        return max(0, now_us - round(float(ago[1]) * _UNITS[ago[2]] * 1e6))
    try:
        if text.isascii() and text.isdigit() and len(text) > 8:
            return min(int(text[:20]), _MAX_US)
        return max(0, _to_us(datetime.fromisoformat(text).astimezone()))
    except (ValueError, OverflowError, OSError):
        raise InvalidInputError(
            f"{argument} {text[:80]!r} is no time", argument=argument,
            hint="Name a span (90s, 10m, 2h, 3d) or a time (2026-07-01, 2026-07-01T12:30).",
        ) from None


def _to_us(when: datetime) -> int:
    return (when - datetime.fromtimestamp(0, when.tzinfo)) // timedelta(microseconds=1)


def _local(us: int) -> datetime | None:
    """Local time; None if it is beyond what calendars here can say."""
    try:
        return datetime.fromtimestamp(us // 1_000_000).replace(microsecond=us % 1_000_000)
    except (ValueError, OverflowError, OSError):
        return None


def full_time(us: int) -> str:
    """Date and time, to the millisecond; what lies beyond year 9999 in microseconds."""
    local = _local(us)
    return f"{us} µs" if local is None else local.isoformat(" ", "milliseconds")


def short_time(us: int, now_us: int) -> str:
    """A time in at most 11 characters: the less near, the less exact."""
    local, now = _local(us), _local(now_us)
    if local is None or now is None:
        return fitted(f"{us} µs", 11)
    if local.date() == now.date():
        return local.strftime("%H:%M:%S")
    return local.strftime("%m-%d %H:%M") if local.year == now.year else local.date().isoformat()


def day(us: int) -> str:
    """The date."""
    local = _local(us)
    return "another age" if local is None else local.date().isoformat()


def clock(us: int) -> str:
    """The time of day, to the millisecond, in 12 characters."""
    local = _local(us)
    return padded(f"{us} µs", 12) if local is None else local.time().isoformat("milliseconds")


def span(seconds: float) -> str:
    """A duration in at most 7 characters.

    >>> [span(s) for s in (0.0000004, 0.0123, 4.2, 75, 7300, 200_000)]
    ['0 µs', '12.3 ms', '4.2 s', '1m15s', '2h01m', '2d07h']
    """
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.09995 else f"{seconds * 1e3:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86_400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02}h" if whole < 86_400 * 1000 else "years"
