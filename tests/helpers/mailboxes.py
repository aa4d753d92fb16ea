"""A writer's mailbox without its writer, and sockets that are connected to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from inmem.writer.mailbox import Mailbox
from inmem.writer.slots import Slots


@contextmanager
def mailbox(path: Path) -> Iterator[Mailbox]:
    some = Mailbox(path, Slots(None))
    try:
        yield some
    finally:
        some.close()


@contextmanager
def peers(endpoint: str, count: int) -> Iterator[list[zmq.Socket[bytes]]]:
    """So many sockets that are connected."""
    context = zmq.Context()
    try:
        some = [context.socket(zmq.DEALER) for _ in range(count)]
        for one in some:
            one.setsockopt(zmq.SNDHWM, 0)
            one.connect(endpoint)
        yield some
    finally:
        context.destroy(0)
