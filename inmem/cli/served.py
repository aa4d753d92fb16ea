"""How a command reads a store that nobody serves: one decision for all of them.

It reads the image in memory if a writer serves, or a killed one has left it.
If there is none it starts a writer, as any program does, which lingers after
the command: so the next command finds one. Where it must not (`--no-writer`)
or cannot (the directory is read-only, the store was in memory only) it is as
if there were no writers: checkpoint and log are replayed into private memory,
which ends with the command.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from inmem.client.launcher import ensure_writer
from inmem.errors import WriterUnavailableError
from inmem.host.control import Control
from inmem.host.directory import DataDirectory, Identity
from inmem.host.files import FileLock
from inmem.reading.live_image import is_served, live_image

_STARTING_S: Final = 300.0  # a recovery has the time that it needs; Ctrl-C ends the waiting
_POLL_S: Final = 0.003


@contextmanager
def served(directory: DataDirectory, *, may_start: bool) -> Iterator[None]:
    """Inside, the store is read as fast as it can be; a writer that serves does not leave.

    Raises:
        InmemError: whatever kept a writer from serving.
    """
    deadline = time.monotonic() + _STARTING_S
    identity = directory.identity()
    can_write = os.access(directory.path, os.W_OK)
    if may_start and can_write:
        directory.take_over()
    with ExitStack() as stack:
        control = directory.control()
        stack.callback(control.close)
        control.check_machine()
        if can_write or directory.clients_lock.exists():
            lock = FileLock(directory.clients_lock)
            stack.callback(lock.close)
            while not lock.try_shared():  # held by a writer that counts its clients, or leaves
                if time.monotonic() >= deadline:
                    raise WriterUnavailableError(
                        "the writer holds the client lock for too long", path=str(directory.path)
                    )
                time.sleep(_POLL_S)
        if may_start and can_write and _is_cold(directory, identity, control):
            ensure_writer(directory, control, deadline, autostart=True)
        yield


def _is_cold(directory: DataDirectory, identity: Identity, control: Control) -> bool:
    """Whether the store is on the disk alone, and a writer would bring it to memory."""
    if identity.stored["durability"] == "memory" or is_served(directory):
        return False
    image = live_image(directory, identity, control).image
    if image is None:
        return True
    image.close()
    return False
