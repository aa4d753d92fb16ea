"""The one command line of the programs: `python -m workers fleet|chaos|stress|replay`.

Exit codes: 0 all is well, 1 something is off, 2 wrong usage, 128 + n stopped
by signal n (130 for Ctrl-C).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from contextlib import closing
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from inmem import InmemError
from workers.chaos.program import run_chaos
from workers.chaos.report import chaos_report
from workers.chaos.result import ChaosOptions
from workers.chaos.schedule import Rates
from workers.fleet.plan import FleetSpec
from workers.fleet.program import run_fleet
from workers.fleet.replay import ReplayOptions, run_replay
from workers.fleet.report import fleet_report, replay_report
from workers.observer import Observer
from workers.pool import START_METHODS, Interrupt, Interrupted, TimedOut
from workers.screen import Report, Screen, print_problems
from workers.stores import LeftBehind, StoreOptions
from workers.stress.program import StressOptions, run_stress
from workers.stress.report import stress_report

MAX_WORKERS: Final = 256  # processes, each with a pipe: far below the usual limit of open files
DURABILITIES: Final = ("memory", "buffered", "sync")
LOGGED: Final = ("buffered", "sync")  # a store without a log forgets with its writer
MAX_RATE: Final = 600.0
CHAOS_SLACK_S: Final = 600.0  # beyond the minutes asked for: start, drain, judgement

EXIT_FAILED: Final = 1
EXIT_SIGNAL: Final = 128

app: typer.Typer = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Programs that use one store with many processes."
)


def _one_of(choices: tuple[str, ...]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"must be one of {', '.join(choices)}")
        return value

    return check


def _no_histories(directory: Path | None) -> Path | None:
    if directory is not None and any(directory.glob("worker-*.jsonl")):
        raise typer.BadParameter(f"{directory} holds histories already, and they are only appended to")
    return directory


def _directory(value: Path | None) -> Path | None:
    if value is not None and not value.is_dir():
        raise typer.BadParameter(f"{value} is no directory")
    return value


def _file(value: Path | None) -> Path | None:
    if value is not None and (value.is_dir() or not value.resolve().parent.is_dir()):
        raise typer.BadParameter(f"{value} cannot be written: it is a directory, or its directory is missing")
    return value


Workers = Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Worker processes.")]
Store = Annotated[
    str | None,
    typer.Option(
        "--path", "--store", metavar="PATH|URL",
        help="The store: a directory, or a postgresql:// URL. Default: a throw-away one, removed at the end.",
    ),
]
Durability = Annotated[
    str | None,
    typer.Option(
        callback=_one_of(DURABILITIES),
        help="memory, buffered or sync. Default: buffered, or what the store has.",
    ),
]
StartMethod = Annotated[
    str, typer.Option(callback=_one_of(START_METHODS), help="How processes start: spawn, forkserver or fork.")
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which the run is stopped, and failed.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no tables: only the verdict.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]


@app.command()
def fleet(
    workers: Workers = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each agent.")] = 600,
    seed: Annotated[int, typer.Option(help="Determines plans, tool failures and the final state.")] = 1,
    path: Store = None,
    durability: Durability = None,
    start_method: StartMethod = "spawn",
    timeout: Timeout = 300.0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a fleet of agents on one shared store, then verify every bit of it.

    Each agent is a run with a life of its own: it claims tasks, plans, calls
    simulated tools, logs events, records traces, keeps its memory and counts
    shared totals, in transactions over all five primitives. At the end everything is read back
    and compared with what was acknowledged and with a recomputation from the
    seed. The digest printed is the same for the same seed, workers and steps.

    Exit code: 0 if all is exact, 1 if anything is off, 130 after Ctrl-C.
    """
    spec = FleetSpec(seed=seed, workers=workers, steps=steps)
    options = StoreOptions(path=path, durability=durability, start_method=start_method)
    _run(lambda *told: fleet_report(run_fleet(spec, options, *told)), timeout, json, quiet)


@app.command()
def replay(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", exists=True, help="Searched for *.traj and *.json files.")
    ],
    workers: Workers = 4,
    path: Store = None,
    durability: Durability = None,
    start_method: StartMethod = "spawn",
    timeout: Timeout = 600.0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Load recorded agent runs, then read them back and compare with the source.

    Reads SWE-agent trajectories (*.traj) and tau-bench results (*.json). Each
    trajectory is one run, each of its steps one transaction over all five
    primitives: its events and traces, the agent's state and status as cells,
    looked-up records in KV; the first step's creates the run, the last one's
    completes it, or fails it with its error. Other processes then compare
    every step with the source. Integers beyond 64 bits and strings that UTF-8 cannot hold are
    kept in a marked form, and told.

    A run's id follows from its content, so loading again doubles nothing: a
    run that is complete is verified and otherwise left alone, a half-done one
    goes on after its last committed step.

    Malformed files, and records in files, are told on standard error and
    counted, and the rest goes on. Exit code: 0 if everything loaded equals
    its source, whatever was rejected; 1 if the verification or a worker
    fails, or if no trajectory could be loaded; 130 after Ctrl-C.
    """
    options = ReplayOptions(workers, path=path, durability=durability, start_method=start_method)
    _run(lambda *told: replay_report(run_replay(directory, options, *told)), timeout, json, quiet)


@app.command()
def stress(
    workers: Workers = 100,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long the workers work.")] = 20.0,
    operations: Annotated[
        int | None, typer.Option(min=1, help="Operations of each worker, instead of a time.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Determines what each worker tries, in which order.")] = 1,
    path: Store = None,
    durability: Durability = None,
    start_method: StartMethod = "forkserver",
    histories: Annotated[
        Path | None,
        typer.Option(
            callback=_no_histories,
            help="Directory for the histories. Default: a temporary one, kept if something is wrong.",
        ),
    ] = None,
    timeout: Timeout = 600.0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Let many workers compete on shared runs, then judge what they were answered.

    Each worker counts, appends, swaps cells, marks runs in all five primitives
    at once, gives transactions up half-way, records traces, changes the status
    of runs and deletes some under the others' hands. It notes every question
    and every answer in a file of its own. Afterwards the histories are judged
    against the final state: nothing acknowledged is lost or doubled, nothing
    refused is there, and one order explains it all.

    Exit code: 0 if it does, 1 if anything is off, 130 after Ctrl-C.
    """
    options = StressOptions(
        seed, workers, seconds, operations, _text(histories), path=path, durability=durability,
        start_method=start_method, timeout_s=60.0,  # many share the machine
    )  # fmt: skip
    _run(lambda *told: stress_report(run_stress(options, *told)), timeout, json, quiet)


def _per_minute(name: str, text: str) -> Any:
    return typer.Option(f"--{name}-per-minute", min=0.0, max=MAX_RATE, help=text)


@app.command()
def chaos(
    minutes: Annotated[
        float, typer.Option(min=0.05, max=24 * 60, help="How long workers are disturbed.")
    ] = 10.0,
    seed: Annotated[
        int | None, typer.Option(help="Determines the schedule and what workers try. Default: chance.")
    ] = None,
    workers: Workers = 16,
    durability: Annotated[
        str, typer.Option(callback=_one_of(LOGGED), help="buffered or sync.")
    ] = "buffered",
    kill_writer: Annotated[
        float, _per_minute("kills", "SIGKILLs of the writer; one in ten also of the next.")
    ] = Rates().kill_writer,
    stop_writer: Annotated[
        float, _per_minute("stops", "SIGSTOPs of the writer, for up to a second.")
    ] = Rates().stop_writer,
    kill_worker: Annotated[
        float, _per_minute("worker-kills", "SIGKILLs of a worker; another takes its place.")
    ] = Rates().kill_worker,
    stop_worker: Annotated[
        float, _per_minute("worker-stops", "SIGSTOPs of a worker, for up to three seconds.")
    ] = Rates().stop_worker,
    checkpoint: Annotated[
        float, _per_minute("checkpoints", "Calls of db.checkpoint().")
    ] = Rates().checkpoint,
    fill_memory: Annotated[
        float, _per_minute("fills", "How often the quota is used up and freed again.")
    ] = Rates().fill_memory,
    fill_disk: Annotated[
        float, _per_minute("disk-fills", "How often the disk is used up and freed; needs --disk.")
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
            callback=_directory, help="Where the store is put. Default: as for any temporary file."
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="A store on a server, which stays: only workers are disturbed."),
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
        kill_writer, stop_writer, kill_worker, stop_worker, checkpoint, fill_memory,
        fill_disk if disk else 0.0,
    )  # fmt: skip
    options = ChaosOptions(
        random.SystemRandom().randrange(1 << 31) if seed is None else seed, minutes, workers, durability,
        rates, quota_mib, rate, disk_mib if disk else None,
        None if directory is None else str(directory.resolve()), store=store,
    )  # fmt: skip
    # First of all, so that it is known whatever comes.
    print(f"seed {options.seed}; again: {options.command()}", flush=True)

    def body(interrupt: Interrupt, observer: Observer) -> Report:
        report = chaos_report(run_chaos(options, interrupt, observer))
        if json is not None:
            json.write_text(dumps(report.data, indent=2) + "\n", encoding="utf-8")
        return report

    _run(body, options.seconds + CHAOS_SLACK_S, False, quiet)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _run(body: Callable[[Interrupt, Observer], Report], timeout_s: float, json: bool, quiet: bool) -> None:
    """Run a program under signals and a deadline, tell what came of it, and leave with its exit code."""
    with Interrupt(timeout_s) as interrupt:
        try:
            with closing(Screen(not (quiet or json))) as screen:
                report = body(interrupt, screen)
        except Interrupted as error:
            print_problems([f"{error}; workers stopped, store closed"])
            raise typer.Exit(EXIT_SIGNAL + error.signum) from None
        except (TimedOut, LeftBehind, OSError) as error:
            print_problems([str(error)])
            raise typer.Exit(EXIT_FAILED) from None
        except InmemError as error:
            print_problems([f"{type(error).__name__}: {error}. {error.hint}"])
            raise typer.Exit(EXIT_FAILED) from None
    report.tell(as_json=json, quiet=quiet)
    raise typer.Exit(0 if report.ok else EXIT_FAILED)


def main(program: str) -> None:
    """`python -m workers.<program>`: the command line with the program named already."""
    app([program, *sys.argv[1:]], prog_name=f"python -m workers.{program}")
