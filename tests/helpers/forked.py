"""Programs that are forked off a process which has imported what they need: most of their time is importing.

Each is a process of its own, with its own environment, directory, files,
command line and exit status, and inherits nothing that a test has open. What
cannot be seen in it is how a Python program begins, and what the kernel says
of its environment is that of the process it comes from. What tests the
beginning of a program, or finds it by that, starts a real one.

Run as a program it is that process. It listens at a socket, so that tests
have nothing open of it, and ends with the process that started it.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
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

COMMANDS = (
    "inmem.exports", "inmem.cli.app", "rich.console", "typer.rich_utils", "support", "forked_programs"
)  # fmt: skip
WRITERS = ("inmem.writer.__main__",)
HELPERS = tuple(f"inmem.maintenance.{name}" for name in ("__main__", "check", "backup", "salvage"))
_LONGEST = 1 << 17  # bytes of a request
_FILES = 8
_ABOVE = 64  # numbers of files that no program is given
_ROOM = 1 << 12  # of a command line, which is written over that of the process
_START_S = 60.0
_LOOK_S = 1.0  # how often it looks whether those that started it are there


def make_commands_once() -> None:
    """What parses the command line is made once in a process, and not anew for each call: 15 ms."""
    import typer.main

    typer.main.get_command = functools.cache(typer.main.get_command)


# --- the side of the tests ------------------------------------------------------------------------


class Programs:
    """Whether what is tested starts its own programs as it does for users; else see `forked_programs`."""

    real = bool(os.environ.get("INMEM_EXHAUSTIVE"))


programs = Programs()


class Source:
    """The process that programs are forked off: none, or one from the first use to `stop`."""

    def __init__(self, modules: Sequence[str], like: str = "", place: str = "") -> None:
        """It imports these modules. With a place: one that another process has started there."""
        self.like = like  # how the process starts: see `forked_programs`
        self.environment: dict[str, str] | None = None  # that it starts with; by default that of this process
        self.place = place
        self._modules = modules
        self._process: subprocess.Popen[bytes] | None = None
        self._others = bool(place)
        self._starting = threading.Lock()

    def connect(self) -> socket.socket:
        """A connection to it; it is started if there is none."""
        self.start()
        made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made.connect(f"{self.place}/socket")
        return made

    def start(self) -> None:
        """Unless it runs."""
        with self._starting:
            if not self._others and (self._process is None or self._process.poll() is not None):
                self._start()

    def _start(self) -> None:
        self.place = tempfile.mkdtemp(prefix="forked-", dir="/tmp")
        words = [sys.executable, __file__, self.place, ",".join(self._modules), "x" * _ROOM]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, start_new_session=True, env=self.environment
        )
        deadline = time.monotonic() + _START_S
        while not os.path.exists(f"{self.place}/ready"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("no programs can be forked")
            time.sleep(0.005)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            for name in ("socket", "ready"):
                Path(self.place, name).unlink(missing_ok=True)
            os.rmdir(self.place)


_commands, writers, helpers = map(Source, (COMMANDS, WRITERS, HELPERS))


def stop() -> None:
    """End the processes that programs are forked off; the next program starts another."""
    for source in (_commands, writers, helpers):
        source.stop()


class Forked:
    """A program that was forked off, used as a `subprocess.Popen`."""

    def __init__(
        self, work: dict[str, Any], files: Sequence[int], env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None, source: Source = _commands,
    ) -> None:
        self.returncode: int | None = None
        request = work | {"env": dict(os.environ if env is None else env)}
        place = os.open(cwd or ".", os.O_RDONLY)  # which may have no name any more
        try:
            self._told = source.connect()
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

    def forget(self) -> None:
        """It goes on, and nobody wants to know how it ends."""
        self._told.close()

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
    return _run_with_writers({"kind": "command", "words": [str(each) for each in arguments]}, **more)


def run_script(file: Path, **more: Any) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end where it lies, with warnings as errors."""
    return _run_with_writers({"kind": "script", "words": [file.name]}, cwd=file.parent, **more)


def _run_with_writers(work: dict[str, Any], **more: Any) -> subprocess.CompletedProcess[Any]:
    """Run what may start writers, which are forked off too."""
    return run(work | {"writers": "" if programs.real else writers.place, "like": writers.like}, **more)


# --- the process that programs are forked off -----------------------------------------------------


def serve(place: str, modules: Sequence[str]) -> int:
    """Fork what is asked for, and tell how it ended. In a program: its exit status."""
    starter = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path.insert(0, str(Path(__file__).parents[2]))
    if "inmem.cli.app" in modules:
        make_commands_once()
    for module in modules:
        importlib.import_module(module)
    if "inmem.exports" in modules:
        assert sys.modules["inmem"].Database  # which takes all names from there
    if "inmem.cli.app" in modules:
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
    *given, place = files
    os.fchdir(place)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for fd in given]
    for fd in files:
        os.close(fd)
    for fd, number in zip(high, request.get("numbers", range(len(given))), strict=True):
        os.dup2(fd, number)
        os.close(fd)
    if "shown" in request:
        show(request["shown"])
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
    if request["kind"] == "main":  # the main function of a module
        name, *words = request["words"]
        status: int = sys.modules[f"{name}.__main__"].main(words)
        return status
    warnings.simplefilter("error")
    sys.warnoptions.append("error")  # of what it starts
    if request["kind"] == "module":
        name, *sys.argv[1:] = request["words"]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return 0
    if request["writers"]:
        source = Source(WRITERS, request["like"], request["writers"])
        sys.modules["forked_programs"].fork_writers_off(source)
    if request["kind"] == "script":  # a file, which lies where it is to run
        sys.argv[:] = request["words"]
        sys.path.insert(0, "")
        # Absolute, as Python has it: processes that it spawns look for it there.
        runpy.run_path(os.path.abspath(request["words"][0]), run_name="__main__")
        return 0
    from inmem.cli import main

    sys.argv = ["inmem", *request["words"]]
    main()
    return 0


def show(words: Sequence[str]) -> None:
    """Write a command line over the one that the kernel shows of this process."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: fields 48 and 49 of all
    line = b"".join(os.fsencode(word) + b"\0" for word in words)
    ctypes.memmove(start, line.ljust(end - start, b"\0")[: end - start], end - start)


if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], sys.argv[2].split(",")))
