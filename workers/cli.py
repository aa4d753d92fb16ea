"""Options and exit codes of fleet, replay and stress; those of chaos are in `chaos_cli`.

Invariant: only these two modules know options, streams and exit codes.
0 all is well, 1 something is off, 2 wrong usage, 128 + n stopped by signal n
(130 for Ctrl-C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

from inmem import InmemError
from inmem.exchange import Rejected
from workers.fleet import FleetOptions, Observer, run_fleet
from workers.lifetime import LeftBehind
from workers.live import Display, display
from workers.plan import FleetSpec
from workers.pool import START_METHODS, Interrupt, Interrupted, TimedOut
from workers.replay import ReplayObserver, ReplayOptions, run_replay
from workers.report import (
    fleet_as_data,
    fleet_verdict,
    print_fleet,
    print_json,
    print_problems,
    print_replay,
    print_stress,
    printable,
    replay_as_data,
    replay_verdict,
    stress_as_data,
    stress_verdict,
)
from workers.stress import StressObserver, StressOptions, run_stress

MAX_WORKERS: Final = 256  # processes, each with a pipe: far below the usual limit of open files
DURABILITIES: Final = ("memory", "buffered", "sync")

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_SIGNAL: Final = 128

fleet_app: typer.Typer = typer.Typer(add_completion=False)
replay_app: typer.Typer = typer.Typer(add_completion=False)
stress_app: typer.Typer = typer.Typer(add_completion=False)


def _no_histories(directory: Path | None) -> Path | None:
    if directory is not None and any(directory.glob("worker-*.jsonl")):
        raise typer.BadParameter(f"{directory} holds histories already, and they are only appended to")
    return directory


def _one_of(choices: tuple[str, ...]) -> Callable[[str | None], str | None]:
    def check(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise typer.BadParameter(f"must be one of {', '.join(choices)}")
        return value

    return check


Workers = Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Worker processes.")]
Store = Annotated[
    Path | None,
    typer.Option("--path", help="Directory of the store. Default: a throw-away store, removed at the end."),
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


class _FleetObserver(Observer):
    """Puts a fleet on the screen."""

    def __init__(self, stack: ExitStack, console: Console, show: bool) -> None:
        self._stack, self._console, self._show = stack, console, show
        self._display: Display | None = None

    def started(self, spec: FleetSpec, writer_pid: int, path: str) -> None:
        totals = [spec.steps] * spec.workers
        shown = display(totals, "steps", show=self._show, console=self._console)
        self._display = self._stack.enter_context(shown)
        self._display.note(f"Store {path}, writer process {writer_pid}")

    def progress(self, worker: int, payload: tuple[int, int, int]) -> None:
        if self._display:
            self._display.update(worker, payload)

    def verifying(self) -> None:
        if self._display:
            self._display.note("All agents are done; reading everything back")


@fleet_app.command()
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
    console = Console(quiet=quiet or json)
    spec = FleetSpec(seed=seed, workers=workers, steps=steps)
    options = FleetOptions(None if path is None else str(path), durability, start_method)

    def body(interrupt: Interrupt) -> bool:
        with ExitStack() as stack:
            observer = _FleetObserver(stack, console, show=not (quiet or json))
            result = run_fleet(spec, options, interrupt, observer)
        if json:
            print_json(fleet_as_data(result))
        elif quiet:
            print_problems(_errors(), result.problems())
            print(fleet_verdict(result), flush=True)
        else:
            print_fleet(console, result)
        return result.ok

    _run(body, timeout)


class _ReplayObserver(ReplayObserver):
    """Puts a replay on the screen: one display for loading, then one for reading back."""

    def __init__(self, stack: ExitStack, console: Console, show: bool) -> None:
        self._stack, self._console, self._show = stack, console, show
        self._display: Display | None = None

    def rejected(self, rejected: Rejected) -> None:
        # On standard error in every mode: a person sees it, and JSON stays JSON.
        print_problems(_errors(), [f"rejected {rejected.source}: {rejected.reason}"])

    def phase(self, text: str, totals: Sequence[int]) -> None:
        self._stack.close()
        shown = display(totals, "steps", show=self._show, console=self._console)
        self._display = self._stack.enter_context(shown)
        self._display.note(f"{text}: {sum(totals):,} steps in {len(totals)} processes")

    def progress(self, worker: int, payload: tuple[int, int, int]) -> None:
        if self._display:
            self._display.update(worker, payload)


@replay_app.command()
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
    console = Console(quiet=quiet or json)
    options = ReplayOptions(workers, None if path is None else str(path), durability, start_method)

    def body(interrupt: Interrupt) -> bool:
        with ExitStack() as stack:
            observer = _ReplayObserver(stack, console, show=not (quiet or json))
            result = run_replay(directory, options, interrupt, observer)
        if json:
            print_json(replay_as_data(result))
        elif quiet:
            print_problems(_errors(), result.problems())
            print(printable(replay_verdict(result)), flush=True)
        else:
            print_replay(console, result)
        return result.ok

    _run(body, timeout)


class _StressObserver(StressObserver):
    """Puts a stress on the screen."""

    def __init__(self, stack: ExitStack, console: Console, show: bool) -> None:
        self._stack, self._console, self._show = stack, console, show
        self._display: Display | None = None

    def started(self, options: StressOptions, writer_pid: int, path: str) -> None:
        unit = "seconds" if options.operations is None else "operations"
        shown = display(options.totals(), unit, show=self._show, console=self._console)
        self._display = self._stack.enter_context(shown)
        self._display.note(f"Store {path}, writer process {writer_pid}")
        self._display.note(f"Starting {options.workers} workers")

    def progress(self, worker: int, payload: tuple[int, int, int]) -> None:
        if self._display:
            self._display.update(worker, payload)

    def judging(self, histories: str) -> None:
        if self._display:
            self._display.note(f"All workers are done; judging {histories}")


@stress_app.command()
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
    console = Console(quiet=quiet or json)
    options = StressOptions(
        seed, workers, seconds, operations, None if path is None else str(path), durability, start_method,
        None if histories is None else str(histories),
    )  # fmt: skip

    def body(interrupt: Interrupt) -> bool:
        with ExitStack() as stack:
            observer = _StressObserver(stack, console, show=not (quiet or json))
            result = run_stress(options, interrupt, observer)
        if json:
            print_json(stress_as_data(result))
        elif quiet:
            print_problems(_errors(), result.problems())
            print(stress_verdict(result), flush=True)
        else:
            print_stress(console, result)
        return result.ok

    _run(body, timeout)


def _run(body: Callable[[Interrupt], bool], timeout_s: float) -> None:
    """Run a program's body under signals and a deadline, and leave with its exit code."""
    with Interrupt(timeout_s) as interrupt:
        try:
            ok = body(interrupt)
        except Interrupted as error:
            _errors().print(f"{error}; workers stopped, store closed", highlight=False)
            raise typer.Exit(EXIT_SIGNAL + error.signum) from None
        except (TimedOut, LeftBehind) as error:
            _fail(str(error))
        except InmemError as error:
            _fail(f"{type(error).__name__}: {error}. {error.hint}")
    raise typer.Exit(EXIT_OK if ok else EXIT_FAILED)


def _fail(text: str) -> NoReturn:
    print_problems(_errors(), [text])
    raise typer.Exit(EXIT_FAILED)


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True)
