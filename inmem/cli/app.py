"""The commands, put together.

    exit  meaning
    0     done; for `status`: a writer serves; for `check`, `doctor` and `demo`: nothing was found
    1     it failed; for `check`, `doctor` and `demo`: problems were found; for `verify`: the chain is broken;
          for a run or a key: there is no such
    2     wrong usage, or an extra is not installed
    3     `status`: no writer serves
    129, 130, 143   ended by SIGHUP, SIGINT, SIGTERM
"""

from __future__ import annotations

from typing import Annotated

import typer

from inmem.cli.care import backup, checkpoint, clock, restore, salvage
from inmem.cli.check import check
from inmem.cli.common import Command
from inmem.cli.config import config
from inmem.cli.demo import demo
from inmem.cli.doctor import doctor
from inmem.cli.exchange import export, import_
from inmem.cli.kv import kv
from inmem.cli.leases import lease, leases
from inmem.cli.life import init, serve, start, status, stop
from inmem.cli.look import cells, events, verify
from inmem.cli.mcp import mcp
from inmem.cli.otel import otel
from inmem.cli.queue import queue
from inmem.cli.report import report
from inmem.cli.runs import run, runs
from inmem.cli.tail import tail
from inmem.cli.top import top
from inmem.cli.traces import traces
from inmem.cli.ui import ui
from inmem.version import __version__

app = typer.Typer(
    name="inmem",
    help="A transactional store that many processes of one machine share. "
    "Each command names its data directory, or a store on a server, with -d, or takes it from INMEM_PATH.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    init, serve, start, status, stop, top, doctor, check, backup, restore, checkpoint, clock, salvage,
    export, import_, mcp, otel, demo,
):
    app.command(cls=Command)(command)
app.add_typer(config, name="config")
for look in (runs, run, tail, events, cells, traces, leases, verify, report, ui):
    app.command(cls=Command, rich_help_panel="Looking into runs")(look)
app.add_typer(kv, name="kv", rich_help_panel="Looking into runs")
app.add_typer(lease, name="lease", rich_help_panel="Looking into runs")
app.add_typer(queue, name="queue", rich_help_panel="Looking into runs")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"inmem {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
