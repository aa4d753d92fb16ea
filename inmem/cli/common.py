"""What all commands share: their common arguments, how they print, how they fail.

Invariant: with `--json` standard output is one JSON document, an error
included; of a listing it is one document for each line. Without it errors go
to standard error, as one line with a hint. Nothing is ever printed that a
terminal would obey.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from inmem.cli.text import plain
from inmem.errors import InmemError, InvalidInputError, RunNotFoundError
from inmem.host.directory import DataDirectory
from inmem.host.paths import check_path
from inmem.keys import Namespace
from inmem.primitives.runs.rules import RunMetadata
from inmem.reading.database_source import DatabaseSource
from inmem.reading.run import StoredRun

P = ParamSpec("P")

StorePath = Annotated[
    Path, typer.Argument(metavar="PATH", envvar="INMEM_PATH", help="The data directory.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]
AsLines = Annotated[bool, typer.Option("--json", help="Print JSON instead, one document a line.")]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="A run's id; or @agent, @app, @tenant: what runs share.", show_default=False
    ),
]
Tenant = Annotated[str, typer.Option(metavar="NAME", help="The tenant of the namespace.")]
App = Annotated[str, typer.Option(metavar="NAME", help="Its app.")]
Agent = Annotated[str, typer.Option(metavar="NAME", help="Its agent.")]
Full = Annotated[bool, typer.Option("--full", help="Do not shorten anything.")]
Limit = Annotated[int | None, typer.Option(metavar="N", min=1, help="No more than this many.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="From then on: 10m, 2h, 3d, or a date.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before then.")]

FAILED = 1
INTERRUPTED = 130


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a command: what it foresees as an error is printed, and ends it with 1.

    The function takes `as_json`.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except InmemError as error:
            fail(error, as_json=bool(kwargs.get("as_json")))
        except BrokenPipeError:
            raise  # whoever read the output has seen enough: the command ends, without a word
        except OSError as error:
            what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
            problem = InmemError(what, hint="See to that file and its permissions.")
            fail(problem, as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


def fail(error: InmemError, *, as_json: bool) -> None:
    """Print an error and end with 1."""
    if as_json:
        # In one line: of a listing it is the last one.
        document = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        typer.echo(json.dumps(document))
    else:
        line = plain(" ".join(f"inmem: {error.message}. {error.hint}".split()))
        typer.echo(line, err=True)
    raise typer.Exit(FAILED)


def database_at(path: Path) -> DataDirectory:
    """The data directory at a path.

    Raises:
        InvalidInputError: there is no database.
        InmemError: it is not this user's alone, or not of this release.
    """
    directory = DataDirectory(check_path(path))
    if not directory.exists():
        raise InvalidInputError(
            f"{directory.path} holds no inmem database", argument="path",
            hint=f"Name another PATH, or create one: inmem serve {path}",
        )
    directory.identity()
    return directory


def looking_at(path: Path, tenant: str, app: str, agent: str) -> DatabaseSource:
    """What commands read that only look, as a context manager: it starts no writer and changes nothing."""
    return DatabaseSource(database_at(path), Namespace(tenant, app, agent))


def described(run: StoredRun) -> RunMetadata | None:
    """A run's record; None for a run that has none, but data.

    Raises:
        RunNotFoundError: there is neither.
    """
    metadata = run.metadata()
    if metadata is None and run.is_empty():
        raise RunNotFoundError(
            f"there is no run {run.name} in {run.namespace}", run_id=run.name,
            hint="See which there are: inmem runs PATH. Another namespace: --tenant, --app, --agent.",
        )
    return metadata


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(document, indent=2))


def print_fields(fields: Mapping[str, str]) -> None:
    """Names and what they stand for, one to a line."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(name, value)
    console().print(table)


def console() -> Console:
    """Standard output, without marking up what it did not write."""
    return Console(highlight=False, markup=False)


def size(count: int) -> str:
    """Bytes as people read them.

    >>> size(999), size(147456), size(1 << 30)
    ('999 B', '144.0 KiB', '1.0 GiB')
    """
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
