"""Work done in a forked child, and what came of it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

from support import wait_until

import inmem


def in_child(work: Callable[[], Any], deadline_s: float = 30.0) -> str:
    """Fork; the child runs `work`. Its name for what happened: ok, the error's class, or a traceback."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(read_fd)
            try:
                work()
                said = "ok"
            except inmem.InmemError as error:
                said = type(error).__name__
            except BaseException:
                said = traceback.format_exc()
            os.write(write_fd, said.encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as pipe:
        said = pipe.read().decode()
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the child ends", deadline_s)
    return said
