"""`inmem traces`: what an agent thought and did, as the tree that it was.

It changes nothing. A tree of any depth or width is drawn
while it is read: one page for each level is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from inmem.cli.common import (
    Full,
    Limit,
    RunName,
    Since,
    Until,
    Where,
    command,
    described,
)
from inmem.cli.durations import duration_s
from inmem.cli.listing import Listing, note
from inmem.cli.text import clock, day, moment_us, one_line, plain, span
from inmem.cli.tree import drawn
from inmem.errors import TraceNotFoundError
from inmem.jsonvalues import to_json
from inmem.keys import TypeTag, encode_id, encode_label
from inmem.primitives.traces.rules import Custom, Decision, ErrorTrace, Query, Thought, ToolCall, Trace
from inmem.reading.run import StoredRun

_USUAL: Final = 500  # traces that are shown unless more are wanted
_ALL_TIMES: Final = 1 << 63
TYPE_STYLES: Final = {
    ToolCall: "cyan", Decision: "magenta", Query: "blue", Thought: "green", ErrorTrace: "bold red",
    Custom: "yellow",
}


@command(about_runs=True, reads=True)
def traces(
    where: Where,
    run: RunName,
    trace_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only ToolCall, Decision, Thought, ...")
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="Only with this tag.")] = None,
    since: Since = None,
    until: Until = None,
    root: Annotated[
        str | None, typer.Option(metavar="ID", help="Only this trace and what is below it.")
    ] = None,
    limit: Limit = None,
    full: Full = False,
) -> None:
    """The traces of a run, drawn as trees; with a filter as a list, in order of time.

    Example: inmem traces trip-to-oslo --type ToolCall -d ./data
    """
    if limit is None and not where.as_json:
        limit = _USUAL
    with (
        where.reading() as source,
        Listing(as_json=where.as_json, full=full, limit=limit) as listing,
    ):
        store, now_us = source.run(run), source.now_us()
        described(source, store)
        first = 0 if since is None else moment_us(since, now_us, "since")
        last = _ALL_TIMES if until is None else moment_us(until, now_us, "until")
        is_list = trace_type is not None or tag is not None or since is not None or until is not None
        if is_list:
            found: Iterator[tuple[Trace, str, int]] = (
                (trace, "", 0) for trace in _matching(store, trace_type, tag, first, last, root)
            )
        else:
            found = tree_of(store, root)
        printer = _Printer(listing, is_list)
        for trace, guides, depth in found:
            if listing.is_full:
                note(f"only the first {limit:,}: --limit N shows more")
                break
            printer.print(trace, guides, depth)
        if not listing.rows and not where.as_json:
            note(f"{run} has no such traces" if is_list else f"{run} has no traces")


def _matching(
    store: StoredRun, trace_type: str | None, tag: str | None, since: int, until: int, root: str | None
) -> Iterator[Trace]:
    if tag is not None:
        encode_label(tag, "tag")
        found = store.traces(TypeTag.TRACE_BY_TAG, tag, since=since, until=until)
    elif trace_type is not None:
        encode_label(trace_type, "type")
        found = store.traces(TypeTag.TRACE_BY_TYPE, trace_type, since=since, until=until)
    else:
        found = store.traces(since=since, until=until)
    for trace in found:
        if trace_type in (None, trace.type_name) and (root is None or _is_below(store, trace, root)):
            yield trace


def _is_below(store: StoredRun, trace: Trace | None, root: str) -> bool:
    while trace is not None and trace.id != root:
        trace = store.trace(trace.parent_id.encode()) if trace.parent_id else None
    return trace is not None


def tree_of(store: StoredRun, root: str | None = None) -> Iterator[tuple[Trace, str, int]]:
    """All traces, or one and what is below it, parents first: (trace, what to draw before it, depth)."""
    if root is None:
        tops = store.traces_below("")
    else:
        found = store.trace(encode_id(root, "root"))
        if found is None:
            raise TraceNotFoundError(f"there is no trace {root} in {store.name}", trace_id=root)
        tops = iter([found])
    return drawn(tops, lambda trace: store.traces_below(trace.id))


class _Printer:
    def __init__(self, listing: Listing, is_list: bool) -> None:
        self._listing = listing
        self._is_list = is_list
        self._day = ""

    def print(self, trace: Trace, guides: str, depth: int) -> None:
        """One trace as one line."""
        listing = self._listing
        if listing.as_json:
            listing.document(trace_document(trace) | ({} if self._is_list else {"depth": depth}))
            return
        today = day(trace.timestamp)
        if today != self._day:
            self._day = today
            listing.line((today, "dim"))
        took = duration_s(trace)
        words = [one_line_of(trace, listing.width)]
        if self._is_list and trace.parent_id:
            words.append(f"(below {trace.parent_id})")
        listing.words(
            (clock(trace.timestamp) + "  ", "cyan"), (guides, "dim"),
            (plain(trace.type_name) + " ", TYPE_STYLES[type(trace.body)]),
            (f"{span(took)} " if took is not None else "", "bold"),
            ("".join(f"#{plain(tag)} " for tag in trace.tags[:8]), "yellow"),
            rest=" ".join(words),
        )


def one_line_of(trace: Trace, limit: int | None = None) -> str:
    """What a trace is about, in the words of its body."""
    body = trace.body

    def value(of: Any) -> str:
        text, cut = one_line(of, limit)
        return text + ("…" if cut else "")

    def words(of: Any) -> str:
        return plain(of if limit is None else of[: limit + 1]) if isinstance(of, str) else value(of)

    if isinstance(body, ToolCall):
        result = "" if body.result is None else f" → {value(body.result)}"
        return f"{words(body.tool_name)} {value(body.arguments)}{result}"
    if isinstance(body, Decision):
        why = "" if body.reasoning is None else f", because {words(body.reasoning)}"
        return f"{words(body.question)} → {value(body.chosen)} of {value(body.options)}{why}"
    if isinstance(body, Query):
        return f"{words(body.query_type)} {value(body.query)} → {body.results_count} results"
    if isinstance(body, Thought):
        sure = "" if body.confidence is None else f" ({value(body.confidence)})"
        return words(body.content) + sure
    if isinstance(body, ErrorTrace):
        end = " (recoverable)" if body.recoverable else ""
        return f"{words(body.error_type)}: {words(body.message)}{end}"
    return value(body.data)


def trace_document(trace: Trace) -> dict[str, Any]:
    """A trace for programs."""
    body = {name: to_json(getattr(trace.body, name)) for name in trace.body.__slots__}
    return {
        "id": trace.id, "parent_id": trace.parent_id, "type": trace.type_name, "timestamp": trace.timestamp,
        "tags": list(trace.tags), "body": body, "metadata": to_json(trace.metadata),
    }
