"""`inmem ui`: a page over a running store, in the browser of this machine."""

from __future__ import annotations

import importlib.util
import sys
import webbrowser
from typing import Annotated, Any

import typer

from inmem.cli.common import WRONG_USAGE, Where, command, console, print_json
from inmem.keys import check_run_id


@command(about_runs=True)
def ui(
    where: Where,
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Begin at this run.", show_default=False)
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=65535, help="By default 8477, or any if it is taken.", show_default=False
        ),
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Let the page change things: end and delete runs, keys, jobs.")
    ] = False,
) -> None:
    """Show a running store as a page that follows it. Ends with Ctrl-C.

    The page is for this machine alone: it listens on 127.0.0.1, and the link
    has a token. It only looks, unless --write is given. It is a client of the
    store like any other, and starts a writer if none serves.

    Example: inmem ui --open -d ./data
    """
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        print("inmem: the page needs more than the command: pip install 'inmem[ui]'", file=sys.stderr)
        raise typer.Exit(WRONG_USAGE)
    from inmem.web import server

    if run is not None and not run.startswith("@"):
        check_run_id(run)
    with where.open() as database, server.listening(port) as sock:
        token = server.new_token()
        place = f"/run/{run}" if run else "/"
        link = server.link_of(sock, token, place)
        said: dict[str, Any] = {"link": link, "write": write}
        if where.as_json:
            print_json(said)
        else:
            console().print(f"{link}\nCtrl-C ends it.", soft_wrap=True)
        sys.stdout.flush()
        once = server.new_token() if open_browser else ""
        if open_browser:  # all users of a machine see the arguments of its programs: this link works once
            webbrowser.open(server.link_of(sock, once, place))
        server.serve(database, sock, token, may_write=write, place=where.named, once=once)
