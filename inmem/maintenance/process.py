"""Helpers as processes of their own: how one is run, and how it answers.

A helper that is run from here ends with the process that runs it, however
that ends: it has a pipe of it as its standard input, which closes then.

Invariant: what a helper prints is lines of JSON: `{"progress": text}` any
number of times, then one document, `{"error": ...}` if it failed. Whatever a
damaged image does to a helper, whoever wanted its answer goes on.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from inmem.errors import InmemError, StoreFullError
from inmem.host.files import hint_of, python_environment, python_program, text_of
from inmem.wire import from_wire, to_wire

Progress = Callable[[str], None]

_TELL_EVERY: Final = 100_000  # entries between two words of progress
_END_PATIENCE_S: Final = 5.0  # for a helper that was asked to end
_ATTENDED: Final = "INMEM_HELPER_ATTENDED"  # a variable: standard input is a pipe of whoever waits
# A damaged image can make reading it fatal; every other signal came from somebody.
_FATAL: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})


def silent(text: str) -> None:
    """A progress that nobody follows."""


class DiedOfDamage(Exception):
    """The helper was ended by what it read; its text is the signal's name."""


def run_helper(program: Sequence[str], what: str, progress: Progress = silent) -> dict[str, Any]:
    """Run a Python program that is a helper, and return its document; `what` is its name in messages.

    Raises:
        DiedOfDamage: a fatal signal ended it.
        InmemError: what it says, or that it said nothing.
    """
    document: dict[str, Any] | None = None
    with tempfile.TemporaryFile() as errors, subprocess.Popen(
        [python_program(), *program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        env=python_environment() | {_ATTENDED: "1"},
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                try:
                    said = json.loads(line)
                except ValueError:
                    continue
                if "progress" in said:
                    progress(said["progress"])
                else:
                    document = said
            process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_END_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
        errors.seek(0)
        complaint = errors.read().decode(errors="replace").strip()
    if -process.returncode in _FATAL:
        raise DiedOfDamage(signal.Signals(-process.returncode).name)
    if document is None:
        last = complaint.splitlines()[-1:] or ["it said nothing"]
        raise InmemError(f"the {what} ended with status {process.returncode}: {last[0][-500:]}")
    if "error" in document:
        raise from_wire(document["error"])
    return document


def answer(work: Callable[[], dict[str, Any]], what: str) -> int:
    """Be a helper: print what `work` returns, or why it failed; the exit status.

    SIGTERM and SIGINT end it with what it has begun undone, and no answer.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # of whoever runs it
    if os.environ.pop(_ATTENDED, None):
        threading.Thread(target=_end_when_unattended, daemon=True).start()
    try:
        document = work()
    except InmemError as error:
        document = _described(error)
    except OSError as error:
        document = _described(from_os_error(f"the {what} could not be done", error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(json.dumps(document))
    return 0


def _end_when_unattended() -> None:
    """Ask this process to end when nobody waits for its answer any more."""
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


def tell(text: str) -> None:
    """The progress of a helper, for whoever runs it."""
    print(json.dumps({"progress": text}), flush=True)


def from_os_error(problem: str, error: OSError) -> InmemError:
    """What a failed system call means to a user: a full disk, or what the system says."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"{problem}: {text_of(error)}", hint="Free space on the disk.")
    return InmemError(f"{problem}: {text_of(error)}", hint=hint_of(error))


def counted(done: str, progress: Progress) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A function that entries pass through; it tells how many have passed."""
    total = 0

    def passing(items: Iterable[Any]) -> Iterator[Any]:
        nonlocal total
        for item in items:
            yield item
            total += 1
            if total % _TELL_EVERY == 0:
                progress(f"{done} {total:,} entries")

    return passing


def _described(error: InmemError) -> dict[str, Any]:
    code, message, fields = to_wire(error)
    plain = {name: value for name, value in fields.items() if isinstance(value, str | int | float)}
    return {"error": [code, message, plain]}
