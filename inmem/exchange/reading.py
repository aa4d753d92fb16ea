"""What an export reads: an open database, or one by its path.

No writer is started. A writer that serves stays while the source is open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from inmem.client.attachment import attached
from inmem.database import Database
from inmem.database import open as open_database
from inmem.engines.opening import is_url
from inmem.errors import CorruptionError, InvalidInputError
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock
from inmem.keys import check_run_id
from inmem.reading.live_image import live_image
from inmem.reading.source import Source, replayed, shared
from inmem.scopes import RunScope


def source_of(database: Database) -> Source:
    """An open database, whichever engine serves it."""
    engine = database.engine
    return Source("server" if engine.path is None else "image", engine.stored, engine.latest().now_us)


def run_id_of(database: Database | Path | str, run: str | RunScope) -> str:
    """The id of a run of a database's namespace, of which an id or the scope was given.

    Raises:
        InvalidInputError: a scope of another database or namespace.
    """
    if isinstance(database, Database):
        scope = database.run(run)
        if scope.namespace != database.namespace_prefix:
            raise InvalidInputError("run_id is a run of another namespace", argument="run_id")
        run = scope.run_id
    return check_run_id(run)


@contextmanager
def source_at(path: Path | str) -> Iterator[Source]:
    """A database by its path or URL.

    Where there is no image in memory, checkpoint and log are replayed into a
    private one, which takes about the time of a restart, and its memory.

    Raises:
        InvalidInputError: there is no database, or none of whose data anything is left.
        InmemError: it cannot be used.
    """
    if is_url(path):
        with open_database(path, create=False) as database:
            yield source_of(database)
        return
    directory = DataDirectory(Path(path))
    if not directory.exists():
        raise InvalidInputError(f"{directory.path} holds no inmem database", argument="path")
    identity = directory.identity()
    held = attached(directory)
    if held is not None:  # LMDB opens an image once in a process
        yield shared(held.image)
        return
    with ExitStack() as stack:
        control = directory.control()
        stack.callback(control.close)
        control.check_machine()
        # As a client, so that a writer that serves does not leave in the middle.
        lock = FileLock(directory.clients_lock)
        stack.callback(lock.close)
        lock.try_shared()
        found = live_image(directory, identity, control)
        if found.problem is not None:
            raise CorruptionError(found.problem, file=str(directory.path), offset=0)
        if found.image is not None:
            stack.callback(found.image.close)
            yield shared(found.image)
        elif identity.stored["durability"] == "memory":
            raise InvalidInputError(
                f"{directory.path}: {found.reason}, and a memory database keeps no log: "
                "nothing is left of it",
                argument="path",
            )
        else:
            yield stack.enter_context(replayed(directory, identity))
