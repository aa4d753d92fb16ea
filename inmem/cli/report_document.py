"""What the page of `inmem report` is given: rows in words, and places on a line of time.

Invariant: every text in it has been made harmless (`plain`, `in_lines`), and
all of it together has a bounded size. The order in its lists is known to the
page's script, `report.html`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

from inmem.cli.durations import duration_s, is_recording, lasted_s, parents_of, reach_of
from inmem.cli.gist import in_lines, line_of, trace_line, words_of
from inmem.cli.scale import Scale
from inmem.cli.shown import LINE, VALUE, Details, about, kind_of, name_of, tags_of
from inmem.cli.text import clock, day, full_time, plain, span
from inmem.cli.traces import tree_of
from inmem.primitives.counts import shown_of
from inmem.primitives.events.rules import ChainVerification
from inmem.primitives.runs.rules import RunMetadata, RunStatus
from inmem.primitives.traces.rules import Trace
from inmem.reading.run import Logged, StoredRun

_WIDE: Final = 60  # characters of a fact that has a line of its own
_NEVER: Final = 1 << 63


class ReportDocument:
    """Of one run, at most `limit` of each kind."""

    def __init__(self, store: StoredRun, metadata: RunMetadata | None, limit: int) -> None:
        self._store = store
        self._run = metadata
        self._limit = limit
        self._details = Details()
        self._left: dict[str, str] = {}

    def document(self, verdict: ChainVerification, version: int) -> dict[str, Any]:
        """All of it, with the verdict on the hash chain."""
        store = self._store
        counts = store.counts()
        events = self._events(counts["events"])
        traces = self._traces(counts["traces"])
        times = _Times(events, traces, is_untimed=is_recording(self._run) and not self._traced())
        now_us = store.reads.now_us()
        has_times = not times.is_untimed
        cells = [
            [plain(cell.name), cell.version, full_time(cell.updated_at) if has_times else "",
             words_of(cell.value, LINE), [["value", self._details.value(cell.value)]]]
            for cell in self._first("cells", store.cells(), counts["cells"])
        ]
        entries = [
            [plain(entry.key), full_time(entry.timestamp) if has_times else "", words_of(entry.value, LINE),
             [["value", self._details.value(entry.value)],
              *([] if entry.ttl_s is None else [["expires", f"in {span(entry.ttl_s)}"]])]]
            for entry in self._first("kv", store.entries(), counts["kv"])
        ]
        return {
            "run": store.name,
            "status": self._run.status.value if self._run else "",
            "error": in_lines(self._run.error, VALUE) if self._run and self._run.error else "",
            "timed": has_times,
            "lines": times.scale.last > times.scale.first,
            "facts": [*self._facts(times, now_us), *self._holds(counts, verdict)],
            "about": about(self._run),
            "events": [self._event(logged, has_times) for logged in events],
            "traces": self._trace_rows(times),
            "timeline": times.rows(),
            "gaps": [[round(a, 5), round(b, 5)] for a, b in times.scale.gaps],
            "ticks": times.ticks(),
            "cells": cells,
            "kv": entries,
            "left": self._left,
            "foot": f"As of version {version:,}, {full_time(now_us)}, written by inmem. "
            "Times are local to where this was written.",
        }

    # --- the head -----------------------------------------------------------------------

    def _facts(self, times: _Times, now_us: int) -> list[list[str]]:
        """Names, what they stand for, and how that is shown."""
        run = self._run
        if run is None:
            return [["status", "it was never created", ""]]
        facts = [["took", self._took(run, times, now_us), ""]]
        if is_recording(run):
            facts.append(["imported", full_time(run.created_at), ""])
        else:
            ended = full_time(run.completed_at) if run.completed_at is not None else "not yet"
            facts += [["created", full_time(run.created_at), ""], ["ended", ended, ""]]
            facts.append(["last change", f"{full_time(run.updated_at)} (number {run.version})", ""])
        if times.is_set_back:
            facts.append(["clock", "was set back: times do not rise with the events", "bad"])
        if run.parent_run is not None:
            facts.append(["parent", run.parent_run, ""])
        if run.tags:
            tags = ", ".join(plain(tag) for tag in run.tags)
            facts.append(["tags", tags, "wide" if len(tags) > _WIDE else ""])
        return facts

    def _took(self, run: RunMetadata, times: _Times, now_us: int) -> str:
        traced = self._traced()
        if traced is not None:
            end = max([traced[1], *times.ends])
            return f"{span((end - traced[0]) / 1e6)}, by its traces"
        if times.is_untimed:
            if not times.scale.last:
                return "not recorded"
            return f"{span(times.scale.last / 1e6)} in tools; the rest was not recorded"
        seconds = lasted_s(run, now_us)
        if seconds is None:
            return "not known: the clock was set back"
        return span(seconds) + (" so far" if run.status is RunStatus.ACTIVE else "")

    def _traced(self) -> tuple[int, int] | None:
        """When the run was, by its traces, if they are of another time than its record: it was imported."""
        run = self._run
        first = next(self._store.traces(), None)
        last = next(self._store.traces(reverse=True), None)
        if run is None or first is None or last is None:
            return None
        is_elsewhere = last.timestamp < run.created_at or first.timestamp > (run.completed_at or _NEVER)
        return (first.timestamp, last.timestamp) if is_elsewhere else None

    def _holds(self, counts: dict[str, int], verdict: ChainVerification) -> list[list[str]]:
        held = ", ".join(f"{number:,} {name}" for name, number in shown_of(counts))
        if verdict.is_valid:
            chain = f"whole, {verdict.length:,} events" if verdict.length else "no events"
        else:
            chain = f"broken at event {verdict.first_invalid}: {plain(verdict.error or '')}"
        return [
            ["namespace", str(self._store.namespace), ""], ["holds", held, ""],
            ["hash chain of the events", chain, "good" if verdict.is_valid else "bad"],
        ]

    # --- rows ---------------------------------------------------------------------------

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

    def _event(self, logged: Logged, has_times: bool) -> list[Any]:
        event = logged.event
        details = self._details.event(event, is_timed=has_times)
        when = clock(event.timestamp) if has_times else ""
        return [event.sequence, when, plain(event.event_type), line_of(event.payload, LINE), details]

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

    def _trace_rows(self, times: _Times) -> list[list[Any]]:
        roots: list[int] = []
        depths: list[int] = []
        rows = []
        for number, trace in enumerate(times.traces):
            above = times.parents[number]
            roots.append(number if above < 0 else roots[above])
            depths.append(0 if above < 0 else depths[above] + 1)
            root, begin, end = roots[number], times.begins[number], times.ends[number]
            whole = max(1, times.ends[root] - times.begins[root])
            place = min(1.0, max(0.0, (begin - times.begins[root]) / whole))
            own = duration_s(trace)
            length = own if own is not None else (end - begin) / 1e6
            rows.append([
                trace.id, above, depths[number], "" if times.is_untimed else clock(trace.timestamp),
                kind_of(trace), name_of(trace), trace_line(trace, LINE), tags_of(trace),
                self._details.trace(trace, is_timed=not times.is_untimed),
                span(length) if own is not None or end > begin else "",
                [round(place, 5), round(min(1.0, place + (end - begin) / whole), 5)], own is not None,
            ])
        return rows


class _Times:
    """When everything was, in an order that is kept, and where that is on a line.

    Of what carries no times of its own, `is_untimed`, the line is the time
    that its traces say they took, one after the other.
    """

    def __init__(self, events: Sequence[Logged], traces: Sequence[Trace], *, is_untimed: bool) -> None:
        self.traces = traces
        self.is_untimed = is_untimed
        self.parents = parents_of(traces)
        self.begins = [trace.timestamp for trace in traces]
        self._moments = [logged.event.timestamp for logged in events]
        # A clock that was set back changes no order: not that of the log, nor that of a tree.
        logged_at = list(itertools.accumulate(self._moments, max))
        self.is_set_back = logged_at != self._moments
        traced_at = list(self.begins)
        for number, above in enumerate(self.parents):
            if above >= 0:
                traced_at[number] = max(traced_at[number], traced_at[above])
        # Of one time, traces come first and in the order of their trees.
        self._order = sorted([
            *((at, 0, number) for number, at in enumerate(traced_at)),
            *((at, 1, number) for number, at in enumerate(logged_at)),
        ])
        if is_untimed:
            self._one_after_the_other()
        self.ends = reach_of(traces, self.parents, self.begins)
        intervals = [*zip(self.begins, self.ends, strict=True), *((at, at) for at in self._moments)]
        self.scale = Scale(intervals)

    def _one_after_the_other(self) -> None:
        at = 0
        for _, is_event, number in self._order:
            if is_event:
                self._moments[number] = at
            else:
                self.begins[number] = at
                at += round((duration_s(self.traces[number]) or 0) * 1e6)

    def rows(self) -> list[list[Any]]:
        """[is it a trace, which, begin, end]; begin and end from 0 to 1."""
        found = []
        for _, is_event, number in self._order:
            begin = self._moments[number] if is_event else self.begins[number]
            end = begin if is_event else self.ends[number]
            place = self.scale.place
            found.append([1 - is_event, number, round(place(begin), 5), round(place(end), 5)])
        return found

    def ticks(self) -> list[list[Any]]:
        """Places on the line and what is written there: a duration, the time of day, or the day too."""
        scale = self.scale

        def text(us: int) -> str:
            if self.is_untimed:
                return span(us / 1e6)
            return clock(us) if day(scale.first) == day(scale.last) else f"{day(us)} {clock(us)[:5]}"

        return [[round(place, 5), text(us)] for place, us in scale.ticks(5)]
