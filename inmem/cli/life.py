"""`inmem serve`, `start`, `status`, `stop`: the life of a writer, as an operator sees it.

Invariant: looking at a store never starts a writer, and the only process that
is ever signalled is one that holds the writer's lock at that moment.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from inmem.cli.common import Where, command, console, print_fields, print_json, size
from inmem.client.launcher import create_directory, ensure_writer, running_writer
from inmem.config import DURABILITIES, load
from inmem.database import open as open_database
from inmem.errors import BusyError, WriterUnavailableError
from inmem.host.clock import FAR_US
from inmem.host.control import DURABLE, VERSION, Control, boot_id
from inmem.host.directory import DataDirectory
from inmem.host.paths import check_path
from inmem.reading.live_image import is_served
from inmem.storage.wal.files import segment_files

NOT_SERVED: Final = 3
_POLL_S: Final = 0.01
_BY_ITSELF: Final = "A server serves by itself. The tables of a store are made by: inmem init -d URL"

Durability = Annotated[
    str | None,
    typer.Option(metavar="|".join(DURABILITIES), help="What a commit survives; fixed at creation."),
]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A TOML file with settings; fixed at creation.")
]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", min=0.001, help="How long to wait.")]


# --- serve --------------------------------------------------------------------------------------


@command(only_here=_BY_ITSELF)
def serve(
    where: Where,
    durability: Durability = None,
    config: ConfigFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """Be the writer, in the foreground, until Ctrl-C or SIGTERM.

    The directory is created if it is missing. Programs need no such writer:
    they start one by themselves. This one stays when the last of them has
    left, and its log is on standard error too.

    Example: inmem serve --durability sync -d ./data
    """
    from inmem.writer.__main__ import serve as serve_directory  # which no other command has to wait for

    configuration = load(config, {"durability": durability})
    directory = DataDirectory(check_path(where.path))
    create_directory(directory, configuration.settings, time.monotonic() + timeout)
    configuration.with_stored(directory.identity().stored)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup keeps it
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    read_fd, write_fd = os.pipe()
    teller = threading.Thread(target=_tell, args=(directory, read_fd, where.as_json), daemon=True)
    teller.start()
    try:
        serve_directory(directory, foreground=True, ready_fd=write_fd)  # closes it
    except BusyError:
        raise BusyError(
            f"{directory.path} has a writer already",
            hint=f"See it with: inmem status -d {where.shown}. End it with: inmem stop -d {where.shown}",
        ) from None
    teller.join()
    if not where.as_json:
        console().print("stopped")


def _tell(directory: DataDirectory, ready_fd: int, as_json: bool) -> None:
    """Say where it serves, once it does."""
    with os.fdopen(ready_fd) as ready:
        if "ready" not in json.loads(ready.readline() or "{}"):
            return
    durability = directory.identity().stored["durability"]
    control = directory.control()
    try:
        state = control.read()
    finally:
        control.close()
    assert state is not None, "only this process updates it, and it has"
    if as_json:
        document = {
            "path": str(directory.path), "durability": durability, "writer_pid": state.pid,
            "epoch": state.epoch, "endpoint": state.endpoint, "image": state.image,
        }
        print(json.dumps(document))
    else:
        line = f"serving {directory.path} ({durability}) as process {state.pid}; Ctrl-C stops it"
        console().print(line, soft_wrap=True)


# --- init ---------------------------------------------------------------------------------------


@command()
def init(
    where: Where,
    durability: Durability = None,
    config: ConfigFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """Make a store, and start nothing: a data directory, or on a server the tables.

    Programs make what is missing by themselves. This is for those whose user
    may not: the user of a server who owns the schema runs it once. The exit
    code is 0 also if the store is there already.

    Example: inmem init --durability sync -d ./data
    """
    if where.is_server:
        with open_database(
            where.named, durability=durability, config=config, timeout_s=timeout
        ) as database:
            name, stored = database.name, database.engine.durability
    else:
        configuration = load(config, {"durability": durability})
        directory = DataDirectory(check_path(where.path))
        create_directory(directory, configuration.settings, time.monotonic() + timeout)
        settings = configuration.with_stored(directory.check_own().stored).settings
        name, stored = str(directory.path), settings.durability
    if where.as_json:
        print_json({"path": name, "durability": stored})
    else:
        console().print(f"{name} holds a database ({stored})", soft_wrap=True)


# --- start --------------------------------------------------------------------------------------


@command(only_here=_BY_ITSELF)
def start(
    where: Where,
    durability: Durability = None,
    config: ConfigFile = None,
    linger: Annotated[
        bool, typer.Option("--linger", help="It leaves after its last client, as one that a program started.")
    ] = False,
    timeout: Timeout = 10.0,
) -> None:
    """Start a writer in the background, and return when it serves.

    The directory is created if it is missing. The writer stays until `inmem
    stop`; with --linger only `linger_s` longer than its last client, so that
    somebody has to come soon. The exit code is 0 also if one serves already,
    which stays or leaves as it was started to.

    Example: inmem start -d ./data
    """
    configuration = load(config, {"durability": durability})
    directory = DataDirectory(check_path(where.path))
    deadline = time.monotonic() + timeout
    create_directory(directory, configuration.settings, time.monotonic() + timeout)
    configuration.with_stored(directory.check_own().stored)
    directory.take_over()
    control = directory.control()
    try:
        control.check_machine()
        before = running_writer(directory, control)
        state = before or ensure_writer(directory, control, deadline, autostart=True, stays=not linger)
    finally:
        control.close()
    if where.as_json:
        print_json({
            "path": str(directory.path), "writer_pid": state.pid, "epoch": state.epoch,
            "was_serving": before is not None,
        })
        return
    stored = directory.identity().stored
    if before is not None:
        line = f"process {state.pid} serves {directory.path} already"
    elif linger:
        line = f"process {state.pid} serves {directory.path}, until {stored['linger_s']:g} s without a client"
    else:
        line = f"process {state.pid} serves {directory.path}; end it with: inmem stop -d {where.shown}"
    console().print(line, soft_wrap=True)


# --- status -------------------------------------------------------------------------------------


@command()
def status(where: Where, timeout: Timeout = 5.0) -> None:
    """Who is the writer, which version, how full. Never starts a writer.

    The exit code is 0 if a writer serves, 3 if none does: then only what the
    directory says is shown. Of a store on a server it is what that one says.

    Example: inmem status --json -d ./data
    """
    if where.is_server:
        with where.open(timeout) as database:
            fields = {"path": database.name, "serving": True} | asdict(database.status())
        shown = _shown_of_server
    else:
        fields, shown = status_of(where.directory(), timeout), _shown
    if where.as_json:
        print_json(fields)
    else:
        print_fields(shown(fields))
    if not fields["serving"]:
        raise typer.Exit(NOT_SERVED)


def status_of(directory: DataDirectory, timeout_s: float) -> dict[str, Any]:
    """What the writer says of itself; without one, what the directory says.

    Raises:
        WriterUnavailableError: it does not answer in time.
        PermissionDeniedError: it lives in another container.
    """
    control = directory.control()
    try:
        control.check_machine()
        fields = _asked(directory, timeout_s) if is_served(directory) else None
        return _unserved(directory, control) if fields is None else fields
    finally:
        control.close()


def _asked(directory: DataDirectory, timeout_s: float) -> dict[str, Any] | None:
    """What the writer says of itself; None if it left before it could."""
    try:
        with open_database(directory.path, create=False, autostart=False, timeout_s=timeout_s) as database:
            answer = asdict(database.status())
    except WriterUnavailableError:
        if is_served(directory):
            raise
        return None
    return {"path": str(directory.path), "serving": True} | answer


def _unserved(directory: DataDirectory, control: Control) -> dict[str, Any]:
    """What can be known without a writer."""
    stored = directory.identity().stored
    state = control.read()
    try:
        segments = [file.stat().st_size for _, file in segment_files(directory.wal)]
    except FileNotFoundError:
        segments = []
    return {
        "path": str(directory.path),
        "serving": False,
        "left": "cleanly" if state is not None and not state.pid else "killed",
        "in_memory": bool(
            state is not None and state.image and state.boot == boot_id() and Path(state.image).is_dir()
        ),
        "epoch": 0 if state is None else state.epoch,
        "version": control.words[VERSION],
        "durable_version": control.words[DURABLE],
        "durability": stored["durability"],
        "quota_bytes": stored["quota_bytes"],
        "wal_bytes": sum(segments),
        "wal_segments": len(segments),
    }


def _shown(fields: dict[str, Any]) -> dict[str, str]:
    """The fields of a status, for people."""
    rows = {"path": fields["path"]}
    if not fields["serving"]:
        if fields["epoch"] == 0:
            rows["writer"] = "none, there has not been one yet"
        elif fields["left"] == "cleanly":
            rows["writer"] = "none, the last one left cleanly"
        else:
            rows["writer"] = "none, the last one was killed; the next one recovers"
        if fields["durability"] == "memory" and not fields["in_memory"]:
            rows["data"] = "none: it was in memory only"
        rows["version"] = f"{fields['version']:,}, durable up to {fields['durable_version']:,}"
        rows["durability"] = fields["durability"]
        rows["log"] = f"{size(fields['wal_bytes'])} in {fields['wal_segments']} segments"
        return rows
    rows["writer"] = f"process {fields['writer_pid']}, epoch {fields['epoch']}"
    rows["version"] = f"{fields['version']:,}, durable up to {fields['durable_version']:,}"
    rows["durability"] = fields["durability"]
    used = 100 * fields["image_bytes"] / fields["quota_bytes"]
    rows["image"] = (
        f"{size(fields['image_bytes'])} of {size(fields['quota_bytes'])} ({used:.1f} %), "
        f"file {size(fields['image_file_bytes'])}, generation {fields['generation']}"
    )
    rows["log"] = size(fields["wal_bytes"])
    if fields["clock_ahead_s"] * 1e6 >= FAR_US:
        rows["clock"] = f"{fields['clock_ahead_s']:,.0f} s ahead of the wall clock; see: inmem clock"
    rows["clients"] = f"{fields['clients']} processes and {fields['sessions']} sessions, these here included"
    oldest = fields["oldest_snapshot_age_s"]
    rows["oldest snapshot"] = "none" if oldest is None else f"{oldest:.1f} s old"
    rows["since it began"] = (
        f"{fields['commits']:,} commits in {fields['batches']:,} groups, {fields['conflicts']:,} conflicts, "
        f"{fields['failures']:,} failures, {fields['expired']:,} expired keys"
    )
    return rows


def _shown_of_server(fields: dict[str, Any]) -> dict[str, str]:
    """The fields of a status of a store on a server, for people."""
    oldest = fields["oldest_snapshot_age_s"]
    rows = {
        "store": fields["path"],
        "version": f"{fields['version']:,}",
        "durability": fields["durability"],
        "tables": f"{size(fields['image_bytes'])}, with their indices {size(fields['image_file_bytes'])}",
        "clients": f"{fields['clients']} processes and {fields['sessions']:,} sessions, these here included",
        "oldest snapshot": "none" if oldest is None else f"{oldest:.1f} s old",
        "commits": f"{fields['commits']:,}, as the server has counted them",
    }
    if fields["clock_ahead_s"] * 1e6 >= FAR_US:
        rows["clock"] = f"versions are {fields['clock_ahead_s']:,.0f} s ahead of the server's clock"
    return rows


# --- stop ---------------------------------------------------------------------------------------


@command(only_here=_BY_ITSELF)
def stop(where: Where, timeout: Timeout = 30.0) -> None:
    """Let the writer finish what it has, and leave.

    Nothing that was acknowledged is lost, except in a "memory" store, which
    lives only as long as its writer. A program that still uses the store
    starts another writer at its next commit. The exit code is 0 also if none
    was running.

    Example: inmem stop -d ./data
    """
    directory = where.directory()
    pid = stop_writer(directory, timeout)
    if where.as_json:
        print_json({"path": str(directory.path), "was_serving": pid is not None, "writer_pid": pid})
    elif pid is None:
        console().print(f"no writer serves {directory.path}", soft_wrap=True)
    else:
        console().print(f"stopped the writer of {directory.path}, process {pid}", soft_wrap=True)


def stop_writer(directory: DataDirectory, timeout_s: float) -> int | None:
    """Ask the writer to stop and wait until it is gone; its process id, None if there was none.

    Raises:
        WriterUnavailableError: it is not gone before the deadline.
        PermissionDeniedError: it lives in another container.
    """
    deadline = time.monotonic() + timeout_s
    control = directory.control()
    try:
        control.check_machine()
        while is_served(directory):
            state = running_writer(directory, control)
            pidfd = -1 if state is None else _pidfd_of_holder(directory, state.pid)
            if state is not None and pidfd >= 0:
                try:
                    _end(pidfd, state.pid, deadline)
                finally:
                    os.close(pidfd)
                return state.pid
            # It has the lock, but has not said yet who it is: it is recovering.
            if time.monotonic() >= deadline:
                raise WriterUnavailableError(
                    f"a writer of {directory.path} is starting, and cannot be stopped yet",
                    path=str(directory.path), hint="Try again, or give it more time: --timeout SECONDS",
                )
            time.sleep(_POLL_S)
        return None
    finally:
        control.close()


def _end(pidfd: int, pid: int, deadline: float) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise WriterUnavailableError(
            f"the writer, process {pid}, was asked to stop, and has not yet",
            hint=f"Wait longer: --timeout SECONDS. Killing it loses no acknowledged commit: kill -KILL {pid}",
        )


def _pidfd_of_holder(directory: DataDirectory, pid: int) -> int:
    """A descriptor of the process if it has the writer's lock file open, else -1.

    The control file of a writer that was killed names its process id until
    the next one has recovered, and the id may be somebody else's by now.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return -1
    with suppress(OSError):
        lock = directory.writer_lock.stat()
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed meanwhile
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), lock):
                    return pidfd
    os.close(pidfd)
    return -1
