"""The operations that are measured, the same for every store. Each builds a `Work`; see `bench.measuring`.

What is written differs from one operation to the next and follows from its
number, so that a check can tell what the store has to hold afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from bench.measuring import BenchError, Work
from bench.peers import Client

KEYS = 10_000
VALUE_BYTES = 50
_OWN_KEYS = 1009  # that one process puts; prime, so that keys and values meet in ever new pairs
_ITEMS = 4 * _OWN_KEYS
_LOOKED_AT = 100  # entries that a check reads
_CHUNK = 1000
MANY = 100


def key(number: int) -> str:
    """The name of a loaded entry."""
    return f"key-{number:08}"


def value(number: int) -> str:
    """50 bytes that tell their number."""
    return f"{number:010}".ljust(VALUE_BYTES, "x")


def load(client: Client, count: int = KEYS, first: int = 0) -> None:
    """Write `count` entries, many at a time."""
    for start in range(first, first + count, _CHUNK):
        client.put_many({key(n): value(n) for n in range(start, min(start + _CHUNK, first + count))})


def _expect(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise BenchError(f"{what}: found {found!r:.200} instead of {expected!r:.200}")


def get(client: Client, index: int, keys: int = KEYS) -> Work:
    """Read one of the loaded entries after the other, in random order."""
    chosen = random.Random(index).choices(range(keys), k=min(keys, 50_000))
    order = [key(n) for n in chosen]
    expected = dict(zip(order, map(value, chosen), strict=True))

    def check(_: int) -> None:
        for name in order[:_LOOKED_AT]:
            _expect(name, client.get(name), expected[name])

    return Work(client.get, order, lambda name, found: found == expected[name], check)


def put(client: Client, index: int, keys: int = 0) -> Work:
    """Write one entry; of keys of this process, or of the `keys` that are loaded, with what they hold."""
    if keys:
        chosen = random.Random(~index).choices(range(keys), k=min(keys, 50_000))
        pairs = [(key(n), value(n)) for n in chosen]
    else:
        pairs = [(f"own-{index}-{n % _OWN_KEYS:04}", value(n)) for n in range(_ITEMS)]
    write = client.put

    def check(done: int) -> None:
        for n in range(max(0, done - _LOOKED_AT), done):
            name, expected = pairs[n % len(pairs)]
            _expect(name, client.get(name), expected)

    return Work(lambda pair: write(pair[0], pair[1]), pairs, None, check)


def pressure(client: Client, index: int) -> Work:
    """Puts, as load for what another process measures."""
    return put(client, index)


def put_many(client: Client, index: int) -> Work:
    """Write a hundred entries at once; each counts."""
    return _many(client, index, client.put_many)


def pipeline(client: Client, index: int) -> Work:
    """Write a hundred entries as so many writes of which none waits for another; each counts."""
    return _many(client, index, client.pipeline)


def _many(client: Client, index: int, write: Callable[[Mapping[str, str]], Any]) -> Work:
    batches = [
        {f"many-{index}-{n % 7}-{i:03}": value(n * MANY + i) for i in range(MANY)} for n in range(7 * 5)
    ]

    def check(done: int) -> None:
        for n in range(max(0, done - 3), done):
            for name, expected in batches[n % len(batches)].items():
                _expect(name, client.get(name), expected)

    return Work(write, batches, None, check, weight=MANY)


def append(client: Client, index: int, log: str = "log") -> Work:
    """Append to one log, which all processes share."""
    return Work(
        lambda payload: client.append(log, payload), [value(n) for n in range(_ITEMS)],
        total=lambda: client.log_length(log),
    )


def cas(client: Client, index: int) -> Work:
    """Replace a cell of one's own, with the version that the last replacement gave."""
    name = f"cell-{index}"
    values = [value(n) for n in range(_ITEMS)]
    version = client.cell(name, "first")
    exchange = client.cas

    def operation(new: str) -> None:
        nonlocal version
        version = exchange(name, version, new)

    def check(done: int) -> None:
        _expect(name, client.cell_value(name), values[(done - 1) % len(values)])

    return Work(operation, values, None, check)


def trace(client: Client, index: int) -> Work:
    """Record a trace with two tags."""
    tags = [f"tag-{index}", "all"]
    return Work(
        lambda content: client.trace(content, tags), [value(n) for n in range(_ITEMS)],
        total=lambda: client.traces("all"),
    )


def step(client: Client, index: int) -> Work:
    """One transaction over a value, an event, a cell and a trace."""
    return Work(client.step, [value(n) for n in range(_ITEMS)], total=client.steps)


def increment(client: Client, index: int, shared: bool = False) -> Work:
    """Read, add one, write: a number of one's own, or everybody's."""
    name = "number" if shared else f"number-{index}"
    return Work(client.increment, [name], total=lambda: client.number(name))


def transition(client: Client, index: int) -> Work:
    """Everybody changes one cell."""
    client.transition_number("contended")
    return Work(
        client.transition, ["contended"], total=lambda: client.transition_number("contended")
    )
