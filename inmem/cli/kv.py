"""`inmem kv`: the entries of a run.

`get` and `ls` start no writer and change nothing. `put` and `del` are commits
like any program's, and start a writer if none serves.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Final

import typer

from inmem.cli.common import (
    Agent,
    App,
    AsJson,
    AsLines,
    Full,
    Limit,
    RunName,
    StorePath,
    Tenant,
    command,
    console,
    database_at,
    looking_at,
    print_json,
)
from inmem.cli.listing import Listing, note
from inmem.cli.look import NAME_CELLS
from inmem.cli.text import indented, plain, span
from inmem.database import Database
from inmem.database import open as open_database
from inmem.errors import InvalidInputError, NotFoundError
from inmem.jsonvalues import from_json, to_json
from inmem.keys import encode_name
from inmem.reading.run import Entry
from inmem.scopes import RunScope

_SHOWN: Final = 20_000  # characters of a value

kv = typer.Typer(
    help="Read and write the entries of a run.", no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="The key.", show_default=False)]


@kv.command()
@command
def get(
    run: RunName,
    key: KeyName,
    path: StorePath,
    raw: Annotated[
        bool, typer.Option("--raw", help="A text or bytes as they are, and nothing else; not to a terminal.")
    ] = False,
    full: Full = False,
    tenant: Tenant = "default",
    app: App = "default",
    agent: Agent = "default",
    as_json: AsJson = False,
) -> None:
    """Print the value under a key, as JSON; bytes as Python writes them.

    Example: inmem kv get trip-to-oslo goal ./data
    """
    with looking_at(path, tenant, app, agent) as source:
        encode_name(key)
        entry = source.run(run).entry(key)
    if entry is None:
        raise _missing(run, key)
    if as_json:
        print_json({"run": run} | entry_document(entry))
    elif raw:
        _print_raw(entry.value)
    else:
        text, cut = indented(entry.value, None if full else _SHOWN)
        typer.echo(text + ("…" if cut else ""))
        if cut:
            note(f"shortened, the value is {entry.size:,} bytes: --full shows all of it, --json too")


def _missing(run: str, key: str) -> NotFoundError:
    return NotFoundError(f"{run} has no key {key!r}", hint="See which there are: inmem kv ls RUN PATH")


def _print_raw(value: Any) -> None:
    if not isinstance(value, str | bytes):
        raise InvalidInputError(
            f"the value is a {type(value).__name__}, and no text or bytes", argument="raw",
            hint="Leave out --raw to get it as JSON.",
        )
    if sys.stdout.isatty():
        raise InvalidInputError(
            "what is stored could be commands for this terminal", argument="raw",
            hint="Send it to a file or another program.",
        )
    sys.stdout.buffer.write(value.encode() if isinstance(value, str) else value)
    sys.stdout.buffer.flush()


@kv.command()
@command
def put(
    run: RunName,
    key: KeyName,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="JSON; - reads it from standard input.", show_default=False)
    ],
    path: StorePath,
    text: Annotated[bool, typer.Option("--text", help="VALUE is a text, not JSON.")] = False,
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="It expires after this long.")
    ] = None,
    tenant: Tenant = "default",
    app: App = "default",
    agent: Agent = "default",
    as_json: AsJson = False,
) -> None:
    """Write a value under a key, as one commit; starts a writer if none serves.

    Example: inmem kv put trip-to-oslo goal '{"city": "Oslo"}' ./data
    """
    if value == "-":
        value = sys.stdin.read()
    content = value if text else _parsed(value)
    directory = database_at(path)
    with open_database(directory.path, create=False, tenant=tenant, app=app, agent=agent) as database:
        version = _scope(database, run).kv.put(key, content, ttl=ttl)
    if as_json:
        print_json({"run": run, "key": key, "version": version})
    else:
        console().print(f"{plain(key)} is written, version {version}", soft_wrap=True)


def _parsed(text: str) -> Any:
    def refused(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        return from_json(json.loads(text, parse_constant=refused))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"VALUE is no JSON: {error}", argument="value", hint="A text needs quotes of its own, or --text."
        ) from None


@kv.command("del")
@command
def delete(
    run: RunName,
    key: KeyName,
    path: StorePath,
    tenant: Tenant = "default",
    app: App = "default",
    agent: Agent = "default",
    as_json: AsJson = False,
) -> None:
    """Remove a key, as one commit; the exit code is 1 if there was none.

    Example: inmem kv del trip-to-oslo goal ./data
    """
    directory = database_at(path)
    with open_database(directory.path, create=False, tenant=tenant, app=app, agent=agent) as database:
        if not _scope(database, run).kv.delete(key):
            raise _missing(run, key)
    if as_json:
        print_json({"run": run, "key": key, "deleted": True})
    else:
        console().print(f"{plain(key)} is removed", soft_wrap=True)


def _scope(database: Database, run: str) -> RunScope:
    return database.shared(run[1:]) if run.startswith("@") else database.run(run)


@kv.command("ls")
@command
def list_(
    run: RunName,
    path: StorePath,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Only keys that begin so.")] = None,
    limit: Limit = None,
    full: Full = False,
    tenant: Tenant = "default",
    app: App = "default",
    agent: Agent = "default",
    as_json: AsLines = False,
) -> None:
    """The keys of a run with their values, in order.

    Example: inmem kv ls trip-to-oslo ./data --prefix booked
    """
    with (
        looking_at(path, tenant, app, agent) as source,
        Listing(as_json=as_json, full=full, limit=limit) as listing,
    ):
        for entry in source.run(run).entries(prefix):
            if listing.is_full:
                break
            if as_json:
                listing.document(entry_document(entry))
                continue
            ends = "" if entry.ttl_s is None else f"({span(entry.ttl_s)} left) "
            listing.row(
                (listing.column(plain(entry.key), NAME_CELLS) + "  ", "bold"), (ends, "yellow"),
                value=entry.value, has_value=True,
            )
        if not listing.rows and not as_json:
            note(f"{run} has no such keys" if prefix else f"{run} has no keys")


def entry_document(entry: Entry) -> dict[str, Any]:
    """An entry for programs."""
    return {
        "key": entry.key, "value": to_json(entry.value), "version": entry.version,
        "timestamp": entry.timestamp, "ttl_s": entry.ttl_s,
    }
