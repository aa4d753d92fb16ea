"""`inmem report`: a run as one HTML file that needs nothing else.

Invariant: nothing that is stored is ever markup or script in it. The data is
a JSON document in an element that no browser runs; the page puts it on the
screen as text. A policy in the page forbids all but its own style and script,
each by its hash, and every request to anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final

import typer

from inmem.cli.common import (
    RunName,
    Where,
    command,
    console,
    described,
    print_json,
    size,
)
from inmem.cli.report_document import ReportDocument
from inmem.host.files import output as output_file
from inmem.host.paths import absolute
from inmem.reading.named_source import NamedSource
from inmem.reading.run import StoredRun

_ASSETS: Final = files("inmem.web").joinpath("assets")  # what the page of `inmem ui` is made of too
_LIMIT: Final = 2000  # of each kind, unless more are wanted: a browser is quick with these


@command(about_runs=True, reads=True)
def report(
    where: Where,
    run: RunName,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="RUN.html by default; - is standard output."),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="No more events, traces, cells, keys than this.")
    ] = _LIMIT,
) -> None:
    """Write a run as one HTML file: timeline, traces, events, cells, entries.

    It can be opened anywhere, and loads nothing. It holds what the run holds:
    the file is for this user only. A file of that name is replaced.

    Example: inmem report trip-to-oslo -o run.html -d ./data
    """
    with where.reading() as source:
        page = page_of(source, run, limit)
    data = page.encode()
    if output is not None and str(output) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    file = output or Path(f"{run}.html")
    absolute(file, "FILE")
    with output_file(file) as out:
        out.write(data)
    if where.as_json:
        print_json({"file": str(file), "bytes": len(data)})
    else:
        console().print(f"{file} is written, {size(len(data))}", soft_wrap=True)


def page_of(source: NamedSource, run: str, limit: int = _LIMIT) -> str:
    """The report of a run.

    Raises:
        RunNotFoundError: there is nothing under that name.
    """
    store = source.run(run)
    metadata = described(source, store)
    verdict = store.verify()  # of many moments: a long log must not be pinned while it is hashed
    with source.moment() as moment:
        of_moment = StoredRun(moment, source.namespace, run)
        document = ReportDocument(of_moment, metadata, limit).document(verdict, moment.version)
    # As a part of a page: nothing in it can end the element that it is in.
    text = json.dumps(document, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    template = files("inmem.cli").joinpath("report.html").read_text("utf-8")
    for name, asset in (("base", "base.css"), ("parts", "parts.js")):
        template = template.replace("{{" + name + "}}", _ASSETS.joinpath(asset).read_text("utf-8"), 1)
    style = _between(template, "<style>", "</style>")
    script = _between(template, "<script>", "</script>")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    )
    for name, value in (("policy", policy), ("title", html.escape(f"{run} – inmem")), ("data", text)):
        before, after = template.split("{{" + name + "}}")
        template = before + value + after
    return template


def _between(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
