"""`inmem report`: a run as one HTML file that needs nothing else.

Invariant: nothing that is stored is ever markup or script in it. The data is
a JSON document in an element that no browser runs; the page puts it on the
screen as text. A policy in the page forbids all but its own style and script,
each by its hash, and every request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from inmem.cli.common import (
    RunName,
    Where,
    command,
    console,
    described,
    print_json,
    size,
)
from inmem.cli.runs import took
from inmem.cli.scale import Scale
from inmem.cli.text import clock, day, full_time, indented, one_line, plain, span
from inmem.cli.traces import duration_s, one_line_of, tree_of
from inmem.host.files import output as output_file
from inmem.host.paths import absolute
from inmem.primitives.events.rules import ChainVerification
from inmem.primitives.runs.rules import RunMetadata
from inmem.primitives.traces.rules import Custom, Decision, ErrorTrace, Query, Thought, ToolCall, Trace
from inmem.reading.database_source import DatabaseSource
from inmem.reading.run import Logged, StoredRun

_LIMIT: Final = 2000  # of each kind, unless more are wanted: a browser is quick with these
_VALUE: Final = 4000  # characters of one value
_LINE: Final = 200  # characters of a value in a row
_TOTAL: Final = 24 * 1024 * 1024  # characters of all values together
_KINDS: Final = {
    ToolCall: "tool", Decision: "decision", Query: "query", Thought: "thought", ErrorTrace: "error",
    Custom: "custom",
}


@command(about_runs=True, reads=True)
def report(
    where: Where,
    run: RunName,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="RUN.html by default; - is standard output."),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="No more events, traces, cells, keys than this.")
    ] = _LIMIT,
) -> None:
    """Write a run as one HTML file: timeline, traces, events, cells, entries.

    It can be opened anywhere, and loads nothing. It holds what the run holds:
    the file is for this user only. A file of that name is replaced.

    Example: inmem report trip-to-oslo -o run.html -d ./data
    """
    with where.reading() as source:
        page = page_of(source, run, limit)
    data = page.encode()
    if output is not None and str(output) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    file = output or Path(f"{run}.html")
    absolute(file, "FILE")
    with output_file(file) as out:
        out.write(data)
    if where.as_json:
        print_json({"file": str(file), "bytes": len(data)})
    else:
        console().print(f"{file} is written, {size(len(data))}", soft_wrap=True)


def page_of(source: DatabaseSource, run: str, limit: int = _LIMIT) -> str:
    """The report of a run.

    Raises:
        RunNotFoundError: there is nothing under that name.
    """
    store = source.run(run)
    metadata = described(source, store)
    verdict = store.verify()  # of many moments: a long log must not be pinned while it is hashed
    with source.moment() as moment:
        of_moment = StoredRun(moment, source.namespace, run)
        document = _Report(of_moment, metadata, limit).document(verdict, moment.version)
    # As a part of a page: nothing in it can end the element that it is in.
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = files("inmem.cli").joinpath("report.html").read_text("utf-8")
    style = _between(template, "<style>", "</style>")
    script = _between(template, "<script>", "</script>")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    for name, value in (("policy", policy), ("title", html.escape(f"{run} – inmem")), ("data", text)):
        before, after = template.split("{{" + name + "}}")
        template = before + value + after
    return template


def _between(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


class _Report:
    """What the page is given. The order in its lists is known to the page's script."""

    def __init__(self, store: StoredRun, metadata: RunMetadata | None, limit: int) -> None:
        self._store = store
        self._run = metadata
        self._limit = limit
        self._budget = _TOTAL
        self._left: dict[str, str] = {}

    def document(self, verdict: ChainVerification, version: int) -> dict[str, Any]:
        """All of it, with the verdict on the hash chain."""
        store = self._store
        counts = store.counts()
        events = self._events(counts["events"])
        traces = self._traces(counts["traces"])
        cells = [
            [plain(cell.name), cell.version, full_time(cell.updated_at), *self._value(cell.value)]
            for cell in self._first("cells", store.cells(), counts["cells"])
        ]
        entries = [
            [
                plain(entry.key), full_time(entry.timestamp), *self._value(entry.value),
                "" if entry.ttl_s is None else f"in {span(entry.ttl_s)}",
            ]
            for entry in self._first("kv", store.entries(), counts["kv"])
        ]
        now_us = store.reads.now_us()
        scale = Scale([
            *((logged.event.timestamp, logged.event.timestamp) for logged in events),
            *((trace.timestamp, end) for trace, end in zip(traces, ends_of(traces), strict=True)),
        ])
        if verdict.is_valid:
            chain = f"whole, {verdict.length:,} events" if verdict.length else "no events"
        else:
            chain = f"broken at event {verdict.first_invalid}: {plain(verdict.error or '')}"
        return {
            "run": store.name,
            "status": self._run.status.value if self._run else "",
            "error": plain(self._run.error) if self._run and self._run.error else "",
            "facts": self._facts(counts, chain, verdict.is_valid, now_us),
            "events": [self._event(logged) for logged in events],
            "traces": self._trace_rows(traces),
            "timeline": self._timeline(events, traces, scale),
            "gaps": [[round(a, 5), round(b, 5)] for a, b in scale.gaps],
            "ticks": _ticks(scale),
            "cells": cells,
            "kv": entries,
            "left": self._left,
            "foot": f"As of version {version:,}, {full_time(now_us)}, written by inmem. "
            "Times are local to where this was written.",
        }

    # --- the head -----------------------------------------------------------------------

    def _facts(self, counts: dict[str, int], chain: str, is_valid: bool, now_us: int) -> list[list[str]]:
        facts = []
        run = self._run
        if run is None:
            facts.append(["status", "it was never created", ""])
        else:
            facts.append(["created", full_time(run.created_at), ""])
            ended = full_time(run.completed_at) if run.completed_at is not None else "not yet"
            facts += [["ended", ended, ""], ["took", took(run, now_us), ""]]
            facts.append(["last change", f"{full_time(run.updated_at)} (number {run.version})", ""])
            if run.parent_run is not None:
                facts.append(["parent", run.parent_run, ""])
            if run.tags:
                facts.append(["tags", ", ".join(plain(tag) for tag in run.tags), ""])
        facts.append(["namespace", str(self._store.namespace), ""])
        held = ", ".join(f"{number:,} {name}" for name, number in counts.items())
        facts += [["holds", held, ""], ["hash chain of the events", chain, "good" if is_valid else "bad"]]
        if run is not None and run.metadata:
            facts.append(["metadata", one_line(run.metadata, _VALUE)[0], "wide"])
        return facts

    # --- rows ---------------------------------------------------------------------------

    def _value(self, value: Any) -> tuple[str, str]:
        """A value in a line, and in full as far as there is room."""
        line, cut = one_line(value, _LINE)
        room = max(_LINE, min(_VALUE, self._budget))
        text, shortened = indented(value, room)
        self._budget -= len(text)
        if shortened:
            text += f"\n… (shortened after {room:,} characters)"
        return line + ("…" if cut else ""), text

    def _first(self, kind: str, found: Iterator[Any], count: int) -> list[Any]:
        rows = list(itertools.islice(found, self._limit))
        if len(rows) < count:
            self._left[kind] = f"Only the first {len(rows):,} of {count:,}; --limit shows more."
        return rows

    def _events(self, count: int) -> list[Logged]:
        first = max(0, count - self._limit)
        if first:
            self._left["events"] = f"Only the last {self._limit:,} of {count:,}; --limit shows more."
        return list(self._store.events(first))

    def _event(self, logged: Logged) -> list[Any]:
        event = logged.event
        return [
            event.sequence, clock(event.timestamp), plain(event.event_type), *self._value(event.payload),
            event.hash.hex(),
        ]

    def _traces(self, count: int) -> list[Trace]:
        """The newest trees, each in order; the last of them may be cut short."""
        trees: list[list[Trace]] = []
        left = self._limit
        for root in self._store.traces_below("", reverse=True):
            tree = [trace for trace, _, _ in itertools.islice(tree_of(self._store, root.id), left)]
            trees.append(tree)
            left -= len(tree)
            if left <= 0:
                break
        shown = self._limit - left
        if shown < count:
            self._left["traces"] = f"Only the newest {shown:,} of {count:,}, by trees; --limit shows more."
        return [trace for tree in reversed(trees) for trace in tree]

    def _trace_rows(self, traces: Sequence[Trace]) -> list[list[Any]]:
        index = {trace.id: number for number, trace in enumerate(traces)}
        ends = ends_of(traces)
        roots: list[int] = []
        depths: list[int] = []
        rows = []
        for number, trace in enumerate(traces):
            above = index.get(trace.parent_id or "", -1)
            roots.append(number if above < 0 else roots[above])
            depths.append(0 if above < 0 else depths[above] + 1)
            root, end = roots[number], ends[number]
            whole = max(1, ends[root] - traces[root].timestamp)
            begin = min(1.0, max(0.0, (trace.timestamp - traces[root].timestamp) / whole))
            own = duration_s(trace)
            if own is not None:
                length = span(own)
            else:
                length = span((end - trace.timestamp) / 1e6) if end > trace.timestamp else ""
            rows.append([
                trace.id, above, depths[number], clock(trace.timestamp), _KINDS[type(trace.body)],
                plain(trace.type_name), plain_line(trace), [plain(tag) for tag in trace.tags],
                self._value({name: getattr(trace.body, name) for name in trace.body.__slots__})[1],
                self._value(trace.metadata)[1] if trace.metadata else "", length,
                [round(begin, 5), round(min(1.0, begin + (end - trace.timestamp) / whole), 5)],
                own is not None, f"{day(trace.timestamp)} {clock(trace.timestamp)}",
            ])
        return rows

    def _timeline(
        self, events: Sequence[Logged], traces: Sequence[Trace], scale: Scale
    ) -> list[list[Any]]:
        """[is it a trace, which, begin, end] in order of time; begin and end from 0 to 1."""
        rows = []
        for number, logged in enumerate(events):
            rows.append((logged.event.timestamp, 1, number, logged.event.timestamp))
        rows += [
            (trace.timestamp, 0, number, end)
            for number, (trace, end) in enumerate(zip(traces, ends_of(traces), strict=True))
        ]
        # Of one time, traces come first and in the order of their trees.
        return [
            [1 - is_event, number, round(scale.place(begin), 5), round(scale.place(end), 5)]
            for begin, is_event, number, end in sorted(rows)
        ]


def _ticks(scale: Scale) -> list[list[Any]]:
    """Places on the line and what is written there: the time of day, or the day where there are several."""
    of_one_day = day(scale.first) == day(scale.last)
    return [
        [round(place, 5), clock(us) if of_one_day else f"{day(us)} {clock(us)[:5]}"]
        for place, us in scale.ticks(5)
    ]


def plain_line(trace: Trace) -> str:
    """What a trace is about, short enough for a row."""
    text = one_line_of(trace, _LINE)
    return text if len(text) <= 2 * _LINE else text[: 2 * _LINE] + "…"


def ends_of(traces: Sequence[Trace]) -> list[int]:
    """When each trace ended, microseconds: by its own duration, else with the last one below it.

    Parents stand before their children.
    """
    index = {trace.id: number for number, trace in enumerate(traces)}
    ends = []
    for trace in traces:
        own = duration_s(trace)
        ends.append(trace.timestamp + (round(own * 1e6) if own is not None else 0))
    for number in range(len(traces) - 1, -1, -1):
        above = index.get(traces[number].parent_id or "", -1)
        if above >= 0 and duration_s(traces[above]) is None:
            ends[above] = max(ends[above], ends[number])
    return ends
