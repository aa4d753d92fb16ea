"""`inmem queue`: the queues of a run, and their jobs.

`list`, `counts`, `peek`, `dead` and `get` change nothing, and take no job.
`put`, `requeue` and `purge` are commits like any program's. No command claims
a job: a claim is somebody's who does it and acks it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
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
    print_fields,
    print_json,
)
from inmem.cli.given import scope_of, value_of
from inmem.cli.listing import Listing, note
from inmem.cli.look import NAME_CELLS
from inmem.cli.stored_queues import in_words, queues_in
from inmem.cli.text import full_time, plain
from inmem.errors import NotFoundError
from inmem.jsonvalues import to_json
from inmem.primitives.queues.reads import QueueReads
from inmem.primitives.queues.shown import JobInfo

queue = typer.Typer(
    help="Look into the queues of a run, put jobs, and put dead ones back.", no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PEEKED: Final = 20  # jobs, unless more are asked for
_ID_CELLS: Final = (10, 32)

QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue.", show_default=False)]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="A job's id: QUEUE/NUMBER.", show_default=False)]


@contextmanager
def _reads(where: Where, run: str) -> Iterator[QueueReads]:
    """The queues of a run, which has to be there."""
    with where.reading() as source:
        store = source.run(run)
        described(source, store)
        with source.moment() as moment:
            yield queues_in(moment, store.prefix)


@queue.command("list", cls=Command)
@command(about_runs=True, reads=True)
def list_(where: Where, run: RunName) -> None:
    """The queues of a run, and how many jobs each has in each state.

    Example: inmem queue list trip-to-oslo -d ./data
    """
    with _reads(where, run) as queues, Listing(as_json=where.as_json) as listing:
        for name in queues.list():
            counts = queues.counts(name)
            if where.as_json:
                listing.document({"queue": name} | asdict(counts))
            else:
                listing.words(
                    (listing.column(plain(name), NAME_CELLS) + "  ", "bold"), rest=in_words(counts)
                )
        if not listing.rows and not where.as_json:
            note(f"{run} has no queues")


@queue.command(cls=Command)
@command(about_runs=True, reads=True)
def counts(where: Where, run: RunName, queue: QueueName) -> None:
    """How many jobs a queue has in each state, by the clock.

    Example: inmem queue counts trip-to-oslo mail -d ./data
    """
    with _reads(where, run) as queues:
        found = queues.counts(queue)
    if where.as_json:
        print_json({"run": run, "queue": queue} | asdict(found))
    else:
        print_fields({state: f"{count:,}" for state, count in asdict(found).items()})


@queue.command(cls=Command)
@command(about_runs=True, reads=True)
def peek(where: Where, run: RunName, queue: QueueName, limit: Limit = None, full: Full = False) -> None:
    """The jobs that are taken next, in that order, without taking them; 20, unless --limit says more.

    Example: inmem queue peek trip-to-oslo mail -d ./data
    """
    with _reads(where, run) as queues, Listing(as_json=where.as_json, full=full) as listing:
        for job in queues.peek(queue, limit=limit or _PEEKED):
            _print_job(listing, job)
        if not listing.rows and not where.as_json:
            note(f"{plain(queue)} of {run} has no jobs that are ready")


@queue.command(cls=Command)
@command(about_runs=True, reads=True)
def dead(where: Where, run: RunName, queue: QueueName, limit: Limit = None, full: Full = False) -> None:
    """The dead jobs of a queue, with their last error.

    Example: inmem queue dead trip-to-oslo mail -d ./data
    """
    with _reads(where, run) as queues, Listing(as_json=where.as_json, full=full) as listing:
        for job in queues.dead(queue, limit=limit):
            _print_job(listing, job)
        if not listing.rows and not where.as_json:
            note(f"{plain(queue)} of {run} has no dead jobs")


def _print_job(listing: Listing, job: JobInfo) -> None:
    if listing.as_json:
        listing.document(job_document(job))
        return
    tried = f"{job.attempt} of {job.max_attempts}  " if job.attempt else ""
    last = (plain(job.errors[-1].splitlines()[0]) + "  ") if job.errors and job.errors[-1] else ""
    listing.row(
        (listing.column(plain(job.id), _ID_CELLS) + "  ", "bold"), (tried, "yellow"), (last, "red"),
        value=job.payload, has_value=True,
    )


@queue.command(cls=Command)
@command(about_runs=True, reads=True)
def get(where: Where, run: RunName, job: JobName, full: Full = False) -> None:
    """One job: its state, its payload or result, its errors.

    Example: inmem queue get trip-to-oslo mail/17 -d ./data
    """
    with _reads(where, run) as queues:
        found = queues.get(job)
    if found is None:
        raise _missing(run, job)
    if where.as_json:
        print_json({"run": run} | job_document(found))
        return
    with Listing(as_json=False, full=full) as listing:
        listing.line((plain(found.id), "bold"))
        for name, text in _fields_of(found).items():
            listing.words((f"{name:<10}", "dim"), rest=text)
        for error in found.errors:
            listing.words((f"{'error':<10}", "dim"), rest=plain(error), style="red")
        name, value = ("result", found.result) if found.state == "done" else ("payload", found.payload)
        listing.row((f"{name:<10}", "dim"), value=value, has_value=True)


def _fields_of(job: JobInfo) -> dict[str, str]:
    fields = {"state": job.state, "put": full_time(job.enqueued_at)}
    when = {"delayed": "due", "claimed": "until", "dead": "died", "done": "done"}.get(job.state)
    if when is not None:
        fields[when] = full_time(job.time)
    if job.attempt:
        fields["attempt"] = f"{job.attempt} of {job.max_attempts}"
    if job.worker:
        fields["worker"] = plain(job.worker)
    if job.priority:
        fields["priority"] = str(job.priority)
    if job.key is not None:
        fields["key"] = plain(job.key)
    return fields


def _missing(run: str, job: str) -> NotFoundError:
    hint = f"See which queues there are: inmem queue list {last_argument(run)}"
    return NotFoundError(f"{run} has no job {job!r}", hint=hint)


@queue.command(cls=Command)
@command(about_runs=True)
def put(
    where: Where,
    run: RunName,
    queue: QueueName,
    payload: Annotated[
        str,
        typer.Argument(metavar="PAYLOAD", help="JSON; - reads it from standard input.", show_default=False),
    ],
    text: Annotated[bool, typer.Option("--text", help="PAYLOAD is a text, not JSON.")] = False,
    delay: Annotated[float, typer.Option(metavar="SECONDS", help="It is ready after this long.")] = 0.0,
    priority: Annotated[int, typer.Option(metavar="N", help="Higher ones are taken first.")] = 0,
    key: Annotated[
        str | None, typer.Option(metavar="TEXT", help="While a job with this key is there, none is put.")
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option("--max-attempts", metavar="N", help="After so many it is dead.")
    ] = None,
) -> None:
    """Put a job into a queue, as one commit; starts a writer if none serves.

    Example: inmem queue put trip-to-oslo mail '{"to": "ada"}' -d ./data
    """
    content = value_of(payload, "payload", is_text=text)
    with where.open() as database:
        job_id = scope_of(database, run).queues.put(
            queue, content, delay_s=delay, priority=priority, key=key, max_attempts=max_attempts
        )
    if where.as_json:
        print_json({"run": run, "queue": queue, "id": job_id})
    else:
        console().print(f"{plain(job_id)} is in the queue", soft_wrap=True)


@queue.command(cls=Command)
@command(about_runs=True)
def requeue(where: Where, run: RunName, job: JobName) -> None:
    """Put a dead job back, as one commit; its attempts count from 1 again.

    Example: inmem queue requeue trip-to-oslo mail/17 -d ./data
    """
    with where.open() as database:
        scope_of(database, run).queues.requeue(job)
    if where.as_json:
        print_json({"run": run, "id": job, "requeued": True})
    else:
        console().print(f"{plain(job)} is ready again", soft_wrap=True)


@queue.command(cls=Command)
@command(about_runs=True)
def purge(
    where: Where,
    run: RunName,
    queue: QueueName,
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only ready, delayed, claimed, dead or done ones.")
    ] = None,
) -> None:
    """Remove the jobs of a queue, of one state or all. Who holds one finds out.

    Example: inmem queue purge trip-to-oslo mail --state dead -d ./data
    """
    with where.open() as database:
        removed = scope_of(database, run).queues.purge(queue, state=state)
    if where.as_json:
        print_json({"run": run, "queue": queue, "removed": removed})
    else:
        console().print(f"{removed:,} jobs are removed", soft_wrap=True)


def job_document(job: JobInfo) -> dict[str, Any]:
    """A job for programs."""
    return asdict(job) | {
        "id": str(job.id), "payload": to_json(job.payload), "result": to_json(job.result),
        "errors": [*job.errors],
    }
