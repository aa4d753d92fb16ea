"""`inmem top`: a writer at work, as it goes.

Invariant: it asks the writer for its counters once an interval and is a
client like any other meanwhile; it never starts one, and outlives those that
it watches.
"""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Self

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from inmem.cli.common import Where, command, console, size
from inmem.cli.text import ELLIPSIS, fitted, plain, span
from inmem.database import Database, Status
from inmem.database import open as open_database
from inmem.errors import InmemError, WriterUnavailableError
from inmem.host.directory import DataDirectory
from inmem.reading.live_image import is_served

_HOTTEST: Final = 8
_LEAST_SHARE: Final = 0.01
_HISTORY: Final = 60  # intervals in the curve of commits
_LEVELS: Final = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Rates:
    """What happened in one interval. Counts are per second, except for `batch`: commits in a group."""

    seconds: float
    commits: float
    conflicts: float
    failures: float
    batches: float
    batch: float | None
    group_ms: float | None
    wal_bytes: float


def rates(before: Status, after: Status, seconds: float) -> Rates | None:
    """What happened between two answers; None if they are of two writers."""
    if (before.writer_pid, before.epoch) != (after.writer_pid, after.epoch) or seconds <= 0:
        return None
    commits = after.commits - before.commits
    if commits < 0:  # a server begins to count anew after a crash
        return None
    batches = after.batches - before.batches
    groups = after.groups - before.groups
    return Rates(
        seconds=seconds,
        commits=commits / seconds,
        conflicts=(after.conflicts - before.conflicts) / seconds,
        failures=(after.failures - before.failures) / seconds,
        batches=batches / seconds,
        batch=commits / batches if batches > 0 else None,
        group_ms=1e3 * (after.group_s - before.group_s) / groups if groups > 0 else None,
        wal_bytes=max(0, after.wal_bytes - before.wal_bytes) / seconds,
    )


class Watcher:
    """Asks the writer that serves, whichever it is. Use it as a context manager."""

    def __init__(self, store: DataDirectory | str, timeout_s: float) -> None:
        self._store = store  # a directory, or a URL
        self.name = str(store.path) if isinstance(store, DataDirectory) else "a server"
        self._timeout_s = timeout_s
        self._database: Database | None = None
        self._last: tuple[Status, float] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def ask(self) -> tuple[Status | None, Rates | None, str]:
        """What the writer says, what happened since it was asked last, and why it says nothing.

        Raises:
            WriterUnavailableError: the directory is gone.
        """
        store = self._store
        if isinstance(store, DataDirectory) and not store.exists():
            raise WriterUnavailableError(
                f"{store.path} was removed", path=str(store.path), hint="Create it anew."
            )
        if isinstance(store, DataDirectory) and not is_served(store):
            self._close()  # no client of nobody: the next writer is to be asked anew
            self._last = None
            return None, None, "no writer serves"
        try:
            if self._database is None:
                self._database = open_database(
                    store.path if isinstance(store, DataDirectory) else store, create=False, autostart=False,
                    timeout_s=self._timeout_s,
                )
            self.name = self._database.name
            status = self._database.status()
        except InmemError as error:
            self._close()
            self._last = None
            return None, None, plain(error.message)
        now = time.monotonic()
        before, self._last = self._last, (status, now)
        return status, rates(before[0], status, now - before[1]) if before else None, ""


@command()
def top(
    where: Where,
    interval: Annotated[
        float, typer.Option("--interval", "-i", metavar="SECONDS", min=0.1, help="Between two looks.")
    ] = 1.0,
    count: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="End after so many intervals.")
    ] = None,
) -> None:
    """Watch a writer at work: rates, sizes, clients, the busiest runs. Ends with q.

    It never starts a writer. If the one that it watches goes away it says so,
    and goes on with the next. It is a client: a writer that leaves with its
    last client stays as long as this watches.

    Example: inmem top --interval 2 -d ./data
    """
    if where.is_server:
        where.open().close()  # it is there
    store = where.named if where.is_server else where.directory()
    with Watcher(store, max(1.0, interval)) as watcher:
        if where.as_json:
            _print_lines(watcher, interval, count)
        else:
            _draw(watcher, interval, count)


def _intervals(interval: float, count: int | None) -> Iterator[None]:
    """Once at the end of each interval, until there were enough or q was pressed."""
    due = time.monotonic()
    number = 0
    with _keys() as pressed_within:
        while count is None or number < count:
            due = max(due + interval, time.monotonic())
            if "q" in pressed_within(due):
                return
            number += 1
            yield


@contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits until a time and tells which keys were pressed meanwhile, or before."""
    fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    # Of a job in the background it is not the terminal's turn to be changed.
    if fd >= 0 and os.tcgetpgrp(fd) != os.getpgrp():
        fd = -1
    saved = termios.tcgetattr(fd) if fd >= 0 else None

    def pressed_within(due: float) -> str:
        while True:
            left = max(0.0, due - time.monotonic())
            if fd < 0:
                time.sleep(left)
                return ""
            if not select.select([fd], [], [], left)[0]:
                return ""
            keys = os.read(fd, 64).decode(errors="replace")
            if "q" in keys or not keys:
                return "q"

    try:
        if fd >= 0:
            tty.setcbreak(fd)
        yield pressed_within
    finally:
        if saved is not None:
            with suppress(termios.error):
                termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _print_lines(watcher: Watcher, interval: float, count: int | None) -> None:
    watcher.ask()
    for _ in _intervals(interval, count):
        status, passed, problem = watcher.ask()
        document: dict[str, Any] = {"path": watcher.name, "serving": status is not None}
        if status is None:
            document["problem"] = problem
        else:
            document |= {"rates": asdict(passed) if passed else None} | asdict(status)
        sys.stdout.write(json.dumps(document) + "\n")
        sys.stdout.flush()


def _draw(watcher: Watcher, interval: float, count: int | None) -> None:
    out = console()
    history: list[float] = []
    shown = _Picture(watcher, interval, history)
    status, passed, problem = watcher.ask()
    if not out.is_terminal:
        for _ in _intervals(interval, count):
            shown.take(*watcher.ask())
            out.print(shown.lines(out.width))
            sys.stdout.flush()
        return
    shown.take(status, passed, problem)
    with Live(shown.lines(out.width), console=out, auto_refresh=False, vertical_overflow="crop") as live:
        for _ in _intervals(interval, count):
            shown.take(*watcher.ask())
            live.update(shown.lines(out.width), refresh=True)


class _Picture:
    """What is on the screen."""

    def __init__(self, watcher: Watcher, interval: float, history: list[float]) -> None:
        self._watcher = watcher
        self._interval = interval
        self._history = history
        self._status: Status | None = None
        self._rates: Rates | None = None
        self._problem = ""

    def take(self, status: Status | None, passed: Rates | None, problem: str) -> None:
        """What was told; the last status stays on the screen, dimmed, while there is no other."""
        self._status = status or self._status
        self._rates, self._problem = passed, problem
        self._history.append(passed.commits if passed else 0.0)
        del self._history[:-_HISTORY]

    def lines(self, width: int) -> RenderableType:
        """The screen."""
        now = time.strftime("%H:%M:%S")
        head = Text.assemble(
            ("inmem top ", "bold"), fitted(plain(self._watcher.name), max(8, width - 40)),
            (f"  {now}, every {self._interval:g} s, q ends", "dim"),
        )
        parts: list[RenderableType] = [head]
        if self._problem:
            parts.append(Text(f"{self._problem}: waiting for one", style="bold red"))
        if self._status is not None:
            parts.append(self._fields(self._status, width))
            if self._status.hot:
                parts.append(self._hottest(self._status, width))
        return Group(*parts)

    def _fields(self, status: Status, width: int) -> Table:
        passed = self._rates
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", style="dim" if self._problem else "")
        if status.writer_pid:
            writer = f"process {status.writer_pid}, epoch {status.epoch}"
            table.add_row("writer", f"{writer}, {status.durability}")
        if passed is None:
            table.add_row("commits", f"{status.commits:,} so far")
        else:
            table.add_row("commits", f"{passed.commits:,.0f}/s  {curve(self._history, max(8, width - 40))}")
        if passed is not None and status.writer_pid:
            others = passed.failures - passed.conflicts
            table.add_row("refused", f"{passed.conflicts:,.0f}/s conflicts, {others:,.0f}/s failures")
            batch = "none" if passed.batch is None else f"{passed.batch:,.1f} commits"
            latency = "" if passed.group_ms is None else f", {span(passed.group_ms / 1e3)} each"
            table.add_row("groups", f"{passed.batches:,.0f}/s of {batch}{latency}")
        if not status.writer_pid:
            self._add_server(table, status)
            return table
        behind = status.version - status.durable_version
        durable = ", all durable" if behind <= 0 else f", {behind:,} not yet durable"
        table.add_row("version", f"{status.version:,}{'' if status.durability == 'memory' else durable}")
        used = 100 * status.image_bytes / status.quota_bytes
        table.add_row(
            "image", f"{size(status.image_bytes)} of {size(status.quota_bytes)} ({used:.1f} %), "
            f"file {size(status.image_file_bytes)}",
        )
        if status.durability != "memory":
            grows = f", {size(round(passed.wal_bytes))}/s" if passed else ""
            table.add_row("log", size(status.wal_bytes) + grows)
        self._add_clients(table, status)
        return table

    def _add_server(self, table: Table, status: Status) -> None:
        table.add_row("version", f"{status.version:,}")
        tables, all_of_them = size(status.image_bytes), size(status.image_file_bytes)
        table.add_row("tables", f"{tables}, with their indices {all_of_them}")
        self._add_clients(table, status)

    @staticmethod
    def _add_clients(table: Table, status: Status) -> None:
        table.add_row("clients", f"{status.clients} processes, {status.sessions} sessions, this one included")
        oldest = status.oldest_snapshot_age_s
        table.add_row("oldest snapshot", "none" if oldest is None else f"{oldest:.1f} s old")

    def _hottest(self, status: Status, width: int) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="dim" if self._problem else "bold")
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, style="cyan")
        table.add_row(Text("busiest runs", "dim"), Text("commits", "dim"), "")
        for name, share in list(status.hot.items())[:_HOTTEST]:
            if share >= _LEAST_SHARE:
                bar = "█" * max(1, round(20 * share))
                table.add_row(ending(plain(name), max(16, width - 32)), f"{100 * share:.0f} %", bar)
        return table


def ending(text: str, cells: int) -> str:
    """The text in at most so many characters; of a long one the end, in which names of runs differ.

    >>> ending("default/default/default/run-17", 12)
    '…ault/run-17'
    """
    return text if len(text) <= cells else ELLIPSIS + text[1 - cells :]


def curve(values: list[float], cells: int) -> str:
    """Numbers as a curve one line high, the last on the right.

    >>> curve([0, 1, 2, 4], 3)
    '▂▄█'
    """
    shown = values[-cells:]
    highest = max(shown, default=0.0)
    if highest <= 0:
        return _LEVELS[0] * len(shown)
    return "".join(_LEVELS[min(7, int(value / highest * 7.999))] for value in shown)
