"""Traces through the public API against a dictionary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from machines import TransactionalMachine, database, opened  # noqa: F401

import inmem
from inmem import Custom, ErrorTrace, NewTrace, Thought, ToolCall

IDS = ["a", "ab", "a.b", "b"]
ids = st.sampled_from(IDS)
BODIES = [
    Thought("x"), Thought("y", 0.5), ToolCall("t", {"k": [1]}), ErrorTrace("E", "m", False), Custom("Th", 1)
]
bodies = st.sampled_from(BODIES)
TYPES = ["Thought", "Th", "ToolCall", "Error", "Query"]
tags = st.lists(st.sampled_from(["x", "xy", "y"]), max_size=3)
times = st.none() | st.integers(1, 4)
limits = st.none() | st.integers(0, 3)


@dataclass
class Known:
    parent: str | None
    body: Any
    timestamp: int
    tags: tuple[str, ...]
    metadata: dict[str, Any]


some_traces = st.builds(
    NewTrace, body=bodies, id=st.none() | ids, parent_id=st.none() | ids, tags=tags, timestamp=times
)


class Traces:
    def __init__(self) -> None:
        self.traces: dict[str, Known] = {}

    def copy(self) -> Traces:
        other = Traces()
        other.traces = dict(self.traces)
        return other

    def find(self, wanted: Any, limit: int | None = None, reverse: bool = False) -> list[str]:
        found = [(known.timestamp, name) for name, known in self.traces.items() if wanted(known)]
        return [name for _, name in sorted(found, reverse=reverse)][:limit]

    def tree(self, root: str) -> list[tuple[int, str]]:
        found, stack = [], [(0, root)]
        while stack:
            depth, name = stack.pop()
            found.append((depth, name))
            children = self.find(lambda known, name=name: known.parent == name)
            stack += [(depth + 1, child) for child in reversed(children)]
        return found


class TraceMachine(TransactionalMachine):
    def new_model(self) -> Traces:
        return Traces()

    @property
    def traces(self) -> Any:
        return self.scope.traces if self.txn is None else self.txn.traces

    def refusal(self, some: list[NewTrace]) -> type[inmem.InmemError] | None:
        known = set(self.inside.traces)
        for new in some:
            if new.id in known:
                return inmem.TraceExistsError
            if new.parent_id is not None and new.parent_id not in known:
                return inmem.TraceNotFoundError
            known.add(str(new.id))
        return None

    def record_all(self, some: list[NewTrace], call: Any) -> None:
        refusal = self.refusal(some)
        if refusal is not None:
            with pytest.raises(refusal):
                call()
            return
        found = call()
        for new, trace_id in zip(some, [found] if isinstance(found, str) else found, strict=True):
            assert new.id in (None, trace_id)
            stored = self.traces.get(trace_id)
            assert new.timestamp in (None, stored.timestamp)
            self.inside.traces[trace_id] = Known(
                new.parent_id, new.body, stored.timestamp, tuple(dict.fromkeys(new.tags)),
                dict(new.metadata or {}),
            )

    @rule(trace_id=st.none() | ids, body=bodies, parent=st.none() | ids, some_tags=tags, time=times,
          metadata=st.sampled_from([None, {}, {"k": [1]}]))
    def record(self, trace_id: str | None, body: Any, parent: str | None, some_tags: list[str],
               time: int | None, metadata: Any) -> None:
        new = NewTrace(body, trace_id, parent, some_tags, metadata, time)
        self.record_all([new], lambda: self.traces.record(
            body, id=trace_id, parent_id=parent, tags=some_tags, metadata=metadata, timestamp=time))

    @rule(trace_id=st.none() | ids, body=bodies, parent=ids, time=times)
    def record_child(self, trace_id: str | None, body: Any, parent: str, time: int | None) -> None:
        new = NewTrace(body, trace_id, parent, timestamp=time)
        self.record_all([new], lambda: self.traces.record_child(parent, body, id=trace_id, timestamp=time))

    @rule(some=st.lists(some_traces, max_size=3))
    def record_many(self, some: list[NewTrace]) -> None:
        """A refusal leaves none of them, in the open transaction neither."""
        self.record_all(some, lambda: self.traces.record_many(some))

    def same(self, found: list[inmem.Trace], expected: list[str], inside: Traces) -> None:
        assert [trace.id for trace in found] == expected
        for trace in found:
            known = inside.traces[trace.id]
            assert (trace.parent_id, trace.body, trace.timestamp, trace.tags, trace.metadata) == (
                known.parent, known.body, known.timestamp, known.tags, known.metadata
            )

    @rule(trace_id=ids)
    def get(self, trace_id: str) -> None:
        found = self.traces.get(trace_id)
        expected = [trace_id] if trace_id in self.inside.traces else []
        self.same([] if found is None else [found], expected, self.inside)

    @rule(name=st.sampled_from(TYPES), limit=limits, reverse=st.booleans())
    def by_type(self, name: str, limit: int | None, reverse: bool) -> None:
        expected = self.inside.find(
            lambda known: inmem.Trace("t", None, known.body, 0, (), {}).type_name == name, limit, reverse
        )
        self.same(self.traces.query_by_type(name, limit=limit, reverse=reverse), expected, self.inside)

    @rule(tag=st.sampled_from(["x", "xy", "y", "z"]), limit=limits, reverse=st.booleans())
    def by_tag(self, tag: str, limit: int | None, reverse: bool) -> None:
        expected = self.inside.find(lambda known: tag in known.tags, limit, reverse)
        self.same(self.traces.query_by_tag(tag, limit=limit, reverse=reverse), expected, self.inside)

    @rule(start=st.integers(0, 5), end=st.integers(0, 5) | st.just(1 << 62), limit=limits,
          reverse=st.booleans())
    def by_time(self, start: int, end: int, limit: int | None, reverse: bool) -> None:
        expected = self.inside.find(lambda known: start <= known.timestamp < end, limit, reverse)
        self.same(self.traces.query_by_time(start, end, limit=limit, reverse=reverse), expected, self.inside)

    @rule(parent=ids, limit=limits, reverse=st.booleans())
    def children(self, parent: str, limit: int | None, reverse: bool) -> None:
        expected = self.inside.find(lambda known: known.parent == parent, limit, reverse)
        self.same(self.traces.get_children(parent, limit=limit, reverse=reverse), expected, self.inside)

    @rule(limit=limits, reverse=st.booleans())
    def roots_and_all(self, limit: int | None, reverse: bool) -> None:
        roots = self.inside.find(lambda known: known.parent is None, limit, reverse)
        self.same(self.traces.roots(limit=limit, reverse=reverse), roots, self.inside)
        every = self.inside.find(lambda known: True, limit, reverse)
        self.same(self.traces.list(limit=limit, reverse=reverse), every, self.inside)
        assert self.traces.count() == len(self.inside.traces)

    @rule(root=ids)
    def tree(self, root: str) -> None:
        if root not in self.inside.traces:
            with pytest.raises(inmem.TraceNotFoundError):
                self.traces.get_tree(root)
            return
        found = [(depth, trace.id) for depth, trace in self.traces.get_tree(root).walk()]
        assert found == self.inside.tree(root)

    @invariant()
    def others_see_what_is_stored(self) -> None:
        if not self.begun:
            return
        with self.db.snapshot(self.run) as view:
            self.same(view.traces.list(), self.stored.find(lambda known: True), self.stored)
            assert view.traces.count() == len(self.stored.traces)


TestTraceMachine = TraceMachine.TestCase
TestTraceMachine.settings = settings(max_examples=150, stateful_step_count=35)
