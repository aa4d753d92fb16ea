"""`inmem backup`, `restore`, `checkpoint`, `clock`, `salvage`: keeping what is stored, and getting it back.

Invariant: nothing that exists is ever replaced, and what these commands could
not finish has no name. Only `checkpoint` and `clock` need a writer, and start
one as any program does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from inmem.cli.common import Where, command, console, print_fields, print_json, size
from inmem.database import CHECKPOINT_TIMEOUT_S
from inmem.host.paths import absolute, check_path
from inmem.maintenance.backup_report import backup_in_process
from inmem.maintenance.process import Progress
from inmem.maintenance.restore import restore as restore_directory
from inmem.maintenance.salvage import salvage_in_process
from inmem.maintenance.salvage_report import SalvageReport
from inmem.wire import SET_BACK

_BACKUP: Final = (
    "pg_dump --schema=NAME, or a base backup with its log (pg_basebackup); runs as files: inmem export"
)
_SHOWN: Final = 20  # runs and places of a salvage: `--json` has all

NewFile = Annotated[Path, typer.Argument(metavar="FILE", help="The new file.", show_default=False)]
NewPath = Annotated[Path, typer.Argument(metavar="NEW", help="The new data directory.", show_default=False)]


@contextmanager
def _progress(as_json: bool) -> Iterator[Progress]:
    """A line on a terminal that says what goes on; nothing elsewhere."""
    errors = Console(stderr=True, highlight=False, markup=False)
    if as_json or not errors.is_terminal:
        yield lambda text: None
        return
    with errors.status("...") as status:
        yield status.update


@command(reads=True, old="first", only_here=_BACKUP)
def backup(where: Where, file: NewFile) -> None:
    """Copy a database to one new file, while it is used or not.

    The file holds one moment, is for this user only, durable and read back.
    A writer is started if none serves, unless with --no-writer.

    Example: inmem backup ./data.backup -d ./data
    """
    new = absolute(check_path(file, "FILE"), "FILE")
    with where.served() as directory, _progress(where.as_json) as progress:
        report = backup_in_process(directory.path, new, progress)
    if where.as_json:
        print_json(asdict(report))
    else:
        console().print(
            f"version {report.version} of {report.path} is in {report.file}: {report.entries:,} entries, "
            f"{size(report.bytes)}, {report.seconds:.1f} s",
            soft_wrap=True,
        )


@command(only_here="pg_restore, or a base backup; runs from files: inmem import")
def restore(
    where: Where,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.", show_default=False)],
) -> None:
    """Make a new data directory from a backup.

    The whole file is verified before the directory appears. It is a database
    of its own, with the settings of the backup: programs that were connected
    to the old one have to open it anew.

    Example: inmem restore ./data.backup -d ./data
    """
    with _progress(where.as_json) as progress:
        report = restore_directory(absolute(file, "FILE"), Path(check_path(where.path)), progress)
    if where.as_json:
        print_json(asdict(report))
        return
    console().print(
        f"{report.path} holds version {report.backup_version} of {report.file}: {report.entries:,} entries, "
        f"durability {report.durability}, {report.seconds:.1f} s",
        soft_wrap=True,
    )
    for note in report.notes:
        console().print(f"note: {note}", soft_wrap=True)


@command(only_here="A server writes its checkpoints itself.")
def checkpoint(
    where: Where,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.001, help="How long to wait.")
    ] = CHECKPOINT_TIMEOUT_S,
) -> None:
    """Write what is stored to one file and drop the log before it; commits go on.

    The writer does this by itself as the log grows: before a planned restart
    it makes that restart quick.

    Example: inmem checkpoint -d ./data
    """
    with where.open() as database, _progress(where.as_json) as progress:
        progress("copying")
        report = database.checkpoint(timeout_s=timeout)
    if where.as_json:
        print_json(asdict(report))
    else:
        console().print(
            f"version {report.version}: {report.entries:,} entries, {size(report.bytes)}, "
            f"{report.seconds:.1f} s; the log has {size(report.wal_bytes)} left",
            soft_wrap=True,
        )


@command(only_here="Store time is the clock of the server.")
def clock(
    where: Where,
    set_back: Annotated[
        bool, typer.Option("--set-back", help="Let store time go back to the wall clock.")
    ] = False,
) -> None:
    """How far the store's time is ahead of the wall clock, and setting it back.

    Store time never goes back by itself. If the wall clock was ahead for more
    than a minute, what is written stays dated ahead until it has caught up.
    Correct the wall clock first, then set store time back. What was stored
    with a ttl meanwhile lasts for as long as was said; what has expired by
    the wrong clock is gone; records and events keep the times that they have.

    Example: inmem clock -d ./data --set-back
    """
    with where.open() as database:
        if set_back:
            found = database.engine.request(SET_BACK, database.engine.settings.timeout_s)[1]
        else:
            found = {"seconds": database.status().clock_ahead_s, "expiries": 0}
    if where.as_json:
        print_json(dict(found))
    elif set_back:
        console().print(f"set back by {found['seconds']:,.0f} s; {found['expiries']:,} expiries with it")
    else:
        console().print(f"store time is ahead of the wall clock by {max(0.0, found['seconds']):,.0f} s")


@command(old="first", only_here="Take a standby, or the last backup; what can be read: inmem export")
def salvage(where: Where, new: NewPath) -> None:
    """Write what can be proved good of a damaged database to a new directory.

    For a database that is refused with file and offset, and of which there is
    no backup. The old directory is not changed. The new one holds a state
    that the old one had at one moment: of a log that is damaged in the middle
    only what comes before, because a later record may build on a lost one.
    The best source is the image that a killed writer left in memory; it is
    used if it is intact, so do not restart the machine before a salvage.
    What had to be left is listed. The exit code is 0 if there is a new
    database, whatever it lacks.

    Example: inmem salvage ./salvaged -d ./data
    """
    target = absolute(check_path(new, "NEW"), "NEW")
    with _progress(where.as_json) as progress:
        report = salvage_in_process(where.directory().path, target, progress)
    if where.as_json:
        print_json({"complete": not report.dropped} | asdict(report))
    else:
        _print(report)


def _print(report: SalvageReport) -> None:
    out = console()
    print_fields({
        "new database": report.target,
        "taken from": report.source,
        "as of version": f"{report.version:,}",
        "known durable": f"{report.durable:,}",
        "known published": f"{report.published:,}",
        "entries": f"{report.entries:,}",
        "log records replayed": f"{report.replayed:,}",
        "check": f"{len(report.problems):,} problems" if report.problems else "nothing wrong was found",
    })
    if report.dropped:
        table = Table("left out of", "bytes", "versions", "records", "because", box=None, pad_edge=False)
        for one in report.dropped[:_SHOWN]:
            versions = f"{one.first_version}-{one.last_version}" if one.last_version else "unknown"
            table.add_row(
                Path(one.file).name, f"{one.offset}-{one.end}", versions, f"{one.records:,}", one.what
            )
        out.print(table)
        _say_more(len(report.dropped))
    else:
        out.print("nothing was left out")
    for run, kinds in list(report.lost_runs.items())[:_SHOWN]:
        out.print(f"lost of {run}: {', '.join(kinds)}", soft_wrap=True)
    _say_more(len(report.lost_runs))
    for note in report.notes:
        out.print(f"note: {note}", soft_wrap=True)
    for problem in report.problems:
        out.print(f"problem: {problem}", soft_wrap=True)


def _say_more(count: int) -> None:
    if count > _SHOWN:
        console().print(f"and {count - _SHOWN:,} more: --json has all")
