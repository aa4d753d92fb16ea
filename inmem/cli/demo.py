"""`inmem demo`: a small fleet of processes on a store, shown, disturbed and verified."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Final

import typer

from inmem.cli.common import FAILED, VARIABLE, WRONG_USAGE, Where, command, fail
from inmem.demo.fleet import (
    DemoEndedError,
    DemoFailedError,
    DemoOptions,
    DemoResult,
    StopSignals,
    run_demo,
)
from inmem.demo.screen import DemoScreen, tell_result
from inmem.errors import InmemError
from inmem.host.files import python_environment, python_program

_LEAVE_S: Final = 10.0  # for the page to end when it is asked to
_LOOK_S: Final = 0.1
_PAGE: Final = ("-m", "inmem.demo.page")
Store = Annotated[
    str | None,
    typer.Option(
        "--path", "-d", "--dir", metavar="DIR", show_default=False,
        help="A data directory, which stays, or a postgresql:// URL. By default a store that is removed.",
    ),
]


@command(old="none", directory=Store)
def demo(
    where: Where,
    seconds: Annotated[float, typer.Option(min=1.0, max=3600.0, help="How long the fleet works.")] = 15.0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that do jobs.")] = 4,
    seed: Annotated[int, typer.Option(help="Determines the jobs, and which worker is killed.")] = 1,
    ui: Annotated[
        bool, typer.Option("--ui", help="Open the page of `inmem ui`, which stays until Ctrl-C.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the verdict alone.")] = False,
) -> None:
    """Run a small fleet of processes on one store, kill some of them, and verify what is left.

    A planner puts jobs; workers claim them, call simulated tools, and commit
    result, totals, traces and events in one transaction; a reviewer that holds
    a lease approves the results. Reviewer, writer and a worker are killed, and
    come back. Only processes that this command has started are: the writer of
    a store that was served before is left alone. INMEM_PATH is not looked at.

    The exit code is 0 if all that was verified holds, else 1.

    Example: inmem demo --seconds 15 --workers 4
    """
    if ui and any(importlib.util.find_spec(name) is None for name in ("starlette", "uvicorn")):
        print("inmem: --ui needs more than the command: pip install 'inmem[ui]'", file=sys.stderr)
        raise typer.Exit(WRONG_USAGE)
    options = DemoOptions(seconds, workers, seed, where.given)
    with StopSignals() as signals:
        shown = _Shown(options, signals, as_json=where.as_json, is_quiet=quiet, has_page=ui)
        try:
            with shown:
                result = run_demo(options, signals, shown)
        except DemoEndedError as error:
            print(f"inmem: {error}; its processes are gone", file=sys.stderr)
            raise typer.Exit(128 + error.number) from None
        except DemoFailedError as error:
            hint = "Try again with more time: --seconds 30. If it stays, that is a defect."
            fail(InmemError(str(error), hint=hint), as_json=where.as_json)
    if not result.ok:
        raise typer.Exit(FAILED)


class _Shown(DemoScreen):
    """The screen, and the page beside it."""

    def __init__(
        self, options: DemoOptions, signals: StopSignals, *, as_json: bool, is_quiet: bool, has_page: bool
    ) -> None:
        super().__init__(is_silent=as_json or is_quiet)
        self._options = options
        self._signals = signals
        self._as_json, self._is_quiet, self._has_page = as_json, is_quiet, has_page

    def beside(self, place: str) -> AbstractContextManager[object]:
        """As its base says: the page."""
        return _page(place, is_silent=self._as_json or self._is_quiet) if self._has_page else nullcontext()

    def done(self, result: DemoResult) -> None:
        """As its base says."""
        self.close()
        tell_result(self._options, result, as_json=self._as_json, is_quiet=self._is_quiet)
        if self._has_page and sys.stdin.isatty() and sys.stdout.isatty():
            print("The page stays until Ctrl-C.", flush=True)
            try:
                while True:
                    self._signals.check()
                    time.sleep(_LOOK_S)
            except DemoEndedError:
                return


@contextmanager
def _page(place: str, *, is_silent: bool) -> Iterator[None]:
    """`inmem ui`, as a process of its own; its link is printed before the picture begins.

    Raises:
        DemoFailedError: it has ended. It says why on standard error.
    """
    process = subprocess.Popen(
        [python_program(), *_PAGE], env=python_environment() | {VARIABLE: place}, stdin=subprocess.PIPE,
        # A URL may have a password: so it is given by the variable, and not as a word.
        stdout=subprocess.PIPE, text=True, process_group=0,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        said = ""
        while not said.endswith("}\n"):
            line = process.stdout.readline()
            if not line:
                raise DemoFailedError("the page has ended")
            said += line
        if not is_silent:
            print(f"The page is {json.loads(said)['link']}", flush=True)
        yield
    finally:
        process.stdin.close()
        try:
            process.wait(_LEAVE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
