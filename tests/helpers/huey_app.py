"""A program of Huey's, as its consumers and the tests that kill them see it.

The environment says where it is stored. Each function writes a line when it begins and one when it
ends, by one `write`: so a killed one leaves whole lines.
"""

from __future__ import annotations

import os
import time
from typing import Any

from huey.signals import SIGNAL_COMPLETE, SIGNAL_EXECUTING

from inmem.adapters.huey import InmemHuey

huey = InmemHuey(
    os.environ["HUEY_APP_NAME"], os.environ["HUEY_APP_PLACE"], utc=False,
    redeliver=bool(os.environ.get("HUEY_APP_REDELIVER")),
    lease_s=float(os.environ.get("HUEY_APP_LEASE_S", "30")), max_attempts=1000,
)


def note(word: str, number: int, job: int = 0) -> None:
    """Write a line."""
    log = os.open(os.environ["HUEY_APP_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{word} {number} {os.getpid()} {job}\n".encode())
    os.close(log)


@huey.task()
def work(number: int, work_s: float) -> int:
    note("began", number)
    time.sleep(work_s)
    note("ended", number)
    return number


@huey.task(context=True)
def then(number: int, task: Any = None) -> int:
    note("then", number, huey._claims[task.id].job.id.number)
    return 2 * number


@huey.signal(SIGNAL_EXECUTING, SIGNAL_COMPLETE)
def count(signal: str, task: object) -> None:
    huey.storage.incr(f"{signal} tasks")

