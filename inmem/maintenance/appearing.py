"""Files and directories that take their names when they are whole.

Until then a file has no name, and a directory is beside its place under a
hidden one, as a file is where there are no files without a name. Nothing is
ever replaced. What a killed process has left under a hidden name is removed by the
next attempt, and by whoever makes a database of that name.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inmem.errors import AlreadyExistsError, InmemError
from inmem.host import failpoints
from inmem.host.files import appearing, denied, left_behind, sync_directory
from inmem.host.paths import check_parent


@contextmanager
def appearing_file(file: Path) -> Iterator[io.FileIO]:
    """A file that gets its name, durably, if the block ends without an error."""
    for left in left_behind(file):
        left.unlink(missing_ok=True)
    try:
        with appearing(file, replaces=False) as unfinished:
            yield unfinished
            failpoints.reached("backup_copied")
    except FileExistsError:
        raise AlreadyExistsError(f"{file} was made meanwhile; nothing was replaced") from None


def refuse_taken(path: Path) -> None:
    """Refuse a place for a new directory that holds something.

    Raises:
        AlreadyExistsError: it does.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir() or any(path.iterdir()):
        raise AlreadyExistsError(
            f"{path} exists and is not an empty directory", hint="Name a new directory: nothing is replaced."
        )


@contextmanager
def appearing_directory(path: Path) -> Iterator[Path]:
    """A directory beside this one, which takes its name, whole, if the block ends without an error.

    Killed meanwhile, it stays under its other name, and is no database
    unless it is whole; the next attempt removes it.
    """
    check_parent(path)
    for left in left_behind(path):
        shutil.rmtree(left, ignore_errors=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        os.mkdir(unfinished, 0o700)
    except OSError as error:
        raise denied(path.parent, error) from None
    try:
        yield unfinished
        failpoints.reached("restore_built")
        try:
            os.rename(unfinished, path)  # onto an empty directory, or onto nothing
        except OSError as error:
            refuse_taken(path)
            raise InmemError(
                f"a new directory cannot take the name {path}: {error.strerror}",
                hint="If it is a file system of its own, name a directory inside of it.",
            ) from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_directory(path.parent)
