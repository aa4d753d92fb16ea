"""What all commands share: their common arguments, how they print, how they fail.

Invariant: with `--json` standard output is one JSON document, an error
included; of a listing it is one document for each line. Without it errors go
to standard error, as one line with a hint. Nothing is ever printed that a
terminal would obey.
"""

from __future__ import annotations

import difflib
import errno
import functools
import inspect
import itertools
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, Final, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from inmem.cli.served import served
from inmem.cli.text import plain
from inmem.database import Database
from inmem.database import open as open_database
from inmem.engines.opening import is_url
from inmem.errors import InmemError, InvalidInputError, RunNotFoundError
from inmem.host.directory import DataDirectory
from inmem.host.files import hint_of, text_of
from inmem.host.paths import GO_ELSEWHERE, check_path, has_working_directory
from inmem.keys import Namespace
from inmem.primitives.runs.rules import RunMetadata
from inmem.reading.database_source import DatabaseSource
from inmem.reading.named_source import NamedSource
from inmem.reading.run import StoredRun
from inmem.reading.runs import run_ids

P = ParamSpec("P")

VARIABLE: Final = "INMEM_PATH"
Directory = Annotated[
    str | None,
    typer.Option(
        "-d", "--dir", metavar="DIR", envvar=VARIABLE, show_default=False,
        help="The data directory, or the postgresql:// URL of a store on a server.",
    ),
]
Old = Annotated[str | None, typer.Argument(hidden=True, show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead; of a listing one document a line.")]
NoWriter = Annotated[
    bool, typer.Option("--no-writer", envvar="INMEM_NO_WRITER", help="If no writer serves, start none.")
]
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
WRONG_USAGE = 2
INTERRUPTED = 130
_SHOWN: Final = 5  # stores and runs in a hint
_LOOKED_AT: Final = 2000  # directory entries, and runs, when something near is looked for


@dataclass(slots=True)
class Where:
    """What every command is given: the store and the namespace that it is about, and how it answers."""

    given: str | None
    as_json: bool = False
    no_writer: bool = False
    tenant: str = "default"
    app: str = "default"
    agent: str = "default"

    @property
    def named(self) -> str:
        """The data directory or URL that was named, by -d or the variable. Ends the command if none was."""
        if self.given is None:
            here = stores_in(Path())
            known = f" Here are: {', '.join(here)}." if here else ""
            hint = f"Name it with -d, or by {VARIABLE}.{known}"
            error = InvalidInputError("no data directory is named", argument="path", hint=hint)
            fail(error, as_json=self.as_json, code=WRONG_USAGE)
        return self.given

    @property
    def is_server(self) -> bool:
        """Whether the store is on a server."""
        return is_url(self.given)

    @property
    def path(self) -> Path:
        """The data directory."""
        return Path(self.named)

    @property
    def shown(self) -> str:
        """The path as a shell takes it; a URL may have a password in it."""
        return "URL" if self.is_server else shlex.quote(str(self.path))

    @property
    def namespace(self) -> Namespace:
        """The namespace."""
        return Namespace(self.tenant, self.app, self.agent)

    def directory(self) -> DataDirectory:
        """The data directory, which has to be there.

        Raises:
            InvalidInputError: there is no database.
            InmemError: it is not this user's alone, or not of this release.
        """
        directory = DataDirectory(check_path(self.path))
        if not directory.exists():
            near = stores_in(directory.path.parent)
            raise InvalidInputError(
                f"{directory.path} holds no inmem database", argument="path",
                hint=f"Name another with -d, or create one: inmem serve -d {self.shown}"
                + (f". Near it are: {', '.join(near)}" if near else ""),
            )
        directory.identity()
        return directory

    @contextmanager
    def served(self) -> Iterator[DataDirectory]:
        """The data directory, which stays as it can be read best. See `inmem.cli.served`."""
        directory = self.directory()
        with served(directory, may_start=not self.no_writer):
            yield directory

    @contextmanager
    def reading(self, *, follows: bool = False) -> Iterator[NamedSource]:
        """What commands read that only look. One that `follows` starts no writer and keeps none."""
        if self.is_server:
            with self.open() as database:
                engine = database.engine
                yield NamedSource("server", engine.stored, engine.latest().now_us, self.namespace)
        elif follows:
            with DatabaseSource(self.directory(), self.namespace) as source:
                yield source
        else:
            with self.served() as directory, DatabaseSource(directory, self.namespace) as source:
                yield source

    @contextmanager
    def exported(self) -> Iterator[Path | str]:
        """What an export reads."""
        if self.is_server:
            yield self.named
        else:
            with self.served() as directory:
                yield directory.path

    def open(self, timeout_s: float | None = None) -> Database:
        """The database, opened as any program does; it has to be there."""
        return open_database(
            self.named if self.is_server else self.directory().path, create=False, tenant=self.tenant,
            app=self.app, agent=self.agent, timeout_s=timeout_s,
        )

    def split(self, first: list[str], is_old: Callable[[str], bool]) -> list[str]:
        """The words that a command is given, without the data directory that older forms began with."""
        if first and is_old(first[0]) and not self._is_said():
            self.take_old(first[0])
            return first[1:]
        return first

    def take_old(self, path: str) -> None:
        """The data directory was given as an argument, as in older forms of a command."""
        if self._is_said():
            shown = "a URL" if is_url(path) else repr(path)
            raise typer.BadParameter(f"there is an argument too many, {shown}", param_hint="-d")
        self.given = path
        note = f"inmem: a data directory is named with an option now: -d {self.shown}"
        print(note, file=sys.stderr, flush=True)

    def _is_said(self) -> bool:
        """Whether it was named by the option, and not by the variable."""
        return self.given is not None and self.given != os.environ.get(VARIABLE, "")


def command(
    *, about_runs: bool = False, reads: bool = False, old: str = "last", only_here: str = "",
    directory: Any = Directory,
) -> Callable[[Callable[Concatenate[Where, P], None]], Callable[..., None]]:
    """Make a function a command: what it foresees as an error is printed, and ends it with 1.

    The function takes a `Where` first, whose options are added to its own:
    those of the namespace if it is `about_runs`, `--no-writer` if it `reads`.
    `old` says where the data directory was an argument in older forms: the
    "last" one, the "first" of two, or "none" of those that are counted. One that
    is `only_here` refuses a store on a server, and says what to do instead.
    `directory` is the option that names the store, where it is another one.
    """

    def made(function: Callable[Concatenate[Where, P], None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(**given: Any) -> None:
            names = ("as_json", "no_writer", "tenant", "app", "agent")
            where = Where(given.pop("directory"), **{n: given.pop(n) for n in names if n in added})
            before = given.pop("old", None)
            try:
                if before is not None and old == "first":
                    before, given[first] = given[first], before
                if before is not None:
                    where.take_old(before)
                if only_here and where.is_server:
                    problem = "this command is for stores of this machine, and this one is on a server"
                    raise InvalidInputError(problem, argument="path", hint=only_here)
                function(where, **given)  # type: ignore[call-arg]
            except InmemError as error:
                fail(error, as_json=where.as_json)
            except BrokenPipeError:
                raise  # whoever read the output has seen enough: the command ends, without a word
            except OSError as error:
                failure = InmemError(text_of(error), hint=hint_of(error))
                if error.errno == errno.ENOENT and not has_working_directory():
                    failure = InvalidInputError("the working directory was removed", hint=GO_ELSEWHERE)
                fail(failure, as_json=where.as_json)
            except KeyboardInterrupt:
                raise typer.Exit(INTERRUPTED) from None

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        first = own[0].name if own else ""
        added: dict[str, tuple[Any, Any]] = {"old": (Old, None)} if old != "none" else {}
        added["directory"] = directory, None
        if about_runs:
            added |= {"tenant": (Tenant, "default"), "app": (App, "default"), "agent": (Agent, "default")}
        if reads:
            added["no_writer"] = NoWriter, False
        added["as_json"] = AsJson, False
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
            for name, (kind, default) in added.items()
        ]
        run.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]
        return run

    return made


class Command(TyperCommand):
    """A command whose usage has no hidden arguments, and which knows that an argument may begin with -."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """As its base does."""
        shown = [param for param in self.get_params(ctx) if not getattr(param, "hidden", False)]
        return [self.options_metavar or "", *(piece for one in shown for piece in one.get_usage_pieces(ctx))]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As its base does."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)
            if name is not None:  # there is no such option
                error.message += (  # type: ignore[attr-defined]
                    f". If it is none: what begins with - comes last, after --: {ctx.command_path} -- {name}"
                )
            raise


def stores_in(place: Path) -> list[str]:
    """Some data directories that lie in a directory, as a shell takes them."""
    try:
        inside = itertools.islice(place.iterdir(), _LOOKED_AT)
        found = [one for one in inside if (one / "settings.json").is_file() and (one / "control").is_file()]
    except OSError:  # it is not there, or not for us: then nothing is known to lie in it
        return []
    names = sorted(f"./{one}" if not one.is_absolute() else str(one) for one in found)
    return [shlex.quote(name) for name in names[:_SHOWN]]


def fail(error: InmemError, *, as_json: bool, code: int = FAILED) -> NoReturn:
    """Print an error and end the command."""
    if as_json:
        # In one line: of a listing it is the last one.
        document = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        print(json.dumps(document), flush=True)
    else:
        line = plain(" ".join(f"inmem: {error.message}. {error.hint}".split()))
        print(line, file=sys.stderr, flush=True)
    raise typer.Exit(code)


def last_argument(name: str) -> str:
    """A run's id or a key as a shell and the command take it, in the end of a line."""
    return ("-- " if name.startswith("-") else "") + shlex.quote(name)


def described(source: NamedSource, run: StoredRun) -> RunMetadata | None:
    """A run's record; None for a run that has none, but data, and for what runs share.

    Raises:
        RunNotFoundError: there is neither.
    """
    metadata = run.metadata()
    if metadata is None and not run.name.startswith("@") and run.is_empty():
        known = list(itertools.islice(run_ids(source, run.namespace), _LOOKED_AT))
        near = difflib.get_close_matches(run.name, known, _SHOWN)
        near += [name for name in known if run.name in name and name not in near][: _SHOWN - len(near)]
        hint = f"Near it are: {', '.join(near)}. " if near else ""
        raise RunNotFoundError(
            f"there is no run {run.name} in {run.namespace}", run_id=run.name,
            hint=f"{hint}See all: inmem runs --all. Another namespace: --tenant, --app, --agent.",
        )
    return metadata


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(document, indent=2))


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
