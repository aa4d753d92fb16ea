"""Options, screen and exit codes of the chaos.

Invariant: as in `workers.cli`. 0 all is well, 1 something is off, 2 wrong
usage, 128 + n stopped by signal n (130 for Ctrl-C).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from inmem import InmemError
from workers.chaos import ChaosObserver, run_chaos
from workers.chaos_plan import Rates
from workers.chaos_result import ChaosOptions, ChaosResult, chaos_verdict, print_chaos, write_json
from workers.cli import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_SIGNAL,
    Quiet,
    Workers,
)
from workers.pool import Interrupt, Interrupted, TimedOut
from workers.report import print_problems

LOGGED: Final = ("buffered", "sync")  # a store without a log forgets with its writer
PLAIN_INTERVAL_S: Final = 5.0
MAX_RATE: Final = 600.0
SLACK_S: Final = 600.0  # beyond the minutes asked for: start, drain, judgement

chaos_app: typer.Typer = typer.Typer(add_completion=False)


def _logged(value: str) -> str:
    if value not in LOGGED:
        raise typer.BadParameter(f"must be one of {', '.join(LOGGED)}")
    return value


def _writable_directory(value: Path | None) -> Path | None:
    if value is not None and not value.is_dir():
        raise typer.BadParameter(f"{value} is no directory")
    return value


def _file(value: Path | None) -> Path | None:
    if value is not None and (value.is_dir() or not value.resolve().parent.is_dir()):
        raise typer.BadParameter(f"{value} cannot be written: it is a directory, or its directory is missing")
    return value


class _Screen(ChaosObserver):
    """Live figures on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, show: bool) -> None:
        self._console = console
        self._show = show
        self._live: Live | None = None
        self._next = PLAIN_INTERVAL_S
        self._seconds = 0.0

    def started(self, options: ChaosOptions, store: str, writer_pid: int) -> None:
        self._seconds = options.seconds
        self.note(f"Store {store}, writer process {writer_pid}; starting {options.workers} workers")
        if self._show and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=2, transient=True)
            self._live.start()

    def progress(self, seconds: float, told: tuple[int, int, int], result: ChaosResult) -> None:
        last = f"{result.recoveries[-1].seconds:.2f} s" if result.recoveries else "-"
        figures = {
            "time": f"{seconds:.0f} of {self._seconds:.0f} s",
            "operations": f"{told[0]:,} ({told[0] / max(seconds, 0.1):,.0f}/s)",
            "last recovery": last,
            **{kind.replace("_", " "): f"{count:,}" for kind, count in sorted(result.done.items())},
        }
        if self._live is not None:
            table = Table.grid(padding=(0, 2, 0, 0))
            for name, value in figures.items():
                table.add_row(name, value)
            self._live.update(table)
        elif self._show and seconds >= self._next:
            self._next = seconds + PLAIN_INTERVAL_S
            line = ", ".join(f"{name} {value}" for name, value in figures.items())
            self._console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self.close()
        if self._show:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


@chaos_app.command()
def chaos(
    minutes: Annotated[
        float, typer.Option(min=0.05, max=24 * 60, help="How long workers are disturbed.")
    ] = 10.0,
    seed: Annotated[
        int | None, typer.Option(help="Determines the schedule and what workers try. Default: chance.")
    ] = None,
    workers: Workers = 16,
    durability: Annotated[str, typer.Option(callback=_logged, help="buffered or sync.")] = "buffered",
    kills_per_minute: Annotated[
        float,
        typer.Option(min=0.0, max=MAX_RATE, help="SIGKILLs of the writer; one in ten also of the next."),
    ] = Rates().kill_writer,
    stops_per_minute: Annotated[
        float, typer.Option(min=0.0, max=MAX_RATE, help="SIGSTOPs of the writer, for up to a second.")
    ] = Rates().stop_writer,
    worker_kills_per_minute: Annotated[
        float, typer.Option(min=0.0, max=MAX_RATE, help="SIGKILLs of a worker; another takes its place.")
    ] = Rates().kill_worker,
    worker_stops_per_minute: Annotated[
        float, typer.Option(min=0.0, max=MAX_RATE, help="SIGSTOPs of a worker, for up to three seconds.")
    ] = Rates().stop_worker,
    checkpoints_per_minute: Annotated[
        float, typer.Option(min=0.0, max=MAX_RATE, help="Calls of db.checkpoint().")
    ] = Rates().checkpoint,
    fills_per_minute: Annotated[
        float, typer.Option(min=0.0, max=MAX_RATE, help="How often the quota is used up and freed again.")
    ] = Rates().fill_memory,
    disk_fills_per_minute: Annotated[
        float,
        typer.Option(min=0.0, max=MAX_RATE, help="How often the disk is used up and freed; needs --disk."),
    ] = Rates().fill_disk,
    rate: Annotated[
        float, typer.Option(min=0.0, help="Operations of each worker per second, at most. 0: no bound.")
    ] = 40.0,
    quota_mib: Annotated[
        int | None,
        typer.Option(min=64, max=65536, help="Quota of the store. Default: by the minutes."),
    ] = None,
    disk: Annotated[
        bool,
        typer.Option("--disk", help="Put the data on a small file system in memory and fill it. As root."),
    ] = False,
    disk_mib: Annotated[int, typer.Option(min=64, max=65536, help="Size of that file system.")] = 1024,
    directory: Annotated[
        Path | None,
        typer.Option(
            callback=_writable_directory, help="Where the store is put. Default: as for any temporary file."
        ),
    ] = None,
    quiet: Quiet = False,
    json: Annotated[
        Path | None,
        typer.Option(callback=_file, metavar="FILE", help="Write all figures there as one JSON object."),
    ] = None,
) -> None:
    """Kill, stop and fill everything around working processes; then look for what was lost or doubled.

    Workers use one store through all primitives: single and pipelined writes,
    counters, logs, cells, traces, lists under transactions, snapshots, runs
    that are deleted, entries that expire. Each notes every question before it
    asks and every answer before it goes on, in a journal of its own.
    Meanwhile the writer is killed and stopped, workers are killed, replaced
    and stopped, checkpoints are taken, and the quota (with --disk the disk
    too) is used up and freed.

    At the end all of it is let be, and the journals are held against the
    store: what was acknowledged is there exactly once, what a killed worker
    was not told of at most once, counters are exact, chains and indices are
    whole, histories are serializable. No worker may have met an error, but
    that the store was full while it was.

    Recovery is the time from a kill of the writer to the answer to a commit.
    Only processes that this program started are ever signalled. If something
    is wrong, journals and store are kept, and told where.

    Example: python -m workers.chaos --minutes 15 --kills-per-minute 75 --seed 7

    Exit code: 0 if all is exact, 1 if anything is off, 130 after Ctrl-C.
    """
    rates = Rates(
        kill_writer=kills_per_minute, stop_writer=stops_per_minute, kill_worker=worker_kills_per_minute,
        stop_worker=worker_stops_per_minute, checkpoint=checkpoints_per_minute,
        fill_memory=fills_per_minute, fill_disk=disk_fills_per_minute if disk else 0.0,
    )  # fmt: skip
    options = ChaosOptions(
        random.SystemRandom().randrange(1 << 31) if seed is None else seed, minutes, workers, durability,
        rates, quota_mib, rate, disk_mib if disk else None,
        None if directory is None else str(directory.resolve()),
    )  # fmt: skip
    console = Console(quiet=quiet)
    errors = Console(stderr=True, soft_wrap=True)
    # First of all, so that it is known whatever comes.
    print(f"seed {options.seed}; again: {options.command()}", flush=True)
    screen = _Screen(console, not quiet)
    with Interrupt(options.seconds + SLACK_S) as interrupt:
        try:
            result = run_chaos(options, interrupt, screen)
        except Interrupted as error:
            print_problems(errors, [f"{error}; all processes ended, store removed"])
            raise typer.Exit(EXIT_SIGNAL + error.signum) from None
        except (TimedOut, OSError) as error:
            print_problems(errors, [str(error)])
            raise typer.Exit(EXIT_FAILED) from None
        except InmemError as error:
            print_problems(errors, [f"{type(error).__name__}: {error}. {error.hint}"])
            raise typer.Exit(EXIT_FAILED) from None
        finally:
            screen.close()
    if json is not None:
        write_json(result, json)
    if quiet:
        print_problems(errors, result.all_problems())
        print(chaos_verdict(result), flush=True)
    else:
        print_chaos(console, result)
    raise typer.Exit(EXIT_OK if result.ok else EXIT_FAILED)
