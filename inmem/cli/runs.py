"""`inmem runs`, `run`: which runs there are, and what one of them holds. These commands change nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
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
    print_json,
)
from inmem.cli.durations import took
from inmem.cli.leases import holders
from inmem.cli.listing import Listing, note
from inmem.cli.stored_queues import in_words, queues_in
from inmem.cli.text import (
    full_time,
    moment_us,
    padded,
    plain,
    short_time,
    span,
)
from inmem.cli.tree import drawn
from inmem.jsonvalues import to_json
from inmem.keys import check_run_id
from inmem.primitives.runs.rules import RunMetadata, RunStatus
from inmem.reading.named_source import NamedSource
from inmem.reading.run import StoredRun, metadata_of
from inmem.reading.runs import RunFinder, uncreated_runs

_USUAL: Final = 50  # runs that are shown unless more are wanted
_LOOKED_AT: Final = 2000  # to tell whether some were never created: a listing must not read all for that
_LAST: Final = 5  # events, and
_FIRST: Final = 8  # cells, entries and types of traces of a summary
_TYPE_CELLS: Final = (12, 24)  # of columns: at first, and at most
_NAME_CELLS: Final = (14, 32)
_KEY_CELLS: Final = (14, 33)
STATUS_STYLES: Final = {
    RunStatus.ACTIVE: "green", RunStatus.COMPLETED: "blue", RunStatus.FAILED: "bold red",
    RunStatus.CANCELLED: "yellow", RunStatus.PAUSED: "magenta", RunStatus.ARCHIVED: "dim",
}


# What a run that was never created tells programs, beside its id.
_NOTHING: Final = dict.fromkeys(field.name for field in fields(RunMetadata))


def run_document(run: RunMetadata) -> dict[str, Any]:
    """A run for programs."""
    return asdict(run) | {"status": run.status.value, "metadata": to_json(run.metadata)}


# --- runs ---------------------------------------------------------------------------------------


@command(about_runs=True, reads=True)
def runs(
    where: Where,
    status: Annotated[
        RunStatus | None, typer.Option(help="Only runs of this status.", show_choices=True)
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(metavar="TAG", help="Only with this tag; repeat it.")
    ] = None,
    parent: Annotated[str | None, typer.Option(metavar="RUN", help="Only children of this run.")] = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = None,
    tree: Annotated[bool, typer.Option("--tree", help="Draw the children of each below it.")] = False,
    archived: Annotated[bool, typer.Option("--archived", help="Archived ones too.")] = False,
    uncreated: Annotated[
        bool, typer.Option("--all", help="Archived ones too, and those with data that were never created.")
    ] = False,
    full: Full = False,
) -> None:
    """The runs of a namespace, the newest first; with --all in the end those that were never created.

    --since and --until are about when a run was created.

    Example: inmem runs --status failed --since 2h -d ./data
    """
    if parent is not None:
        check_run_id(parent, "parent")
    if limit is None and not where.as_json:
        limit = _USUAL
    archived = archived or uncreated
    with (
        where.reading() as source,
        Listing(as_json=where.as_json, full=full, limit=limit) as listing,
    ):
        now_us = source.now_us()
        finder = RunFinder(
            source, source.namespace, status=status, tags=tuple(tag or ()), parent=parent, archived=archived,
            since=0 if since is None else moment_us(since, now_us, "since"),
            until=None if until is None else moment_us(until, now_us, "until"),
        )
        table = _RunTable(listing, now_us, tree)
        filtered = any((status, tag, parent, since, until))
        found = _tree(source, finder, filtered, archived) if tree else ((run, "", 0) for run in finder.find())
        among = None if uncreated else _LOOKED_AT
        others = uncreated_runs(source, source.namespace, among) if not filtered else iter(())
        rows: Iterator[tuple[RunMetadata | str, str, int]] = (
            itertools.chain(found, ((name, "", 0) for name in others)) if uncreated else found
        )
        for run, guides, depth in rows:
            if listing.is_full:
                note(f"only the first {limit:,}: --limit N shows more")
                break
            table.add(run, guides, depth)
        if where.as_json:
            return
        if not listing.rows:
            note("no such runs" if filtered else "no runs")
        if not uncreated and (first := next(others, None)) is not None:
            note(f"there are runs that hold data and were never created, {first} is one: --all shows them")


def _tree(
    source: NamedSource, finder: RunFinder, filtered: bool, archived: bool
) -> Iterator[tuple[RunMetadata, str, int]]:
    """The runs that were found, each with what is below it."""

    def tops() -> Iterator[RunMetadata]:
        for run in finder.find():
            above = None
            if run.parent_run and not filtered:
                above = metadata_of(source, source.namespace, run.parent_run)
            # The others are drawn below their parents.
            if above is None or (above.status is RunStatus.ARCHIVED and not archived):
                yield run

    def below(run: RunMetadata) -> Iterator[RunMetadata]:
        finder = RunFinder(source, source.namespace, parent=run.run_id, archived=archived)
        return finder.find(oldest_first=True)

    return drawn(tops(), below)


class _RunTable:
    """One line for each run."""

    _ID: Final = (36, 80)  # with the guides of a tree

    def __init__(self, listing: Listing, now_us: int, is_tree: bool) -> None:
        self._listing = listing
        self._now_us = now_us
        self._is_tree = is_tree

    def add(self, run: RunMetadata | str, guides: str, depth: int) -> None:
        """A run; of one that was never created the id."""
        listing = self._listing
        if listing.as_json:
            document = dict(_NOTHING, run_id=run) if isinstance(run, str) else run_document(run)
            listing.document(document | ({"depth": depth} if self._is_tree else {}))
            return
        if not listing.rows:
            listing.line((f"{'STATUS':<9}  {'CREATED':<11}  {'TOOK':>7}  {'RUN':<36}  TAGS", "dim"))
        if isinstance(run, str):
            listing.words((f"{'-':<9}  {'never':<11}  {'':>7}  ", "dim"), (run, "bold"), rest="")
            return
        words = " ".join(plain(tag) for tag in run.tags)
        if run.error:
            words = f"{words}  {plain(run.error)}".strip()
        listing.words(
            (f"{run.status.value:<9}  ", STATUS_STYLES[run.status]),
            (f"{padded(short_time(run.created_at, self._now_us), 11)}  ", "cyan"),
            (f"{took(run, self._now_us):>7}  ", ""), (guides, "dim"),
            (listing.column(guides + run.run_id, self._ID)[len(guides) :] + "  ", "bold"),
            rest=words,
        )


# --- run ----------------------------------------------------------------------------------------


@command(about_runs=True, reads=True)
def run(
    where: Where,
    run: RunName,
    full: Full = False,
) -> None:
    """A run at a glance: its record, and what it holds of each primitive.

    Example: inmem run trip-to-oslo -d ./data
    """
    with where.reading() as source:
        store = source.run(run)
        metadata = described(source, store)
        if where.as_json:
            print_json(_summary(source, store, metadata))
        else:
            with Listing(as_json=False, full=full) as listing:
                _Summary(listing, source, store, metadata).show()


def _summary(source: NamedSource, store: StoredRun, metadata: RunMetadata | None) -> dict[str, Any]:
    types, whole = store.trace_types(1000)
    head = store.head()
    return {
        "run": store.name,
        "metadata": None if metadata is None else run_document(metadata),
        "children": 0 if metadata is None else _children(source, metadata.run_id),
        "counts": store.counts(),
        "last_event": None if head is None else {
            "sequence": head.sequence, "type": head.event_type, "timestamp": head.timestamp,
            "payload": to_json(head.payload),
        },
        "trace_types": types,
        "all_trace_types": whole,
        "version": _version(source),
    }


def _version(source: NamedSource) -> int:
    with source.moment() as moment:
        return moment.version


def _children(source: NamedSource, run_id: str) -> int:
    finder = RunFinder(source, source.namespace, parent=run_id, archived=True)
    return sum(1 for _ in finder.find())


class _Summary:
    """What `run` shows to people."""

    def __init__(
        self, listing: Listing, source: NamedSource, store: StoredRun, metadata: RunMetadata | None
    ) -> None:
        self._listing = listing
        self._source = source
        self._store = store
        self._run = metadata
        self._now_us = source.now_us()

    def show(self) -> None:
        self._head()
        counts = self._store.counts()
        self._events(counts["events"])
        self._cells(counts["cells"])
        self._traces(counts["traces"])
        self._leases(counts["leases"])
        self._entries(counts["kv"])
        self._queues(counts["queues"])

    def _field(self, name: str, text: str, style: str = "") -> None:
        self._listing.words((f"{name:<10}", "dim"), rest=text, style=style)

    def _head(self) -> None:
        run, listing = self._run, self._listing
        listing.line((self._store.name, "bold"))
        if run is None:
            if not self._store.name.startswith("@"):
                self._field("status", "none: it was never created")
            return
        self._field("status", f"{run.status.value} ({took(run, self._now_us)})", STATUS_STYLES[run.status])
        if run.error:
            self._field("error", plain(run.error), "red")
        self._field("created", full_time(run.created_at))
        self._field("updated", f"{full_time(run.updated_at)} (change {run.version})")
        if run.completed_at is not None:
            self._field("completed", full_time(run.completed_at))
        if run.parent_run is not None:
            self._field("parent", run.parent_run)
        children = _children(self._source, run.run_id)
        if children:
            self._field("children", f"{children:,}")
        if run.tags:
            self._field("tags", " ".join(plain(tag) for tag in run.tags))
        if run.metadata:
            listing.row(("metadata  ", "dim"), value=run.metadata, has_value=True)

    def _heading(self, name: str, count: int, more: str = "") -> None:
        self._listing.line(("", ""))
        self._listing.line((f"{name:<10}", "bold"), (f"{count:,}{more}", ""))

    def _measure(self, names: Iterable[str], cells: tuple[int, int]) -> None:
        """Make a column as wide as all that it has to hold, before its first row."""
        for name in names:
            self._listing.column(plain(name), cells)

    def _events(self, count: int) -> None:
        self._heading("events", count, f", the last {_LAST}" if count > _LAST else "")
        events = [logged.event for logged in self._store.events(max(0, count - _LAST))]
        self._measure((event.event_type for event in events), _TYPE_CELLS)
        for event in events:
            self._listing.row(
                (f"{event.sequence:>6}  ", "dim"),
                (padded(short_time(event.timestamp, self._now_us), 11) + "  ", "cyan"),
                (self._listing.column(plain(event.event_type), _TYPE_CELLS) + "  ", "bold"),
                value=event.payload, has_value=True,
            )

    def _cells(self, count: int) -> None:
        self._heading("cells", count, f", the first {_FIRST}" if count > _FIRST else "")
        cells = list(itertools.islice(self._store.cells(), _FIRST))
        self._measure((cell.name for cell in cells), _NAME_CELLS)
        for cell in cells:
            self._listing.row(
                ("  " + self._listing.column(plain(cell.name), _NAME_CELLS), "bold"),
                (f"  v{cell.version:<5} ", "green"), value=cell.value, has_value=True,
            )

    def _traces(self, count: int) -> None:
        self._heading("traces", count)
        if not count:
            return
        types, whole = self._store.trace_types(_FIRST)
        words = [f"{plain(name)} {number:,}" for name, number in types.items()]
        self._listing.words(("  ", ""), rest=" · ".join(words) + ("" if whole else " · …"))
        first = next(self._store.traces(), None)
        last = next(self._store.traces(reverse=True), None)
        if first is not None and last is not None:
            between = span((last.timestamp - first.timestamp) / 1e6)
            self._listing.words(
                ("  ", ""), style="dim",
                rest=f"from {full_time(first.timestamp)} to {full_time(last.timestamp)} ({between})",
            )

    def _leases(self, count: int) -> None:
        if count:
            self._heading("leases", count, f", the first {_FIRST}" if count > _FIRST else "")
            self._listing.words(("  ", ""), rest=holders(self._store, _FIRST))

    def _entries(self, count: int) -> None:
        self._heading("kv", count, f", the first {_FIRST}" if count > _FIRST else "")
        entries = list(itertools.islice(self._store.entries(), _FIRST))
        self._measure((entry.key for entry in entries), _KEY_CELLS)
        for entry in entries:
            self._listing.row(
                ("  " + self._listing.column(plain(entry.key), _KEY_CELLS) + "  ", "bold"),
                value=entry.value, has_value=True,
            )

    def _queues(self, count: int) -> None:
        """Of most runs nothing: it is shown where there are some."""
        if not count:
            return
        self._heading("queues", count, f", the first {_FIRST}" if count > _FIRST else "")
        with self._source.moment() as moment:
            found = queues_in(moment, self._store.prefix)
            names = found.list()[:_FIRST]
            self._measure(names, _NAME_CELLS)
            for name in names:
                self._listing.words(
                    ("  " + self._listing.column(plain(name), _NAME_CELLS) + "  ", "bold"),
                    rest=in_words(found.counts(name)),
                )
