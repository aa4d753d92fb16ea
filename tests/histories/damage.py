"""Ways to make a valid history invalid: each changes one thing, as one bug of a store would.

A function takes a history and its final state, which it may change, and says
which kinds of anomaly show the damage; an empty set if the history has no
place for it. One kind of several is enough: how much a damage shows depends on
who looked at what it hit.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

from workers.judge.history import OK, REFUSED, UNKNOWN
from workers.judge.serializability import ADD, APPEND, READ, VALUE, Txn

Final = dict[str, Any]
Damage = Callable[[list[Txn], Final, random.Random], set[str]]


def copied(txns: list[Txn], final: Final) -> tuple[list[Txn], Final]:
    """A history to damage: what is changed here is replaced, so steps and reads may be shared."""
    ends = {key: list(value) if isinstance(value, list) else value for key, value in final.items()}
    return [copy.copy(txn) for txn in txns], ends


def _reads(txns: list[Txn], least: int, *, versioned: bool = False) -> Iterator[tuple[Txn, int, Any]]:
    """Acknowledged reads of lists of some length, without appends of the same transaction."""
    for txn in txns:
        if txn.outcome == OK and (txn.version is not None or not versioned):
            own = {step[1] for step in txn.steps if step[0] == APPEND}
            for place, step in enumerate(txn.steps):
                if step[0] == READ and step[1] not in own and len(step[2]) >= least:
                    yield txn, place, step


def _pick(rng: random.Random, items: Iterator[Any]) -> Any:
    found = list(items)
    return rng.choice(found) if found else None


def _writers(txns: list[Txn]) -> dict[tuple[str, Any], Txn]:
    return {(step[1], step[2]): txn for txn in txns for step in txn.steps if step[0] == APPEND}


def _steps(txns: list[Txn], kind: str, *outcomes: str) -> Iterator[tuple[Txn, int, Any]]:
    for txn in txns:
        if txn.outcome in outcomes:
            for place, step in enumerate(txn.steps):
                if step[0] == kind:
                    yield txn, place, step


def _change(txn: Txn, place: int, value: Any) -> None:
    """Another value for what one step read; the same for every read of that object in the transaction."""
    _, key, old = txn.steps[place]
    txn.steps = [
        (step[0], key, value) if step[0] in (READ, VALUE) and step[1] == key and step[2] == old else step
        for step in txn.steps
    ]


def swap_two_elements(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    found = _pick(rng, _reads(txns, 2))
    if found is None:
        return set()
    txn, place, (_, _, elements) = found
    at = rng.randrange(len(elements) - 1)
    _change(txn, place, [*elements[:at], elements[at + 1], elements[at], *elements[at + 2 :]])
    return {"order"}


def read_without_the_first(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    found = _pick(rng, _reads(txns, 2))
    if found is None:
        return set()
    _change(found[0], found[1], found[2][2][1:])
    return {"order"}


def read_one_twice(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    found = _pick(rng, _reads(txns, 1))
    if found is None:
        return set()
    _change(found[0], found[1], [*found[2][2], rng.choice(found[2][2])])
    return {"duplicate"}


def read_what_nobody_wrote(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    found = _pick(rng, _reads(txns, 0))
    if found is None:
        return set()
    _change(found[0], found[1], [*found[2][2], "nobody's"])
    return {"garbage"}


def read_the_past(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """A read that misses the last append, as a stale snapshot or a skipped validation gives."""
    writers = _writers(txns)
    found = _pick(rng, (
        found for found in _reads(txns, 1, versioned=True)
        if writers[found[2][1], found[2][2][-1]].version is not None  # else it may have been later
    ))
    if found is None:
        return set()
    _change(found[0], found[1], found[2][2][:-1])
    return {"replay"}


def read_the_future(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """A read that sees an append of a later version."""
    writers = _writers(txns)

    def early() -> Iterator[Any]:
        for txn, place, step in _reads(txns, 0, versioned=True):
            after = final.get(step[1], [])[len(step[2]) :]
            writer = writers[step[1], after[0]] if after else None
            if writer is not None and writer.version is not None:
                yield txn, place, [*step[2], after[0]]

    found = _pick(rng, early())
    if found is None:
        return set()
    _change(*found)
    return {"replay"}


def lose_an_append(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """An acknowledged append is nowhere at the end."""
    found = _pick(rng, _steps(txns, APPEND, OK))
    if found is None:
        return set()
    final[found[2][1]].remove(found[2][2])
    return {"lost"}


def apply_an_append_twice(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    key = _pick(rng, (key for key, value in final.items() if isinstance(value, list) and value))
    if key is None:
        return set()
    final[key].append(rng.choice(final[key]))
    return {"duplicate"}


def refuse_what_was_read(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """A writer was told that its transaction failed, and others saw it."""
    found = _pick(rng, _steps(txns, APPEND, OK))
    if found is None:
        return set()
    found[0].outcome = REFUSED
    return {"G1a"}


def lose_an_update(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """A transaction that read a list before appending to it did not see the one before its own."""

    def updates() -> Iterator[Any]:
        for txn in txns:
            if txn.outcome != OK:
                continue
            for read, append in zip(txn.steps, txn.steps[1:], strict=False):
                own = [s for s in txn.steps if s[0] == APPEND and s[1] == read[1]]
                if read[0] == READ and read[2] and append in own and len(own) == 1:
                    yield txn, read

    found = _pick(rng, updates())
    if found is None:
        return set()
    txn, read = found
    before = read[2][:-1]
    own = [s[2] for s in txn.steps if s[0] == APPEND and s[1] == read[1]]
    txn.steps = [
        (READ, s[1], before + (own if s[2][-1:] == own else [])) if s[0] == READ and s[1] == read[1] else s
        for s in txn.steps
    ]
    return {"G-single", "order"}


def exchange_two_versions(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """Two writers of one list were told each other's version."""
    writers: dict[str, list[Txn]] = {}
    for txn in txns:
        if txn.outcome == OK and txn.version is not None:
            for key in {step[1] for step in txn.steps if step[0] == APPEND}:
                writers.setdefault(key, []).append(txn)
    some = _pick(rng, (found for found in writers.values() if len(found) > 1))
    if some is None:
        return set()
    one, other = rng.sample(some, 2)
    one.version, other.version = other.version, one.version
    return {"replay"}


def give_a_version_twice(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    writers = [txn for txn in txns if txn.outcome == OK and txn.version is not None and txn.writes]
    if len(writers) < 2:
        return set()
    one, other = rng.sample(writers, 2)
    one.version = other.version
    return {"version"}


def miscount(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """A counter is read as more than anybody can have added."""
    found = _pick(rng, _steps(txns, VALUE, OK))
    if found is None:
        return set()
    txn, place, step = found
    _change(txn, place, step[2] + 1_000_000)
    return {"bounds", "internal"}


def lose_a_count(txns: list[Txn], final: Final, rng: random.Random) -> set[str]:
    """An add is not in the final sum, and nobody without an answer can have evened it out."""
    unsure = {step[1] for _, _, step in _steps(txns, ADD, UNKNOWN)}
    sure = (key for key, value in final.items() if not isinstance(value, list) and key not in unsure)
    key = _pick(rng, sure)
    if key is None:
        return set()
    final[key] -= 1
    return {"total"}


DAMAGES: list[Damage] = [
    swap_two_elements, read_without_the_first, read_one_twice, read_what_nobody_wrote, read_the_past,
    read_the_future, lose_an_append, apply_an_append_twice, refuse_what_was_read, lose_an_update,
    exchange_two_versions, give_a_version_twice, miscount, lose_a_count,
]
