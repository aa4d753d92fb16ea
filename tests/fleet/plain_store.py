"""A store in plain dicts, with the calls that the fleet programs make, for tests in one process.

It is correct, and slow. Tests damage it on purpose, to see that a
verification notices.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from plain_primitives import Cells, Jobs, PlainCells, PlainQueues, PlainRuns, PlainTraces, Runs, Traces

import inmem
from workers.judge.values import canonical

ZERO = bytes(32)


@dataclass(frozen=True, slots=True)
class Event:
    sequence: int
    event_type: str
    payload: Any
    timestamp: int
    prev_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Chain:
    is_valid: bool
    length: int
    first_invalid: int | None = None
    error: str | None = None


def link(sequence: int, event_type: str, payload: Any, prev_hash: bytes) -> bytes:
    text = canonical([sequence, event_type, payload, prev_hash.hex()])
    return hashlib.sha256(text.encode()).digest()


class PlainKV:
    def __init__(self, data: dict[str, dict[str, Any]], fences: set[str]) -> None:
        self._data, self._fences = data, fences

    def get(self, run: str, key: str, default: Any = None) -> Any:
        return copy.deepcopy(self._data.get(run, {}).get(key, default))

    def put(self, run: str, key: str, value: Any, *, ttl: float | None = None) -> None:
        if run in self._fences:
            raise inmem.RunDeletedError(run, run_id=run)
        self._data.setdefault(run, {})[key] = copy.deepcopy(value)

    def add(self, run: str, key: str, delta: int = 1) -> int:
        total: int = self.get(run, key, 0) + delta
        self.put(run, key, total)
        return total

    def ttl(self, run: str, key: str) -> float | None:
        return 1.0 if key in self._data.get(run, {}) else None

    def delete(self, run: str, key: str) -> bool:
        return self._data.get(run, {}).pop(key, self) is not self

    def list_with_values(self, run: str, prefix: str = "") -> list[tuple[str, Any]]:
        data = self._data.get(run, {})
        return [(key, copy.deepcopy(data[key])) for key in sorted(data) if key.startswith(prefix)]


class PlainLog:
    def __init__(self, data: dict[str, list[Event]]) -> None:
        self._data = data

    def append(self, run: str, event_type: str, payload: Any = None) -> Event:
        log = self._data.setdefault(run, [])
        prev_hash = log[-1].hash if log else ZERO
        digest = link(len(log), event_type, payload, prev_hash)
        log.append(Event(len(log), event_type, copy.deepcopy(payload), 0, prev_hash, digest))
        return log[-1]

    def append_many(self, run: str, records: Iterable[tuple[str, Any]]) -> list[Event]:
        return [self.append(run, event_type, payload) for event_type, payload in records]

    def iter(self, run: str, start: int = 0) -> Iterator[Event]:
        return iter(list(self._data.get(run, ()))[start:])

    def count(self, run: str) -> int:
        return len(self._data.get(run, ()))

    def verify_chain(self, run: str, anchor: tuple[int, bytes] | None = None) -> Chain:
        log = self._data.get(run, [])
        prev_hash = ZERO
        for sequence, event in enumerate(log):
            digest = link(sequence, event.event_type, event.payload, prev_hash)
            if (event.sequence, event.prev_hash, event.hash) != (sequence, prev_hash, digest):
                return Chain(False, len(log), sequence, "hash differs")
            prev_hash = digest
        if anchor is not None and (anchor[0] >= len(log) or log[anchor[0]].hash != anchor[1]):
            return Chain(False, len(log), anchor[0], "the anchor is not in the log")
        return Chain(True, len(log))


class Bound:
    """A facade with its run id filled in."""

    def __init__(self, facade: Any, run: str) -> None:
        self._facade, self._run = facade, run

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._facade, name)
        return lambda *args, **kwargs: method(self._run, *args, **kwargs)


class PlainTransaction:
    def __init__(self, store: PlainStore, run: str) -> None:
        self._store = store
        for name in ("kv", "events", "cells", "traces", "runs", "queues"):
            setattr(self, name, Bound(getattr(store, name), run))

    def at(self, run: str) -> PlainTransaction:
        return PlainTransaction(self._store, run)


class Report:
    """What `check` says of plain dicts: there is nothing to find."""

    problems: tuple[str, ...] = ()
    records = 1


class PlainStore:
    """The database: a dict for each primitive, and facades over them."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[Event]] = {}
        self.states: Cells = {}
        self.trees: Traces = {}
        self.records: Runs = {}
        self.jobs: Jobs = {}
        self.marks: dict[str, int] = {}
        self.fences: set[str] = set()
        self.kv = PlainKV(self.entries, self.fences)
        self.events = PlainLog(self.logs)
        self.cells = PlainCells(self.states, self.marks)
        self.traces = PlainTraces(self.trees)
        self.queues = PlainQueues(self.jobs)
        self.runs = PlainRuns(
            self.records, self.fences, [self.entries, self.logs, self.states, self.trees]
        )

    def check(self) -> Report:
        return Report()

    def transact(self, run: str, fn: Callable[[Any], Any], **_: Any) -> Any:
        parts: tuple[Any, ...] = (
            self.entries, self.logs, self.states, self.trees, self.records, self.marks, self.jobs
        )  # fmt: skip
        # Nothing is changed in place below the second level, so that is how deep copies go.
        before = [{key: copy.copy(part[key]) for key in part} for part in parts]
        try:
            return fn(PlainTransaction(self, run))
        except BaseException:
            for live, old in zip(parts, before, strict=True):
                live.clear()
                live.update(old)
            raise

    @contextmanager
    def snapshot(self, run: str) -> Iterator[PlainTransaction]:
        yield PlainTransaction(self, run)

    @contextmanager
    def pipeline(self) -> Iterator[PlainStore]:
        yield self

    def rechain(self, run: str) -> None:
        """Make a damaged log look whole to its own chain: only a comparison finds it then."""
        prev_hash = ZERO
        for sequence, event in enumerate(self.logs[run]):
            digest = link(sequence, event.event_type, event.payload, prev_hash)
            self.logs[run][sequence] = replace(
                event, sequence=sequence, prev_hash=prev_hash, hash=digest
            )
            prev_hash = digest
