"""`inmem export`, `inmem import`: runs as files of JSON Lines.

Invariant: a file that is not whole has no name, and a run that is not whole
cannot be found. Exporting changes nothing; importing opens the store as any
program does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from inmem.cli.common import (
    FAILED,
    Where,
    command,
    console,
    print_json,
    size,
)
from inmem.database import open as open_database
from inmem.engines.opening import is_url
from inmem.exchange import Exported, Imported, count_runs, discard_import, export_runs, import_runs
from inmem.exchange.given import check_given
from inmem.exchange.recorded import FORMATS, Recorded, import_recorded
from inmem.host.paths import absolute
from inmem.primitives.counts import shown_of

_SHOWN: Final = 10  # names of runs in a line: `--json` has all
_STANDARD: Final = Path("-")


@command(about_runs=True, reads=True, old="none")
def export(
    where: Where,
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Runs; all if none is named.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The file; - is standard output.", show_default=False
        ),
    ] = None,
) -> None:
    """Write runs to a file of JSON Lines: everything that they hold, exactly.

    Each run is of one moment. Equal runs give equal bytes. A writer is
    started if none serves, unless with --no-writer. What runs share
    (@agent, @app, @tenant) is no run and not exported.

    Example: inmem export triage-7 -o triage-7.jsonl -d ./data
    """
    wanted = where.split(runs or [], lambda word: "/" in word or Path(word).is_dir() or " " in word) or None
    if output is None:
        raise typer.BadParameter("where to write to is missing", param_hint="-o")
    if output == _STANDARD and where.as_json:
        raise typer.BadParameter("standard output cannot be both file and document", param_hint="-o")
    absolute(output, "FILE")
    namespace = where.namespace
    target: Path | BinaryIO = sys.stdout.buffer if output == _STANDARD else output
    with (
        where.exported() as store,
        _bar(where.as_json, MofNCompleteColumn(), TextColumn("{task.fields[detail]}")) as bar,
    ):
        total = None
        if bar is not None:
            total = len(wanted) if wanted else count_runs(store, namespace)
        task = None if bar is None else bar.add_task("exporting runs", total=total, detail="")

        def tell(report: Exported) -> None:
            if bar is not None and task is not None:
                bar.update(task, completed=report.runs, detail=f"{report.records:,} records")

        report = export_runs(store, target, wanted, namespace=namespace, progress=tell)
    if where.as_json:
        print_json(_document(report))
        return
    out = console() if output != _STANDARD else Console(stderr=True, highlight=False, markup=False)
    out.print(f"{_counted(report)} in {report.file}, {size(report.bytes)}", soft_wrap=True)
    if report.skipped:
        out.print(f"left out, being imported: {_some(report.skipped)}", soft_wrap=True)


@command(about_runs=True, old="none")
def import_(
    where: Where,
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE...", help="What to import; - is standard input.", show_default=False),
    ] = None,
    source_format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="|".join(FORMATS), help="Deprecated: recorded runs of agents, and no export."
        ),
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Pass over runs that exist and differ.")
    ] = False,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Import a run under another id.")
    ] = None,
    discard: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="Instead: remove what a killed import has left of a run."),
    ] = None,
) -> None:
    """Import runs that were exported; each is there as a whole or not at all.

    All of the file is verified first: counts, checksums, hash chains. Runs
    that are there already, exactly so, are left alone: after an interruption
    just do it again. A run that exists and differs is refused, and nothing is
    imported. With --format FILE holds recorded runs of agents instead, which
    is deprecated and goes with the next release.

    Example: inmem import triage-7.jsonl -d ./data
    """
    is_more = bool(discard) or len(files or []) > 1
    rest = where.split(files or [], lambda word: is_url(word) or _is_no_file(Path(word), is_more))
    names = [Path(name) for name in rest]
    if bool(names) is bool(discard):
        raise typer.BadParameter("name a file to import, or a run to --discard", param_hint="FILE")
    if source_format is not None and source_format not in FORMATS:
        raise typer.BadParameter(f"must be one of {', '.join(FORMATS)}", param_hint="--format")
    if source_format is not None and (skip_existing or rename):
        raise typer.BadParameter("recorded runs have ids of their own", param_hint="--format")
    renamed = dict(_pair(text) for text in rename or [])
    for name in names:
        if name != _STANDARD:
            check_given(name)  # before a store is made for it
    opened = where.open() if discard else open_database(
        where.named, tenant=where.tenant, app=where.app, agent=where.agent
    )  # fmt: skip
    with opened as database:
        if discard:
            for run_id in discard:
                discard_import(database, run_id)
            if where.as_json:
                print_json({"discarded": discard})
            else:
                console().print(f"removed: {_some(discard)}", soft_wrap=True)
        elif source_format is not None:
            print("inmem: --format is deprecated and goes with the next release", file=sys.stderr)
            with _bar(where.as_json, TextColumn("{task.fields[detail]}")) as bar:
                task = None if bar is None else bar.add_task("storing", total=None, detail="")

                def tell(source: str, steps: int) -> None:
                    if bar is not None and task is not None:
                        bar.update(task, detail=f"{steps:,} steps, {source}")

                recorded = import_recorded(database, names, source_format, progress=tell)
            _print_recorded(recorded, where.as_json)
        else:
            reports = [_import_one(database, name, skip_existing, renamed, where.as_json) for name in names]
            if where.as_json:
                print_json([_document(report) for report in reports])


import_.__name__ = "import"  # which a function cannot be called where it is defined


def _import_one(
    database: Any, file: Path, skip_existing: bool, renamed: dict[str, str], as_json: bool
) -> Imported:
    with _bar(as_json, DownloadColumn()) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if bar is not None:
                if what not in tasks:
                    tasks[what] = bar.add_task(what, total=total)
                bar.update(tasks[what], completed=done)

        source = sys.stdin.buffer if file == _STANDARD else file
        report = import_runs(database, source, skip_existing=skip_existing, rename=renamed, progress=tell)
    report.file = str(file)
    if not as_json:
        out = console()
        out.print(f"{_counted(report)} of {file} are in {database.name}", soft_wrap=True)
        for what, runs in (
            ("there already, and the same", report.unchanged), ("passed over, they differ", report.skipped),
            ("begun anew after a killed import", report.cleared),
        ):  # fmt: skip
            if runs:
                out.print(f"{what}: {_some(runs)}", soft_wrap=True)
    return report


def _print_recorded(report: Recorded, as_json: bool) -> None:
    if as_json:
        print_json(asdict(report))
    else:
        out = console()
        out.print(
            f"{report.new:,} new runs, {report.continued:,} continued, {report.complete:,} there already: "
            f"{report.steps:,} steps, {report.events:,} events, {report.traces:,} traces",
            soft_wrap=True,
        )
        for note in report.notes:
            out.print(f"note: {note}", soft_wrap=True)
        for rejected in report.rejected:
            print(f"inmem: {rejected.source} is no recorded run: {rejected.reason}", file=sys.stderr)
    if report.rejected:
        raise typer.Exit(FAILED)


def _pair(text: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not sign:
        raise typer.BadParameter(f"{text!r} is not OLD=NEW", param_hint="--rename")
    return old, new


def _is_no_file(given: Path, is_more: bool) -> bool:
    """Whether a word is no file to import: a directory, or, if there is more to do, nothing yet."""
    return given != _STANDARD and (given.is_dir() or (is_more and not given.exists()))


@contextmanager
def _bar(as_json: bool, *columns: Any) -> Iterator[Progress | None]:
    """A progress bar on a terminal; None elsewhere."""
    errors = Console(stderr=True, highlight=False, markup=False)
    if as_json or not errors.is_terminal:
        yield None
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), *columns, TimeElapsedColumn(),
        console=errors, transient=True,
    )
    with bar:
        yield bar


def _document(report: Exported | Imported) -> dict[str, Any]:
    """A report for programs."""
    document = asdict(report)
    del document["counts"]
    return document | report.counts


def _counted(report: Exported | Imported) -> str:
    names = {"kv": "entries"}
    counts = ", ".join(f"{count:,} {names.get(name, name)}" for name, count in shown_of(report.counts))
    return f"{report.runs:,} runs ({counts})"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
