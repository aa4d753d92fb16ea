"""Whether a database has an image in memory, and whether a writer serves it.

An image counts only if recovery would adopt it: it has to name the same
database, the same boot and the same data directory. Looking starts no writer
and changes nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final, NamedTuple

from inmem.errors import CorruptionError, InmemError, LimitError
from inmem.host.control import Control, ControlState, boot_id
from inmem.host.directory import DataDirectory, Identity
from inmem.host.files import is_locked
from inmem.reading.source import shared
from inmem.storage.rebuild import owner_of
from inmem.storage.snapshot import Image

_FOREIGN: Final = "the image in memory belongs to another database, boot or directory"
_CONTROL_PATIENCE_S: Final = 1.0  # an update of the control file takes microseconds


class Found(NamedTuple):
    """The image that recovery would adopt; or why there is none, and what is wrong with it."""

    image: Image | None
    reason: str = ""
    problem: str | None = None


def live_image(directory: DataDirectory, identity: Identity, control: Control) -> Found:
    """The image in memory if it is this directory's. The caller closes it."""
    state = control_state(control)
    if state is None:
        return Found(None, "a writer died while it changed the control file")
    stem = directory.stem(identity)
    path = Path(state.image)
    if not state.image or state.boot != boot_id() or not path.is_dir():
        return Found(None, "no image in memory")
    if not path.name.startswith(stem):
        return Found(None, _FOREIGN)
    image = Image(control, stem)
    try:
        with shared(image).moment() as moment:
            position = moment.position()
    except CorruptionError:
        return Found(image)  # whoever reads it meets the damage again
    except LimitError:  # of this process; nothing is wrong with the image
        image.close()
        raise
    except InmemError as error:
        image.close()
        unchanged = Path(state.image).is_dir() and control_state(control) == state
        problem = f"the image cannot be opened: {error}" if unchanged else None
        return Found(None, "the image is gone or cannot be opened", problem)
    if position is None or position.owner == owner_of(directory, identity) or is_served(directory):
        return Found(image)
    image.close()
    return Found(None, _FOREIGN)


def control_state(control: Control) -> ControlState | None:
    """One reading of the control file; None if a writer died while it changed it."""
    deadline = time.monotonic() + _CONTROL_PATIENCE_S
    while (state := control.read()) is None and time.monotonic() < deadline:
        time.sleep(0.001)
    return state


def is_served(directory: DataDirectory) -> bool:
    """Whether a process holds the writer's lock."""
    return is_locked(directory.writer_lock)


def writer_of(directory: DataDirectory, control: Control) -> tuple[ControlState | None, bool]:
    """What differs after a writer has come or left: its files may have changed under a reader."""
    return control_state(control), is_served(directory)
