"""Programs that are forked off a process which has imported what they need: most of their time is importing.

Each is a process of its own, with its own environment, directory, files and
exit status, and inherits nothing that a test has open. What cannot be seen in
it is how a Python program begins: its command line and what the kernel says of
its environment are those of the process it comes from. What tests the
beginning of a program, or finds it by these, starts a real one.

Run as a program it is that process. It listens at a socket, so that tests
have nothing open of it, and ends with the process that started it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PRELOADED = ("inmem.exports", "inmem.cli.app", "rich.console", "typer.rich_utils", "support")
_LONGEST = 1 << 17  # bytes of a request
_FILES = 4
_START_S = 60.0
_LOOK_S = 1.0  # how often it looks whether those that started it are there


def make_commands_once() -> None:
    """What parses the command line is made once in a process, and not anew for each call: 15 ms."""
    import typer.main

    typer.main.get_command = functools.cache(typer.main.get_command)


# --- the side of the tests ------------------------------------------------------------------------


class _Source:
    """The process that programs are forked off: none, or one from the first use to `stop`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._place = ""

    def connect(self) -> socket.socket:
        """A connection to it; it is started if there is none."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.connect(f"{self._place}/socket")
        return made

    def _start(self) -> None:
        self._place = tempfile.mkdtemp(prefix="forked-", dir="/tmp")
        words = [sys.executable, __file__, self._place]
        self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + _START_S
        while not os.path.exists(f"{self._place}/ready"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("no programs can be forked")
            time.sleep(0.005)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            for name in ("socket", "ready"):
                Path(self._place, name).unlink(missing_ok=True)
            os.rmdir(self._place)


_source = _Source()


def stop() -> None:
    """End the process that programs are forked off; the next program starts another."""
    _source.stop()


class Forked:
    """A program that was forked off, used as a `subprocess.Popen`."""

    def __init__(
        self, work: dict[str, Any], files: Sequence[int], env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        self.returncode: int | None = None
        request = work | {"env": dict(os.environ if env is None else env)}
        place = os.open(cwd or ".", os.O_RDONLY)  # which may have no name any more
        try:
            self._told = _source.connect()
            socket.send_fds(self._told, [json.dumps(request).encode()], [*files, place])
        finally:
            os.close(place)
        self.pid = int(self._heard())

    def _heard(self) -> bytes:
        data = self._told.recv(64)
        if not data:
            raise AssertionError("the process that programs are forked off has ended")
        return data

    def poll(self) -> int | None:
        """Its status, if it has ended."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its status, when it has ended."""
        if self.returncode is None:
            self._told.settimeout(timeout)
            try:
                self.returncode = int(self._heard())
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("a forked program", timeout or 0) from None
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    work: dict[str, Any], *, env: Mapping[str, str] | None = None, cwd: str | Path | None = None,
    text: bool = True, stdout: int | None = None, timeout: float = 60.0,
    began: Callable[[int], object] = lambda pid: None,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end; `stdout` is where its output goes, `began` is told its process id."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(os.devnull) as nothing:
        files = [nothing.fileno(), out.fileno() if stdout is None else stdout, err.fileno()]
        process = Forked(work, files, env, cwd)
        began(process.pid)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
            process.wait()
        said: list[Any] = []
        for file in (out, err):
            file.seek(0)
            data = file.read()
            said.append(data.decode() if text else data)
    return subprocess.CompletedProcess(work["words"], code, *said)


def run_command(arguments: Sequence[object], **more: Any) -> subprocess.CompletedProcess[Any]:
    """Run the command `inmem` to its end, with warnings as errors."""
    return run({"kind": "command", "words": [str(each) for each in arguments]}, **more)


# --- the process that programs are forked off -----------------------------------------------------


def serve(place: str) -> int:
    """Fork what is asked for, and tell how it ended. In a program: its exit status."""
    starter = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make_commands_once()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    for module in PRELOADED:
        importlib.import_module(module)
    sys.modules["typer.main"].get_command(sys.modules["inmem.cli.app"].app)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{place}/socket")
    listener.listen(64)
    Path(place, "ready").touch()
    callers: dict[int, tuple[int, socket.socket]] = {}  # by the file that tells of a program's end
    with selectors.DefaultSelector() as events:
        events.register(listener, selectors.EVENT_READ)
        while os.getppid() == starter:
            for key, _ in events.select(_LOOK_S):
                if key.fileobj is not listener:
                    pid, caller = callers.pop(key.fd)
                    events.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    with suppress(OSError):  # the test does not wait for it
                        caller.send(str(os.waitstatus_to_exitcode(status)).encode())
                    caller.close()
                    continue
                caller, _ = listener.accept()
                data, files, _, _ = socket.recv_fds(caller, _LONGEST, _FILES)
                request = json.loads(data)
                prepare(request)
                pid = os.fork()
                if not pid:
                    events.close()
                    listener.close()
                    for fd, (_, other) in callers.items():
                        os.close(fd)
                        other.close()
                    caller.close()
                    leave(request, files)
                for fd in files:
                    os.close(fd)
                caller.send(str(pid).encode())
                end = os.pidfd_open(pid)
                callers[end] = pid, caller
                events.register(end, selectors.EVENT_READ)
    shutil.rmtree(place, ignore_errors=True)  # they were killed, and left it
    return 0


def prepare(request: dict[str, Any]) -> None:
    """Import what the program will import; it tells itself of what goes wrong."""
    for where in request.get("places", []):
        if where not in sys.path:
            sys.path.append(where)
    for module in request.get("imports", []):
        with suppress(Exception):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()


def leave(request: dict[str, Any], files: list[int]) -> NoReturn:
    """Be a program, and end as Python does, but take nothing apart: that costs more than all else."""
    try:
        code: Any = be(request, files)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads; what the interpreter itself calls
    atexit._run_exitfuncs()
    with suppress(Exception):
        sys.stdout.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def be(request: dict[str, Any], files: list[int]) -> int:
    """Be the program that was asked for; its exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request.get("session"):
        os.setsid()  # so that all that are forked in it can be found
    *standard, place = files
    os.fchdir(place)
    for number, fd in enumerate(standard):
        os.dup2(fd, number)
    for fd in files:
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, "w" if number else "r", encoding=encoding, closefd=False) for number in range(3)
    )
    sys.stderr.reconfigure(errors="backslashreplace", line_buffering=True)
    if request["kind"] == "function":
        import support

        return support.be_worker(*request["words"])
    warnings.simplefilter("error")
    sys.warnoptions.append("error")  # of what it starts
    if request["kind"] == "module":
        name, *sys.argv[1:] = request["words"]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return 0
    from inmem.cli import main

    sys.argv = ["inmem", *request["words"]]
    main()
    return 0


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1]))
