"""`inmem events`, `cells`, `verify`: what one run holds. These commands change nothing."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer

from inmem.cli.common import (
    FAILED,
    Full,
    Limit,
    RunName,
    Where,
    command,
    console,
    described,
    print_json,
)
from inmem.cli.listing import Listing, note
from inmem.cli.text import clock, day, padded, plain, short_time
from inmem.errors import InvalidInputError, RunDeletedError, SnapshotTooOldError, WriterUnavailableError
from inmem.jsonvalues import to_json
from inmem.keys import TypeTag, range_of
from inmem.primitives.events.rules import HASH_BYTES
from inmem.reading.named_source import NamedSource
from inmem.reading.run import Logged, StoredRun
from inmem.reading.runs import is_deleted

_BETWEEN_S: Final = 0.02  # before another look for the image of a writer that has just come
_TAIL: Final = 10  # events before the ones that are followed
NAME_CELLS: Final = (16, 32)  # of a column: at first, and at most
_TYPE_CELLS: Final = (12, 24)


# --- events -------------------------------------------------------------------------------------


@command(about_runs=True, reads=True)
def events(
    where: Where,
    run: RunName,
    event_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only events of this type.")
    ] = None,
    start: Annotated[
        int | None, typer.Option("--from", metavar="N", min=0, help="From this sequence on.")
    ] = None,
    last: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the last of them.")] = None,
    limit: Limit = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with new ones as they commit, until Ctrl-C.")
    ] = False,
    full: Full = False,
) -> None:
    """The events of a run, in their order.

    With --follow the last ten come first, unless --from or --last says
    otherwise, and a writer that is replaced makes no difference. Following
    starts no writer and keeps none.

    Example: inmem events trip-to-oslo --follow -d ./data
    """
    if start is not None and last is not None:
        raise InvalidInputError("--from and --last exclude each other", argument="last")
    with (
        where.reading(follows=follow) as source,
        Listing(as_json=where.as_json, full=full, limit=limit) as listing,
    ):
        log = source.run(run)
        if not follow:  # which waits for one that is not there yet
            described(source, log)
        if follow and start is None and last is None:
            last = _TAIL
        begin = start or 0
        if last is not None:
            begin = _first_of_last(log, last, event_type)
        printer = _EventPrinter(source, log, listing, begin, event_type)
        printer.print_new()
        if follow:
            printer.follow()
        elif not listing.rows and not where.as_json:
            note(f"{run} has no such events" if event_type or start else f"{run} has no events")


def _first_of_last(log: StoredRun, count: int, event_type: str | None) -> int:
    """The sequence from which on there are so many."""
    if event_type is None:
        return max(0, log.length() - count)
    first = log.length()
    for number, logged in enumerate(log.events(0, event_type, reverse=True), 1):
        first = logged.event.sequence
        if number == count:
            break
    return first


class _EventPrinter:
    """Prints the events of a log, and knows which comes next."""

    def __init__(
        self, source: NamedSource, log: StoredRun, listing: Listing, start: int, event_type: str | None
    ) -> None:
        self._source = source
        self._log = log
        self._listing = listing
        self._next = start
        self._length = 0  # of the log, when it was looked at last
        self._type = event_type
        self._day = ""

    def print_new(self) -> None:
        """Print all that there are from the next one on."""
        for logged in self._log.events(self._next, self._type):
            if self._listing.is_full:
                return
            self._next = logged.event.sequence + 1
            self._print(logged)

    def _print(self, logged: Logged) -> None:
        event, listing = logged.event, self._listing
        if listing.as_json:
            listing.document({
                "sequence": event.sequence, "type": event.event_type, "payload": to_json(event.payload),
                "timestamp": event.timestamp, "hash": event.hash.hex(),
            })
            return
        today = day(event.timestamp)
        if today != self._day:
            self._day = today
            listing.line((today, "dim"))
        listing.row(
            (f"{event.sequence:>6}  ", "dim"), (clock(event.timestamp) + "  ", "cyan"),
            (listing.column(plain(event.event_type), _TYPE_CELLS) + "  ", "bold"),
            value=event.payload, has_value=True,
        )

    def follow(self) -> None:
        """Print events as they commit, over restarts of the writer, until interrupted or enough.

        Raises:
            RunDeletedError: the run was deleted: nothing will follow.
        """
        log, _ = range_of(self._log.prefix, TypeTag.EVENT)
        while not self._listing.is_full:
            self._listing.flush()
            armed = self._source.arm(log)
            self._source.follow()
            try:
                before, self._length = self._length, self._log.length()
                self._check_not_deleted()
                if self._length < before:
                    note(f"the log of {self._log.name} is shorter than it was: from its beginning")
                    self._next = 0
                if self._length > self._next:
                    self.print_new()
                    self._next = max(self._next, self._length)
                else:
                    self._source.sleep(armed)
            except (SnapshotTooOldError, WriterUnavailableError):
                time.sleep(_BETWEEN_S)  # between two images: the next look is at the new one

    def _check_not_deleted(self) -> None:
        name = self._log.name
        if not self._length:
            with self._source.moment() as moment:
                if is_deleted(moment, self._log):
                    raise RunDeletedError(f"run {name} was deleted: nothing will follow", run_id=name)


# --- cells --------------------------------------------------------------------------------------


@command(about_runs=True, reads=True)
def cells(
    where: Where,
    run: RunName,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Only names that begin so.")] = None,
    limit: Limit = None,
    full: Full = False,
) -> None:
    """The cells of a run with their versions, in order of their names.

    Example: inmem cells trip-to-oslo -d ./data
    """
    with (
        where.reading() as source,
        Listing(as_json=where.as_json, full=full, limit=limit) as listing,
    ):
        now_us = source.now_us()
        store = source.run(run)
        described(source, store)
        for cell in store.cells(prefix):
            if listing.is_full:
                break
            if where.as_json:
                listing.document({
                    "name": cell.name, "value": to_json(cell.value), "version": cell.version,
                    "updated_at": cell.updated_at,
                })
                continue
            listing.row(
                (listing.column(plain(cell.name), NAME_CELLS), "bold"), (f"  v{cell.version:<5} ", "green"),
                (padded(short_time(cell.updated_at, now_us), 11) + "  ", "cyan"),
                value=cell.value, has_value=True,
            )
        if not listing.rows and not where.as_json:
            note(f"{run} has no cells")


# --- verify -------------------------------------------------------------------------------------


@command(about_runs=True, reads=True)
def verify(
    where: Where,
    run: RunName,
    anchor: Annotated[
        str | None,
        typer.Option(metavar="N:HASH", help="A sequence and its hash, kept elsewhere: shows a cut log."),
    ] = None,
) -> None:
    """Whether the hash chain of a run's events is whole.

    The exit code is 0 if it is, 1 if an event was changed, lost, inserted or
    moved. What it prints of the last event can be the anchor of a later call.

    Example: inmem verify trip-to-oslo -d ./data
    """
    kept = None if anchor is None else _anchor(anchor)
    with where.reading() as source:
        log = source.run(run)
        described(source, log)
        verdict = log.verify(kept)
        head = log.head() if verdict.is_valid else None
    if where.as_json:
        document: dict[str, Any] = {"run": run} | asdict(verdict)
        if head is not None:
            document["head"] = {"sequence": head.sequence, "hash": head.hash.hex()}
        print_json(document)
    else:
        out = console()
        if not verdict.is_valid:
            problem = plain(verdict.error or "")
            out.print(f"broken at event {verdict.first_invalid}: {problem}", style="bold red", soft_wrap=True)
            out.print(f"the {verdict.length:,} events before it are whole", soft_wrap=True)
        elif head is None:
            out.print(f"{run} has no events", soft_wrap=True)
        else:
            out.print(f"whole: {verdict.length:,} events", style="bold green", soft_wrap=True)
            out.print(f"anchor: {head.sequence}:{head.hash.hex()}", style="dim", soft_wrap=True)
    if not verdict.is_valid:
        raise typer.Exit(FAILED)


def _anchor(text: str) -> tuple[int, bytes]:
    sequence, _, digest = text.partition(":")
    try:
        kept = int(sequence), bytes.fromhex(digest)
    except ValueError:
        kept = -1, b""
    if kept[0] < 0 or len(kept[1]) != HASH_BYTES:
        raise InvalidInputError(
            "the anchor is not a sequence, a colon and 64 hexadecimal digits", argument="anchor",
            hint="An earlier verify printed one.",
        )
    return kept
