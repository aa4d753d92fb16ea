"""`inmem kv`: the entries of a run.

`get` and `ls` change nothing. `put` and `del` are commits like any program's.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Final

import typer

from inmem.cli.common import (
    Command,
    Full,
    Limit,
    RunName,
    Where,
    command,
    console,
    described,
    last_argument,
    print_json,
)
from inmem.cli.given import scope_of, value_of
from inmem.cli.listing import Listing, note
from inmem.cli.look import NAME_CELLS
from inmem.cli.text import indented, plain, span
from inmem.errors import InvalidInputError, NotFoundError
from inmem.jsonvalues import to_json
from inmem.keys import encode_name
from inmem.reading.run import Entry

_SHOWN: Final = 20_000  # characters of a value

kv = typer.Typer(
    help="Read and write the entries of a run.", no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KeyName = Annotated[str, typer.Argument(metavar="KEY", help="The key.", show_default=False)]


@kv.command(cls=Command)
@command(about_runs=True, reads=True)
def get(
    where: Where,
    run: RunName,
    key: KeyName,
    raw: Annotated[
        bool, typer.Option("--raw", help="A text or bytes as they are, and nothing else; not to a terminal.")
    ] = False,
    full: Full = False,
) -> None:
    """Print the value under a key, as JSON; bytes as Python writes them.

    Example: inmem kv get trip-to-oslo goal -d ./data
    """
    with where.reading() as source:
        encode_name(key)
        store = source.run(run)
        described(source, store)
        entry = store.entry(key)
    if entry is None:
        raise _missing(run, key)
    if where.as_json:
        print_json({"run": run} | entry_document(entry))
    elif raw:
        _print_raw(entry.value)
    else:
        text, cut = indented(entry.value, None if full else _SHOWN)
        print(text + ("…" if cut else ""))
        if cut:
            note(f"shortened, the value is {entry.size:,} bytes: --full shows all of it, --json too")


def _missing(run: str, key: str) -> NotFoundError:
    hint = f"See which there are: inmem kv ls {last_argument(run)}"
    return NotFoundError(f"{run} has no key {key!r}", hint=hint)


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


@kv.command(cls=Command)
@command(about_runs=True)
def put(
    where: Where,
    run: RunName,
    key: KeyName,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="JSON; - reads it from standard input.", show_default=False)
    ],
    text: Annotated[bool, typer.Option("--text", help="VALUE is a text, not JSON.")] = False,
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="It expires after this long.")
    ] = None,
) -> None:
    """Write a value under a key, as one commit; starts a writer if none serves.

    Example: inmem kv put trip-to-oslo goal '{"city": "Oslo"}' -d ./data
    """
    content = value_of(value, "value", is_text=text)
    with where.open() as database:
        version = scope_of(database, run).kv.put(key, content, ttl=ttl)
    if where.as_json:
        print_json({"run": run, "key": key, "version": version})
    else:
        console().print(f"{plain(key)} is written, version {version}", soft_wrap=True)


@kv.command("del", cls=Command)
@command(about_runs=True)
def delete(
    where: Where,
    run: RunName,
    key: KeyName,
) -> None:
    """Remove a key, as one commit; the exit code is 1 if there was none.

    Example: inmem kv del trip-to-oslo goal -d ./data
    """
    with where.open() as database:
        if not scope_of(database, run).kv.delete(key):
            raise _missing(run, key)
    if where.as_json:
        print_json({"run": run, "key": key, "deleted": True})
    else:
        console().print(f"{plain(key)} is removed", soft_wrap=True)


@kv.command("ls", cls=Command)
@command(about_runs=True, reads=True)
def list_(
    where: Where,
    run: RunName,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Only keys that begin so.")] = None,
    limit: Limit = None,
    full: Full = False,
) -> None:
    """The keys of a run with their values, in order.

    Example: inmem kv ls trip-to-oslo --prefix booked -d ./data
    """
    with (
        where.reading() as source,
        Listing(as_json=where.as_json, full=full, limit=limit) as listing,
    ):
        store = source.run(run)
        described(source, store)
        for entry in store.entries(prefix):
            if listing.is_full:
                break
            if where.as_json:
                listing.document(entry_document(entry))
                continue
            ends = "" if entry.ttl_s is None else f"({span(entry.ttl_s)} left) "
            listing.row(
                (listing.column(plain(entry.key), NAME_CELLS) + "  ", "bold"), (ends, "yellow"),
                value=entry.value, has_value=True,
            )
        if not listing.rows and not where.as_json:
            note(f"{run} has no such keys" if prefix else f"{run} has no keys")


def entry_document(entry: Entry) -> dict[str, Any]:
    """An entry for programs."""
    return {
        "key": entry.key, "value": to_json(entry.value), "version": entry.version,
        "timestamp": entry.timestamp, "ttl_s": entry.ttl_s,
    }
