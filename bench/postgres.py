"""What does inmem cost on PostgreSQL, beside SQL by hand? `python -m bench.postgres`

On one server that commits to its disk, by 1 to 64 processes: each in a run of
its own, and all in one. Where SQL has no such thing it is an upsert that is
compared: of a put, an event, a cell and a transaction that reads and writes.
`--delays 1,10` has a network too, whose round trips take so many milliseconds.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from bench.harness import Options, bench, main
from bench.measuring import Work
from bench.peers import Client
from bench.queues import done

OURS: Final = "inmem on postgresql"
BY_HAND: Final = "sql by hand"
COUNTS: Final = (1, 8, 16, 64)
QUICK_COUNTS: Final = (1, 8)
DELAYS_MS: Final = (1, 10)
KEYS: Final = 500
MANY: Final = 100
VALUE: Final = "v" * 100
PUT, HOT, GET = "kv put", "kv put, one run", "kv get"
PUT_MANY: Final = f"kv put, {MANY} at once"
EVENTS: Final = 20
APPEND, APPEND_MANY = "event append", f"events into one log, {EVENTS} in a pipeline"
CAS, MODIFY, DONE = "cell cas", "transaction: read, modify, write", "job claimed and acked"


def label(operation: str, count: int) -> str:
    """The name of a row."""
    return f"{operation}, {count} processes" if count > 1 else operation


def _keys(index: int, is_hot: bool) -> list[str]:
    run = "hot" if is_hot else f"run-{index}"
    return [f"{run}/{index:03}-{n:04}" for n in range(KEYS)]


def _put(client: Client, index: int, is_hot: bool) -> Work:
    return Work(lambda key: client.put(key, VALUE), _keys(index, is_hot))


def _get(client: Client, index: int) -> Work:
    keys = _keys(index, False)
    client.put_many(dict.fromkeys(keys, VALUE))
    return Work(client.get, keys, lambda _, found: found == VALUE)


def _put_many(client: Client, index: int) -> Work:
    return Work(client.put_many, [dict.fromkeys(_keys(index, False)[:MANY], VALUE)], weight=MANY)


def _append(client: Client, index: int) -> Work:
    return Work(lambda log: client.append(log, VALUE), [f"log-{index}"])


def _append_many(client: Client, index: int) -> Work:
    values = [VALUE] * EVENTS
    return Work(lambda log: client.append_many(log, values), ["log-hot"], weight=EVENTS)  # type: ignore[attr-defined]


def _cas(client: Client, index: int) -> Work:
    name = f"run-{index}/cell"
    at = [client.cell(name, VALUE)]

    def exchange(_: Any) -> None:
        at[0] = client.cas(name, at[0], VALUE)

    return Work(exchange, [None])


def _modify(client: Client, index: int, is_hot: bool) -> Work:
    return Work(client.increment, ["hot/number" if is_hot else f"run-{index}/number"])


def run(options: Options) -> dict[str, Any]:
    """Each operation, by each number of processes."""
    counts = QUICK_COUNTS if options.quick else COUNTS
    delays = () if options.quick else DELAYS_MS
    subjects = [OURS, BY_HAND]
    far = [f"{name}, {delay} ms away" for delay in delays for name in subjects]
    with bench("postgres", "what does inmem cost on PostgreSQL?", options, (*subjects, *far), OURS) as b:
        if OURS not in b.subjects:
            return b.document()
        for count in counts:
            waiting = options.size(4000, 500) * min(count, 8)
            for operation, build, arguments in (
                (PUT, _put, (False,)), (HOT, _put, (True,)), (GET, _get, ()), (PUT_MANY, _put_many, ()),
                (APPEND, _append, ()), (APPEND_MANY, _append_many, ()), (CAS, _cas, ()),
                (MODIFY, _modify, (False,)), (DONE, done, (waiting,)),
            ):
                b.cases(label(operation, count), build, *arguments, subjects=subjects, processes=count)
        for delay in delays:
            pair = [f"{name}, {delay} ms away" for name in subjects]
            for operation, build, arguments in ((PUT, _put, (False,)), (APPEND, _append, ()),
                                                (GET, _get, ()), (MODIFY, _modify, (False,))):
                name = f"{operation}, {delay} ms away"
                b.cases(name, build, *arguments, subjects=pair)
        b.rounds()
        for delay in delays:
            for operation in (PUT, APPEND, GET, MODIFY):
                name = f"{operation}, {delay} ms away"
                ours, theirs = (b.found(name, f"{each}, {delay} ms away") for each in subjects)
                b.figure(f"{name}: x {BY_HAND}", *(
                    a.rate / c.rate for a, c in zip(ours, theirs, strict=True) if a and c
                ))  # fmt: skip
        return b.document()


if __name__ == "__main__":
    sys.exit(main("postgres", __doc__, run))
