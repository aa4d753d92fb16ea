"""`inmem check`: whether what is stored is what the rules say it must be."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from inmem.cli.common import FAILED, Where, command, console, print_json, size
from inmem.maintenance.check_report import check_in_process
from inmem.reports import CheckReport


@command(old="none")
def check(
    where: Where,
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="A backup instead.", show_default=False)
    ] = None,
) -> None:
    """Verify image, checkpoint, log, hash chains and indices; commits go on meanwhile.

    FILE is a backup to be verified. It changes nothing and starts no writer:
    where none serves, the log is replayed into private memory. The exit code
    is 0 if nothing was found, and 1, with one line for each problem, otherwise.

    Example: inmem check -d ./data
    """
    if file is not None and not Path(file).is_file():
        where.take_old(file)
        file = None
    if file is None and where.is_server:
        with where.open() as database:
            report = database.check()
    else:
        report = check_in_process(Path(file) if file else where.directory().path)
    if where.as_json:
        print_json({"ok": report.ok} | asdict(report))
    else:
        _print(report, has_log=not where.is_server)
    if not report.ok:
        raise typer.Exit(FAILED)


def _print(report: CheckReport, *, has_log: bool) -> None:
    out = console()
    out.print(
        f"version {report.version}: {report.records:,} records, {report.events:,} events in "
        f"{report.logs:,} event logs"
        + f", checkpoint at {report.checkpoint}, {report.wal_records:,} log records "
        f"({size(report.wal_bytes)})" * has_log,
        soft_wrap=True,
    )
    for note in report.notes:
        out.print(f"note: {note}", soft_wrap=True)
    for problem in report.problems:
        out.print(f"problem: {problem}", soft_wrap=True)
    out.print(f"{len(report.problems):,} problems" if report.problems else "nothing wrong was found")
