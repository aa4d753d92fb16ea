"""`python -m inmem.demo.page`: `inmem ui`, for as long as standard input is open.

Invariant: it ends with the process that started it, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from inmem.cli import main


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass  # nothing is ever sent
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_watch, name="parent", daemon=True).start()
    sys.argv[1:] = ["ui", "--open", "--json"]
    main()
