"""A writer with timers around its stages, for `bench.anatomy`: `python -m bench.timed_writer STORE OUTPUT`

It serves in the foreground until it is told to end, or until whoever started
it has gone. Then it writes to OUTPUT what the timers were told.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from bench import timers
from bench.anatomy import WRITER, refuse
from inmem.host import interrupts
from inmem.writer.__main__ import main as serve


def _end_with_the_starter() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(store: str, output: str) -> int:
    """Serve, then tell."""
    interrupts.OURS.add(timers.__name__.partition(".")[0])  # exceptions that pass our timers are its own
    around = timers.Timers(WRITER, "inmem")
    refuse(around.missing)
    around.put_on()
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    code = serve([store])
    around.take_off()
    document = {"spans": around.spans(), "cost": timers.cost(), "missing": around.missing}
    Path(output).write_text(json.dumps(document))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
