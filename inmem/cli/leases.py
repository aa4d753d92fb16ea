"""`inmem leases`: who holds the leases of a run. `inmem lease release` takes one from its holder."""

from __future__ import annotations

import itertools
from typing import Annotated, Final

import typer

from inmem.cli.common import (
    Command,
    Limit,
    RunName,
    Where,
    command,
    console,
    described,
    last_argument,
    print_json,
)
from inmem.cli.listing import Listing, note
from inmem.cli.look import NAME_CELLS
from inmem.cli.text import plain, span
from inmem.errors import NotFoundError
from inmem.keys import TypeTag, encode_prefix
from inmem.primitives.leases import rules
from inmem.reading.moment import readable
from inmem.reading.run import StoredRun
from inmem.record import payload_of

_TOKEN_CELLS: Final = (6, 12)

lease = typer.Typer(
    help="What holders of leases do themselves, for those that cannot.", no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def holders(store: StoredRun, count: int) -> str:
    """The first leases of a run, with who holds them, in a few words."""
    found = []
    for name, stored in itertools.islice(store.records(TypeTag.LEASE), count):
        holder = rules.unpack(payload_of(stored)).holder
        words = [each.decode("utf-8", "backslashreplace") for each in (name, holder)]
        found.append(f"{words[0]} ({words[1]})")
    return " · ".join(map(plain, found))


@command(about_runs=True, reads=True)
def leases(
    where: Where,
    run: RunName,
    prefix: Annotated[str | None, typer.Option(metavar="TEXT", help="Only names that begin so.")] = None,
    limit: Limit = None,
) -> None:
    """The leases of a run: who holds each, for how long still, and how many wait for it.

    Example: inmem leases trip-to-oslo -d ./data
    """
    with where.reading() as source, Listing(as_json=where.as_json, limit=limit) as listing:
        now_us = source.now_us()
        store = source.run(run)
        described(source, store)
        for name, stored in store.records(TypeTag.LEASE, encode_prefix(prefix)):
            text = name.decode("utf-8", "backslashreplace")
            with readable(f"lease {text!r} of {run}"):
                record = rules.unpack(payload_of(stored))
            if listing.is_full:
                break
            if record.is_free:
                continue
            holder = record.holder.decode("utf-8", "backslashreplace")
            waiting = sum(1 for _ in store.records(TypeTag.LEASE_WAITER, name + b"\0"))
            if where.as_json:
                listing.document({
                    "name": text, "holder": holder, "token": record.token,
                    "acquired_at": record.acquired_at, "expires_at": record.expires_at, "waiting": waiting,
                })
                continue
            left_s = (record.expires_at - now_us) / 1e6
            ends = f"{span(left_s)} left" if left_s > 0 else f"ran out {span(-left_s)} ago"
            more = f", {waiting:,} waiting" if waiting else ""
            listing.words(
                (listing.column(plain(text), NAME_CELLS) + "  ", "bold"),
                (listing.column(f"#{record.token}", _TOKEN_CELLS) + "  ", "green"),
                (f"{ends}{more}  ", "cyan" if left_s > 0 else "yellow"), rest=plain(holder),
            )
        if not listing.rows and not where.as_json:
            note(f"{run} has no such leases" if prefix else f"{run} has no leases")


@lease.command(cls=Command)
@command(about_runs=True)
def release(
    where: Where,
    run: RunName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The lease.", show_default=False)],
) -> None:
    """Take a lease from its holder, as one commit, for whoever waits; the exit code is 1 if nobody has it.

    What the holder commits under it later is refused. Where he still works on something else, that goes on.

    Example: inmem lease release trip-to-oslo deploy -d ./data
    """
    with where.open() as database:
        scope = database.shared(run[1:]) if run.startswith("@") else database.run(run)
        found = scope.leases.get(name)
        if found is None or not scope.leases.release(found):
            hint = f"See which there are: inmem leases {last_argument(run)}"
            raise NotFoundError(f"nobody has lease {name!r} of {run}", hint=hint)
    if where.as_json:
        print_json({"run": run, "name": name, "holder": found.holder, "token": found.token})
    else:
        console().print(f"{plain(name)} is taken from {plain(found.holder)}", soft_wrap=True)
