"""Histories: what a worker asked of the store and what it was answered.

Invariant: a question is in the file before it is asked, and an answer before
anything else is done; so whatever happens to a worker, its file says what may
have happened in the store. One file per worker, JSON Lines, only appended to,
flushed with every line. Times are of the machine's monotonic clock, which all
processes share: an answer noted before a question was given before it.

    {"n": 3, "at": 1000, "op": "append", "run": "r", "args": {...}}   asked
    {"n": 3, "at": 2000, "ok": 17}                                    acknowledged
    {"n": 3, "at": 2000, "error": "ConflictError", "told": {...}}     refused
    {"n": 3, "at": 2000, "unknown": true}                             no answer, even when asked again
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

OK = "ok"
REFUSED = "refused"
UNKNOWN = "unknown"  # it may or may not have happened


@dataclass(slots=True)
class Op:
    """One question and its answer."""

    worker: int
    n: int
    op: str
    run: str
    args: dict[str, Any]
    asked_at: int = 0  # nanoseconds
    answered_at: int | None = None
    outcome: str = UNKNOWN
    result: Any = None
    error: str | None = None
    told: dict[str, Any] = field(default_factory=dict)  # fields of the error

    def __str__(self) -> str:
        return f"{self.op} {self.n} of worker {self.worker}"


class HistoryError(Exception):
    """A history is not one: a line is cut, out of order, or answers nothing."""


class History:
    """The file of one worker, being written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("x", encoding="utf-8")
        self._count = 0

    def asked(self, op: str, run: str, args: dict[str, Any]) -> int:
        """Note a question; its number."""
        number = self._count
        self._count += 1
        self._write({"n": number, "op": op, "run": run, "args": args})
        return number

    def acknowledged(self, number: int, result: Any) -> None:
        self._write({"n": number, "ok": result})

    def refused(self, number: int, error: str, told: dict[str, Any]) -> None:
        self._write({"n": number, "error": error, "told": told})

    def unknown(self, number: int) -> None:
        self._write({"n": number, "unknown": True})

    def _write(self, line: dict[str, Any]) -> None:
        line["at"] = time.monotonic_ns()
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._file.close()


def path_of(directory: Path, worker: int) -> Path:
    """Where a worker's history is."""
    return directory / f"worker-{worker:03d}.jsonl"


def read_history(path: Path, worker: int, killed: bool = False) -> list[Op]:
    """All that one worker asked, in order. One that was killed may have left half a line: that was not asked.

    Raises:
        HistoryError: the file is not a whole history.
    """
    try:
        whole, _, torn = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
        if torn and not killed:
            raise HistoryError("it ends in half a line")
        return parse_history(whole.splitlines(), worker)
    except FileNotFoundError:
        if killed:  # before it began
            return []
        raise HistoryError(f"{path.name} is missing") from None
    except (OSError, HistoryError) as error:
        raise HistoryError(f"{path.name}: {error}") from None


def parse_history(lines: Iterable[str], worker: int) -> list[Op]:
    """The questions in some lines, each with its answer.

    Raises:
        HistoryError: they are not a history.
    """
    ops: list[Op] = []
    for number, line in _parsed(lines):
        if "op" in line:
            if line["n"] != len(ops):
                raise HistoryError(f"line {number} asks {line['n']}, expected {len(ops)}")
            ops.append(Op(worker, line["n"], line["op"], line["run"], line["args"], line["at"]))
            continue
        # A worker asks one thing at a time, so an answer is of the last question.
        if not ops or line["n"] != ops[-1].n or ops[-1].answered_at is not None:
            raise HistoryError(f"line {number} answers {line['n']}, which was not asked")
        op = ops[-1]
        op.answered_at = line["at"]
        if "ok" in line:
            op.outcome, op.result = OK, line["ok"]
        elif "error" in line:
            op.outcome, op.error, op.told = REFUSED, line["error"], line["told"]
    return ops


def by_op(histories: Iterable[Iterable[Op]]) -> dict[str, list[Op]]:
    """The questions of all workers by their kind."""
    found: dict[str, list[Op]] = {}
    for history in histories:
        for op in history:
            found.setdefault(op.op, []).append(op)
    return found


def by_run(ops: Iterable[Op]) -> dict[str, list[Op]]:
    """Questions by their run."""
    found: dict[str, list[Op]] = {}
    for op in ops:
        found.setdefault(op.run, []).append(op)
    return found


def _parsed(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:
            raise HistoryError(f"line {number} is no JSON") from None
        if not isinstance(line, dict) or "n" not in line or "at" not in line:
            raise HistoryError(f"line {number} is no question and no answer")
        yield number, line
