"""Taking one of many entries: the first whose row of `buckets` nobody has locked, with all that it names.

Lock and look are one statement here, which is right only if what it looks at is as it
was locked: so it tells of which version the row was when it looked, and when it locked.
"""

from __future__ import annotations

import functools
from typing import Final, NamedTuple

from inmem.commit.footprint import NAME_BYTES, Takes
from inmem.engines.postgres.asking import Ask, Row, Statement
from inmem.engines.postgres.buckets import STRIPES, head_of_stripes
from inmem.engines.postgres.connections import CLOCK
from inmem.engines.postgres.known import KnownState, Window

_NEAR: Final = STRIPES + 1  # entries that are tried: of consecutive numbers each is of another stripe
_STRIPE: Final = f"$3 || set_byte('\\x00', 0, get_byte(key, length(key) - 1) % {STRIPES})"
# One of those that the first entries are in: else who comes last would get what comes last.
_LOCK: Final = Statement(
    f"select from buckets where state = 0 and bucket = (select {_STRIPE} from (select key from records"
    f" where key >= $1 and key < $2 order by key limit {_NEAR}) w order by random() limit 1) for update",
    "bbb",
)


class TakenEntry(NamedTuple):
    """An entry that was taken, and what is known of it: nobody can change that before this has committed."""

    row: bytes
    version: int  # of the row
    waiting_us: int
    clock_us: int
    records: dict[bytes, bytes | None]
    windows: list[Window]
    is_current: bool  # else it was looked at before it was locked

    def state(self) -> KnownState:
        """What a procedure may look at."""
        return KnownState(self.records, self.windows)


def asked(takes: Takes, *, waits: bool = False) -> list[Ask]:
    """The statements: take the first entry of a free stripe; or wait for a stripe before, so that one is."""
    start, end = takes.entries
    place = start, end, head_of_stripes(start)
    ranges = [key for each in takes.beside for key in each]
    take = _statement(len(takes.heads), len(takes.beside), waits), (*place, *takes.heads, *ranges)
    return [(_LOCK, place), take] if waits else [take]


def taken(takes: Takes, found: list[Row]) -> TakenEntry | None:
    """What was found, if there was an entry to take."""
    if not found:
        return None
    row, version, seen, waiting_us, clock_us, entry, record, following, its_record, *more = found[0]
    end = entry[-NAME_BYTES:]
    records = {head + end: more[n] for n, head in enumerate(takes.heads)}
    window = Window(*takes.entries, False)
    window.items = [(entry, record)] if following is None else [(entry, record), (following, its_record)]
    window.is_whole = following is None
    windows = [window]
    for n, place in enumerate(takes.beside):
        key, its_record = more[len(takes.heads) + 2 * n :][:2]
        window = Window(*place, False)
        window.add([] if key is None else [(key, its_record)], 1)
        windows.append(window)
    return TakenEntry(row, version, waiting_us, clock_us, records, windows, seen == version)


@functools.lru_cache(maxsize=16)
def _statement(heads: int, beside: int, waits: bool) -> Statement:
    at = 4
    near = 2 * _NEAR if waits else _NEAR  # the next one of a stripe is that much further
    named, joined = "", ""
    for n in range(heads):
        named += f", (select record from records where key = ${at + n} || l.name)"
    at += heads
    for n in range(beside):
        named += f", f{n}.key, f{n}.record"
        joined += (
            " left join lateral (select key, record from records"
            f" where key >= ${at + 2 * n} and key < ${at + 2 * n + 1} order by key limit 1) f{n} on true"
        )
    return Statement(
        f"with l as materialized (select w.*, substr(w.key, length(w.key) - {NAME_BYTES - 1}) as name,"
        " b.bucket, b.version, b.waiting"
        f" from (select key, record, {_STRIPE} as bucket from records"
        f" where key >= $1 and key < $2 order by key limit {near}) w (key, record, of)"
        " join buckets b on b.bucket = w.of where b.state = 0 order by w.key limit 1"
        " for update of b skip locked)"
        " select l.bucket, l.version, (select version from buckets b where b.bucket = l.bucket), l.waiting,"
        f" {CLOCK}, l.key, l.record, n.key, n.record{named}"
        " from l left join lateral (select key, record from records where key > l.key and key < $2"
        f" order by key limit 1) n on true{joined}",
        "bbb" + "b" * heads + "bb" * beside, "biiiibbbb" + "b" * heads + "bb" * beside,
    )
