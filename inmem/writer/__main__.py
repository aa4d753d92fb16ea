"""`python -m inmem.writer DIRECTORY`: the writer as a process.

Started by clients with `--ready-fd`: it detaches, and reports on that
descriptor, as one line of JSON, that it serves or why it cannot.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

from inmem.errors import BusyError, InmemError
from inmem.host.directory import DataDirectory
from inmem.host.files import FileLock
from inmem.version import __version__
from inmem.wire import to_wire
from inmem.writer.journal import Journal, LineFormatter, RotatingFile
from inmem.writer.loop import Writer
from inmem.writer.surroundings import allow_open_files, check_limits, close_inherited, leave_starter
from inmem.writer.watch import living_writer

_LOG_BYTES = 4 * 1024 * 1024
_LOG_FILES = 3
_PROBE_S = 0.002

journal = Journal()


def serve(
    directory: DataDirectory, *, foreground: bool, stays: bool = False, ready_fd: int | None = None
) -> None:
    """Be the writer of a directory until asked to stop; report on `ready_fd` that it serves, or why not.

    A writer in the foreground, or one that `stays`, does not leave with its last client.

    Raises:
        BusyError: another writer has the directory.
    """
    starter = _Starter(ready_fd)
    try:
        _serve(directory, foreground, stays, starter)
    except InmemError as error:
        code, message, fields = to_wire(error)
        plain = {k: v for k, v in fields.items() if isinstance(v, str | int | float | None)}
        starter.tell({"error": [code, message, plain]})
        raise
    except Exception as error:
        starter.tell({"error": ["error", f"{type(error).__name__}: {error}", {}]})
        raise


def _serve(directory: DataDirectory, foreground: bool, stays: bool, starter: _Starter) -> None:
    os.umask(0o077)
    directory.check_own()
    directory.take_over()
    lock = FileLock(directory.writer_lock)
    try:
        while not lock.try_exclusive():
            if not lock.try_shared():
                raise BusyError(
                    f"{directory.path} has a writer already", what="writer",
                    hint="Programs that open the directory find it by themselves.",
                )
            lock.release()
            time.sleep(_PROBE_S)  # a client held it for a moment, to see whether there is a writer
        _refuse_a_second_writer(directory)
        allow_open_files()
        if not foreground:
            leave_starter()
        _set_up_logging(directory, foreground)
        check_limits(directory.identity().settings)
        writer = Writer(directory, lock, stays=foreground or stays)
        signal.signal(signal.SIGTERM, lambda *_: writer.request_stop())
        signal.signal(signal.SIGINT, lambda *_: writer.request_stop())
        try:
            writer.start()
        except BaseException:
            journal.critical("not_started", trace=True)
            raise
        starter.tell({"ready": True})
        try:
            writer.run()
        except BaseException:
            journal.critical("failed", trace=True)
            raise
        writer.stop()
    finally:
        lock.close()


def _refuse_a_second_writer(directory: DataDirectory) -> None:
    """Refuse if another writer lives, whose lock file was removed."""
    control = directory.control()
    try:
        pid = living_writer(directory, control)
    finally:
        control.close()
    if pid is not None:
        raise BusyError(
            f"{directory.path} has a writer, process {pid}, whose lock file was removed", what="writer",
            hint="It takes its lock again within seconds.",
        )


def _set_up_logging(directory: DataDirectory, foreground: bool) -> None:
    handlers: list[logging.Handler] = [
        RotatingFile(directory.log_file, max_bytes=_LOG_BYTES, files=_LOG_FILES)
    ]
    if foreground:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(LineFormatter())
    try:
        level = directory.identity().settings.log_level
    except InmemError:  # the start of the writer will fail with it
        level = "info"
    logging.basicConfig(level=level.upper(), handlers=handlers)
    journal.info("starting", release=__version__, python=sys.version.partition(" ")[0])


class _Starter:
    """The process that started this writer, and waits for one line."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def tell(self, message: dict[str, object]) -> None:
        """Report once, then close the descriptor: its number may then be another file's."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            os.write(fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            pass  # it has stopped waiting; other clients will come
        os.close(fd)


def _detach() -> None:
    """Leave the starter's process group, terminal and wait list."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")


class _Options(NamedTuple):
    directory: Path
    ready_fd: int | None
    stay: bool


def _parsed(arguments: list[str]) -> _Options:
    match arguments:  # as the launcher gives them: without loading a parser into each writer
        case [directory, "--ready-fd", number, *stay] if stay in ([], ["--stay"]):
            return _Options(Path(directory), int(number), bool(stay))
    import argparse

    parser = argparse.ArgumentParser(prog="python -m inmem.writer", description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--ready-fd", type=int, help="detach, and report readiness on this descriptor")
    parser.add_argument("--stay", action="store_true", help="do not leave with the last client")
    options = parser.parse_args(arguments)
    return _Options(options.directory, options.ready_fd, options.stay)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 0 after a clean stop."""
    options = _parsed(sys.argv[1:] if arguments is None else arguments)
    directory = DataDirectory(options.directory)
    detached = options.ready_fd is not None
    if options.ready_fd is not None:
        close_inherited(options.ready_fd)
        _detach()
    try:
        serve(directory, foreground=not detached, stays=options.stay, ready_fd=options.ready_fd)
    except InmemError as error:
        if not detached:
            print(f"inmem: {error} ({error.hint})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
