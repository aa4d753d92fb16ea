"""Whether files and processes are still there. This module changes nothing.

A logout, a cleaner of temporary files or a person may remove files of a
living writer. They go on working for processes that have them open, and for
no others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from inmem.host.control import Control, boot_id, pid_namespace
from inmem.host.directory import DataDirectory


class Watch:
    """Files, each with the inode that it had."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._inodes = {path: _inode(path) for path in paths}

    def missing(self) -> list[Path]:
        """Those that were removed or replaced since. Cost: 1 µs a file."""
        return [path for path, inode in self._inodes.items() if _inode(path) != inode]


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info.st_dev, info.st_ino


def is_running(pid: int) -> bool:
    """Whether a process has this id."""
    return Path(f"/proc/{pid}").exists()


def living_writer(directory: DataDirectory, control: Control) -> int | None:
    """The process id of a writer that lives although the lock is free, because its lock file was replaced.

    Only a writer maps the control file writable.
    """
    state = control.read()
    if state is None or not state.pid or state.pid == os.getpid():
        return None
    if state.boot != boot_id() or state.namespace != pid_namespace():
        return None
    inode = str(os.stat(directory.control_file).st_ino)
    try:
        lines = Path(f"/proc/{state.pid}/maps").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1] == "rw-s" and fields[4] == inode:
            return state.pid
    return None
