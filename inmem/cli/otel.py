"""`inmem otel`: a run to an OpenTelemetry receiver."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from inmem.cli.common import WRONG_USAGE, RunName, Where, command, console, print_json


@command(about_runs=True, old="none")
def otel(
    where: Where,
    run: RunName,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The OTLP/HTTP receiver; else as OTEL_EXPORTER_OTLP_* say."),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Sent with each request; may be repeated.")
    ] = None,
    content: Annotated[
        bool, typer.Option("--content", help="Send prompts, arguments, results and payloads too.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Send what commits as it comes, until the run has ended.")
    ] = False,
    cursor: Annotated[
        str, typer.Option(metavar="NAME", help="With --follow: what this follower is called, to go on later.")
    ] = "default",
    retry_s: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For how long a refused batch is tried again.")
    ] = 30.0,
) -> None:
    """Send a run with its traces and events as spans, over OTLP/HTTP.

    A follower that was stopped goes on where it was. Ids follow from the
    namespace, the run and the trace: what is sent twice has the same ids.

    Example: inmem otel trip-to-oslo --endpoint http://localhost:4318 -d ./data
    """
    try:
        from inmem.adapters import otel as adapter
        from inmem.adapters.otel.otlp import otlp_exporter
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        print("inmem: this command needs more: pip install 'inmem[otel]'", file=sys.stderr)
        raise typer.Exit(WRONG_USAGE) from None
    with otlp_exporter(endpoint, dict(map(_pair, header or []))) as exporter, where.open() as db:
        if follow:
            count = adapter.follow(db, run, exporter, cursor=cursor, content=content, retry_s=retry_s)
        else:
            count = adapter.export(db, run, exporter, content=content, retry_s=retry_s)
    if where.as_json:
        print_json({"run": run, "spans": count})
    else:
        console().print(f"{count:,} spans of {run} were sent", soft_wrap=True)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--header")
    return name, value
