"""Memory and disk, filled and emptied again, and checkpoints, while others work.

Invariant: each phase in which the store may say that it is full has its
beginning and its end on the clock of the journals. At the end of a phase what
was written to fill it is gone, and a write has succeeded again. Each job runs
in a thread of its own, so that the writer can be killed in the middle of it.
A job's errors are collected in `problems`, never raised.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import inmem
from workers.judge.chaos import Phase

KIB: Final = 1024
# What fills the quota: large values first, then smaller ones into what is left, so that it is really full.
FILL_SIZES: Final = (4096 * KIB, 256 * KIB, 16 * KIB, 1 * KIB)
FILL_MOST: Final = 4096  # values of one size: as many mean that it never gets full
BLOCK_BYTES: Final = 1024 * KIB
RESUME_S: Final = 30.0  # from the moment there is room again until a write must succeed
RETRY_S: Final = 0.02
END_S: Final = 60.0  # for what is under way when all is let be


@dataclass(slots=True)
class Pressure:
    """The jobs of one chaos; `db` is shared by the threads."""

    db: Any
    disk: Path | None  # a file system of the program's own, or None
    phases: list[Phase] = field(default_factory=list)
    checkpoints: list[float] = field(default_factory=list)  # seconds that each took
    problems: list[str] = field(default_factory=list)
    _jobs: dict[str, Future[None]] = field(default_factory=dict)
    _threads: ThreadPoolExecutor = field(init=False)
    _over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(3, thread_name_prefix="pressure")

    @property
    def full(self) -> bool:
        """Whether something is full at this moment, or about to be."""
        return any(phase.ended_at is None for phase in self.phases)

    @property
    def busy(self) -> bool:
        """Whether a job is under way."""
        return any(not job.done() for job in self._jobs.values())

    def checkpoint(self) -> bool:
        """Begin a checkpoint, unless one is under way."""
        return self._begin("checkpoint", self._checkpoint)

    def fill_memory(self, seconds: float) -> bool:
        """Use up the quota, keep it so for so long, and free it; not while the disk is full.

        A store whose memory is full deletes; one whose disk is full can log nothing, deletions included.
        """
        return self._begin("full", lambda: self._phase("memory", lambda: self._fill_quota(seconds)))

    def fill_disk(self, seconds: float) -> bool:
        """Use up the disk, keep it so for so long, and free it."""
        return self._begin("full", lambda: self._phase("disk", lambda: self._fill_file_system(seconds)))

    def close(self) -> None:
        """Cut short what is under way, and wait until all is free again. May be called twice."""
        self._over.set()
        _, late = wait(list(self._jobs.values()), END_S)
        if late:
            self.problems.append(f"{len(late)} jobs have not ended within {END_S:g} s")
        self._threads.shutdown(wait=not late)

    def _begin(self, kind: str, job: Callable[[], None]) -> bool:
        before = self._jobs.get(kind)
        if before is not None and not before.done():
            return False
        self._jobs[kind] = self._threads.submit(self._guarded, kind, job)
        return True

    def _guarded(self, kind: str, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self.problems.append(f"{kind}: {type(error).__name__}: {error}")

    def _checkpoint(self) -> None:
        started = time.monotonic()
        try:
            self.db.checkpoint()
        except inmem.StoreFullError:
            if not self.full:
                raise
            return
        self.checkpoints.append(time.monotonic() - started)

    def _phase(self, kind: str, fill: Callable[[], None]) -> None:
        phase = Phase(kind, time.monotonic_ns())
        self.phases.append(phase)
        fill()
        freed = time.monotonic()
        while True:
            try:
                self.db.kv.put("chaos:probe", "room", bytes(64 * KIB))
                break
            except inmem.StoreFullError:
                if time.monotonic() - freed > RESUME_S:
                    raise
                time.sleep(RETRY_S)
        phase.resumed_s = time.monotonic() - freed
        phase.ended_at = time.monotonic_ns()

    def _fill_quota(self, seconds: float) -> None:
        run = f"chaos:filling:{len(self.phases)}"
        count = 0
        try:
            for size in FILL_SIZES:
                value = os.urandom(size)
                with suppress(inmem.StoreFullError):
                    for _ in range(FILL_MOST):
                        if self._over.is_set():
                            return
                        self.db.kv.put(run, f"{count}", value)
                        count += 1
                    raise RuntimeError(f"the store is not full after {FILL_MOST} values of {size} bytes")
            self._over.wait(seconds)
            if self.db.kv.get(run, "0") is None:
                raise RuntimeError("a full store does not read")
        finally:
            gone = self.db.runs.delete_run(run).kv if count else 0  # works in a full store
            if gone != count:
                self.problems.append(f"{count} values were acknowledged in {run}, and {gone} deleted")

    def _fill_file_system(self, seconds: float) -> None:
        assert self.disk is not None
        file = self.disk / "filling"
        try:
            with file.open("wb", buffering=0) as filling, suppress(OSError):
                while filling.write(bytes(BLOCK_BYTES)):
                    pass
            self._over.wait(seconds)
        finally:
            file.unlink(missing_ok=True)
