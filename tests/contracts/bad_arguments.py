"""Arguments of every wrong kind, and what a method says of them."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import inmem
from inmem.config import MAX_TTL_S


class Opaque:
    """An object of the user's, whose repr does not even work."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


HUGE = 10**5000  # Python refuses to print it
NO_STR = [None, 7, 1.5, True, b"bytes", [], {}, ("t",), HUGE, -HUGE, Opaque(), object]
BAD_RUNS = [*NO_STR, "", " ", "a/b", "r\u00e9", "r\n", "x" * 65, "@agent", "x" * 10**6, "\ud800"]
BAD_NAMES = [*NO_STR, "", "\0", "a\0b", "\ud800", "x" * 321, "\u00e9" * 161, "x" * 10**6]
BAD_LABELS = [*NO_STR, "", "\0", "\ud800", "x" * 129, "\u00e9" * 65]
BAD_PREFIXES = [x for x in BAD_NAMES if x is not None and x != ""]
BAD_VALUES = [
    (1, 2),
    {1},
    object(),
    Opaque(),
    HUGE,
    1 << 63,
    -(1 << 63) - 1,
    {1: 2},
    {b"k": 1},
    bytearray(b"x"),
    "\ud800",
    [[(1,)]],
    {"a": {"b": {3}}},
    1j,
    decimal.Decimal(1),
    timedelta(1),
    len,
    int,
]
BAD_TTLS = [
    0,
    -1,
    0.0,
    -0.5,
    math.nan,
    math.inf,
    -math.inf,
    True,
    False,
    HUGE,
    -HUGE,
    MAX_TTL_S + 1,
    "10",
    b"10",
    [],
    {},
    timedelta(0),
    timedelta(seconds=-1),
    timedelta.max,
    decimal.Decimal(1),
    1j,
    Opaque(),
]
BAD_LIMITS = [-1, -HUGE, 1.0, True, False, "1", b"1", [], math.nan, Opaque()]
BAD_SEQUENCES = [None, -1, 1 << 63, HUGE, -HUGE, 1.0, True, "0", b"0", [], Opaque()]
BAD_NUMBERS = [None, True, "1", b"1", [], {}, 1 << 63, -(1 << 63) - 1, HUGE, 1j, decimal.Decimal(1), Opaque()]
BAD_ENDS = [x for x in BAD_SEQUENCES if x is not None]
BAD_KEYS = [
    None,
    7,
    "text",
    b"bytes",
    [1],
    [None],
    [b"k"],
    [""],
    ["ok", "a\0b"],
    [["k"]],
    [HUGE],
    True,
    Opaque(),
]
BAD_MAPPINGS = [
    None, 7, "text", [("k", 1)], {1: 1}, {None: 1}, {b"k": 1}, {"": 1}, {"ok": 1, "a\0": 1}, {"k": {1}},
    {"ok": 1, "k": HUGE}, {("t",): 1}, Opaque(),
]
BAD_FIELDS = [
    None, 7, "text", [("k", 1)], {1: 1}, {None: 1}, {b"k": 1}, {"k": {1}}, {"ok": 1, "k": HUGE}, {("t",): 1},
    {"\ud800": 1}, Opaque(),
]
BAD_EVENTS = [
    None,
    7,
    "text",
    b"bytes",
    ["ab"],
    [1],
    [None],
    [("t",)],
    [("t", 1, 2)],
    [("", 1)],
    [("t", {1})],
    [(1, 1)],
    [("ok", 1), ("\0", 1)],
    [{"t": 1}],
    [("x" * 129, 1)],
    True,
    Opaque(),
]
BAD_ANCHORS = [
    7, "text", b"x", (), (1,), (1, 2, 3), (0, "x" * 32), (0, b"x"), (-1, bytes(32)), (1.0, bytes(32)),
    (None, bytes(32)), (0, None), {}, {0: 1, 2: 3}, True, Opaque(), HUGE,
]
BAD_TIMEOUTS = [
    0,
    -1,
    0.0,
    math.nan,
    math.inf,
    True,
    "1",
    b"1",
    [],
    HUGE,
    -HUGE,
    1e10,
    timedelta(0),
    timedelta.max,
    Opaque(),
]
BAD_DURABILITIES = [7, "", "SYNC", "fast", b"sync", [], True, HUGE, Opaque()]
BAD_ATTEMPTS = [None, 0, -1, 1.0, True, "1", HUGE * -1, math.nan, [], Opaque()]

# facade, method, good arguments, {argument: bad values}
KV_READS = [
    ("get", {"key": "k"}, {"key": BAD_NAMES}),
    ("get_versioned", {"key": "k"}, {"key": BAD_NAMES}),
    ("exists", {"key": "k"}, {"key": BAD_NAMES}),
    ("ttl", {"key": "k"}, {"key": BAD_NAMES}),
    ("get_many", {"keys": ["k"]}, {"keys": BAD_KEYS}),
    ("count", {"prefix": "k"}, {"prefix": BAD_PREFIXES}),
    *[
        (
            name,
            {"prefix": "k", "start_after": "zz"},
            {
                "prefix": BAD_PREFIXES,
                "limit": BAD_LIMITS,
                "start_after": [x for x in BAD_NAMES if x is not None],
            },
        )
        for name in ("list", "list_with_values", "list_versioned")
    ],
    ("iter", {}, {"prefix": BAD_PREFIXES, "start_after": [x for x in BAD_NAMES if x is not None]}),
]
KV_WRITES = [
    ("put", {"key": "k", "value": 1}, {"key": BAD_NAMES, "value": BAD_VALUES, "ttl": BAD_TTLS}),
    ("put_with_ttl", {"key": "k", "value": 1, "ttl": 9},
     {"key": BAD_NAMES, "value": BAD_VALUES, "ttl": [None, *BAD_TTLS]}),
    ("put_many", {"mapping": {"k": 1}}, {"mapping": BAD_MAPPINGS, "ttl": BAD_TTLS}),
    ("add", {"key": "k"}, {"key": BAD_NAMES, "delta": BAD_NUMBERS, "initial": BAD_NUMBERS}),
    ("merge", {"key": "k", "fields": {"a": 1}}, {"key": BAD_NAMES, "fields": BAD_FIELDS}),
    ("delete", {"key": "k"}, {"key": BAD_NAMES}),
    ("discard", {"key": "k"}, {"key": BAD_NAMES}),
    ("clear", {}, {"prefix": BAD_PREFIXES}),
]
EVENT_READS = [
    ("read", {"sequence": 0}, {"sequence": BAD_SEQUENCES}),
    ("read_range", {"start": 0}, {"start": BAD_SEQUENCES, "end": BAD_ENDS, "limit": BAD_LIMITS}),
    ("iter", {"start": 0}, {"start": BAD_SEQUENCES, "event_type": [x for x in BAD_LABELS if x is not None]}),
    ("query_by_type", {"event_type": "t"},
     {"event_type": BAD_LABELS, "limit": BAD_LIMITS,
      "start_after": [x for x in BAD_SEQUENCES if x is not None]}),
    ("verify_chain", {}, {"anchor": BAD_ANCHORS}),
]
EVENT_WRITES = [
    ("append", {"event_type": "t"}, {"event_type": BAD_LABELS, "payload": BAD_VALUES}),
    ("append_many", {"events": [("t", 1)]}, {"events": BAD_EVENTS}),
]
BAD_SINCE = [x for x in BAD_SEQUENCES if x is not None]
KV_WAITS = [
    ("wait", {"key": "k", "after": 1}, {"key": BAD_NAMES, "after": BAD_SINCE, "timeout_s": BAD_TIMEOUTS}),
    ("watch", {}, {"prefix": BAD_PREFIXES, "since": BAD_SINCE, "timeout_s": BAD_TIMEOUTS}),
]
EVENT_WAITS = [
    ("follow", {},
     {"start": BAD_SEQUENCES, "event_type": [x for x in BAD_LABELS if x is not None],
      "timeout_s": BAD_TIMEOUTS}),
]
METHODS = {
    "facade": {"kv": KV_READS + KV_WRITES + KV_WAITS, "events": [
        ("head", {}, {}), ("count", {}, {}), *EVENT_READS, *EVENT_WRITES, *EVENT_WAITS]},
    "scope": {
        "kv": KV_READS + KV_WRITES + KV_WAITS, "events": EVENT_READS + EVENT_WRITES + EVENT_WAITS,
    },
    "transaction": {"kv": KV_READS + KV_WRITES, "events": EVENT_READS + EVENT_WRITES},
    "snapshot": {"kv": KV_READS, "events": EVENT_READS},
    "pipeline": {"kv": KV_WRITES, "events": EVENT_WRITES},
}


def refused(call: Callable[[], Any], argument: str, what: str = "") -> inmem.InmemError:
    """The error of a call, which must be ours and name the argument."""
    try:
        result = call()
    except inmem.InmemError as error:
        named = getattr(error, "argument", None) or getattr(error, "what", None) or ""
        assert argument in named or argument in str(error), (what, error)
        assert error.hint
        assert len(str(error)) < 500
        return error
    raise AssertionError(f"{what} was accepted: {result!r:.100}")


def shown(value: object) -> str:
    try:
        return repr(value)[:40]
    except Exception:
        return f"<{type(value).__name__}>"
