"""What the processes of test_pool.py do; a spawned process imports it by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

from workers.pool import Interrupt, Link, WorkerPool


def double(link: Link, number: int) -> int:
    link.progress((number, 0, 0))
    return 2 * number


def fail(link: Link, text: str) -> None:
    raise ValueError(text)


def vanish(link: Link) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave(link: Link) -> None:
    os._exit(3)


def until_stopped(link: Link) -> None:
    link.progress(("pid", os.getpid()))
    while True:
        link.check()
        time.sleep(0.005)


def stubborn(link: Link) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link.progress(("pid", os.getpid()))
    while True:
        time.sleep(1)


def talkative(link: Link) -> None:
    link.progress(("pid", os.getpid()))
    while True:
        link.send("progress", b"x" * 100_000)


def signals_of(link: Link) -> dict[str, Any]:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return {
        "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "blocked": sorted(int(number) for number in blocked),
    }


def one_of_two(link: Link, index: int) -> str:
    if index == 0:
        raise ValueError("the first fails")
    until_stopped(link)
    return "never"


def parent_that_dies(start_method: str) -> None:
    """Start a worker, print its process id, and die without a word."""

    def die(_worker: int, payload: Any) -> None:
        print(payload[1], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    with Interrupt() as interrupt:
        pool = WorkerPool(until_stopped, [()], start_method=start_method)
        with pool:
            pool.run(die, interrupt)


def start_dying_parent(start_method: str) -> subprocess.Popen[str]:
    code = f"import pool_targets; pool_targets.parent_that_dies({start_method!r})"
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
