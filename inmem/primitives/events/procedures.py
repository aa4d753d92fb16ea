"""Procedures of events: an event gets its sequence, time and hash from the log as it is at the commit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit.arguments import check_name, check_time, check_type
from inmem.commit.footprint import Footprint, Looks
from inmem.commit.workspace import Workspace
from inmem.config import MAX_TRANSACTION_OPS
from inmem.errors import InvalidInputError, InvariantError, LimitError
from inmem.keys import MAX_KEY_BYTES, MAX_LABEL_BYTES, TypeTag, encode_sequence, range_of
from inmem.primitives.events import rules as event_log
from inmem.primitives.importing import importing_records, parts
from inmem.values import DamagedValueError

_LAST: Final = (1 << 63) - 1
_MAX_PREFIX_BYTES: Final = MAX_KEY_BYTES - MAX_LABEL_BYTES - 11  # NUL, tag, NUL and sequence of the index


def append(workspace: Workspace, prefix: bytes, items: list[Any]) -> list[Any]:
    """Append `[type, payload, timestamp (0: now)]` items to a log: `[first sequence, [hash, ...]]`."""
    check_type("prefix", prefix, bytes)
    if not prefix or 0 in prefix or len(prefix) > _MAX_PREFIX_BYTES:
        raise InvalidInputError("prefix is empty, too long or has NUL", argument="prefix")
    check_type("items", items, list)
    if len(items) > MAX_TRANSACTION_OPS:  # each is two writes: one call must not outgrow a transaction
        raise LimitError(
            f"{len(items)} events of one append, the limit is {MAX_TRANSACTION_OPS}",
            what="events of one append", size=len(items), limit=MAX_TRANSACTION_OPS,
        )
    if len(items) > 1:
        workspace.expect(2 * len(items))
    log = b"%b\0%c" % (prefix, TypeTag.EVENT)
    workspace.check_open(log)
    head = last_event(workspace, prefix)
    first = 0 if head is None else head.sequence + 1
    hashes = []
    index = []
    places: dict[bytes, bytes] = {}  # in the index, of the types that have passed
    chain, now_us, put = workspace.chain, workspace.stamp_us, workspace.put
    for item in items:
        if type(item) is not list or len(item) != 3:
            raise InvalidInputError("items must be [type, payload, timestamp]", argument="items")
        event_type, payload, timestamp = item
        check_type("payload", payload, bytes)
        if type(event_type) is not bytes or event_type not in places:
            check_name(event_type, MAX_LABEL_BYTES, "event_type")
            places[event_type] = b"%b\0%c%b\0" % (prefix, TypeTag.EVENT_BY_TYPE, event_type)
        head = event_log.follow(head, chain, check_time(timestamp) or now_us, event_type, payload)
        sequence = encode_sequence(head.sequence)
        put(log + sequence, event_log.pack(head))
        index.append(places[event_type] + sequence)
        hashes.append(head.hash)
    workspace.put_index(index)
    return [first, hashes]


def footprint(prefix: bytes, *_: Any) -> Footprint:
    """Of an append: the whole log, for where an event goes depends on all before it."""
    return _log_footprint(prefix)


@functools.lru_cache(maxsize=256)  # each append in a transaction asks
def _log_footprint(prefix: bytes) -> Footprint:
    return Footprint.of(range_of(prefix, TypeTag.EVENT), range_of(prefix, TypeTag.EVENT_BY_TYPE))


def looks(prefix: bytes, *_: Any) -> Looks:
    """Of an append: the head of the log."""
    return Looks(ends=(range_of(prefix, TypeTag.EVENT),))


def last_event(workspace: Workspace, prefix: bytes) -> event_log.StoredEvent | None:
    """The head of a log."""
    found = workspace.last(*range_of(prefix, TypeTag.EVENT))
    if found is None:
        return None
    key, payload = found
    sequence = int.from_bytes(key[-8:], "big")
    if sequence >= _LAST:  # none of ours
        raise DamagedValueError(f"no event can follow one of number {sequence}")
    return event_log.unpack(sequence, payload)


def import_events(
    workspace: Workspace, prefix: bytes, token: bytes, chain: int, first: int, items: list[Any]
) -> None:
    """Events from sequence `first` on: `[type, payload, timestamp, hash]`; each has to follow the one before.

    `chain` is the number of the log's hash; it is the same in all of a log.
    """
    with importing_records(workspace, prefix, token, "events", items) as mark:
        if chain not in event_log.CHAIN_IDS.values():
            raise InvalidInputError(f"there is no chain {chain!r:.20}", argument="chain")
        following = mark.counts.get("events", 0)
        if first != following:
            raise InvariantError(f"event {first!r:.20} does not follow: {following} is next")
        head = last_event(workspace, prefix) if first else None
        for number, item in enumerate(items):
            event_type, payload, timestamp, digest = parts(item, 4)
            check_name(event_type, MAX_LABEL_BYTES, "event_type")
            check_type("payload", payload, bytes)
            check_type("hash", digest, bytes)
            event = event_log.StoredEvent(
                first + number, chain, check_time(timestamp), event_type,
                event_log.NO_HASH if head is None else head.hash, digest, payload,
            )
            problem = event_log.problem_with(head, event)
            if problem is not None:
                raise InvariantError(f"event {event.sequence} breaks the chain: {problem}")
            workspace.put(event_log.event_key(prefix, event.sequence), event_log.pack(event))
            workspace.put_index([event_log.index_key(prefix, event_type, event.sequence)])
            head = event


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "event.append": append,
    "import.events": import_events,
}

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {"event.append": footprint}
LOOKS: Final[Mapping[str, Callable[..., Looks]]] = {"event.append": looks}
