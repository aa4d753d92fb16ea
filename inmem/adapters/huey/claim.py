"""A job that a worker has taken, until its task is done.

Invariant: what Huey stores around the function of a task goes into the commit
that ends its job. Huey stores results, next tasks and retries one by one; here
they are gathered and committed at once, so a worker that is killed leaves all
of them or none. While the function itself runs nothing is gathered.

When a job ends: by default before the function runs, so it runs once at most,
as Huey has it. With `keeps` it ends with what the function has brought about,
and a worker that is killed before gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import inmem
from inmem.adapters.foreign import clear_parts, hashed
from inmem.adapters.huey.layout import data_in, take_due

T = TypeVar("T")
Write = Callable[[Any], object]

_SOON_S: Final = 0.001  # a claim that runs out at once

# A context variable is of its thread, and of its greenlet.
_claim: ContextVar[TaskClaim | None] = ContextVar("inmem_huey_claim", default=None)
_moving: ContextVar[Moving | None] = ContextVar("inmem_huey_moving", default=None)


class Stopped(BaseException):
    """The function of a task must not run, as `cause` says; Huey handles Exceptions alone."""

    def __init__(self, cause: inmem.InmemError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Moving:
    """A scheduled task that is moved to the queue: it leaves the schedule in the commit that queues it."""

    def __init__(self, storage: Any, place: str, task_id: str) -> None:
        self.storage = storage
        self.task_id = task_id
        self.is_done = False
        self._place = place

    def takes(self, txn: Any) -> bool:
        """Take it out of the schedule; whether it was there: another scheduler may have moved it."""
        return take_due(txn, self._place)


class TaskClaim:
    """A job, and what its task has brought about so far, as the thread of its worker sees it."""

    def __init__(self, storage: Any, job: Any, *, keeps: bool) -> None:
        self.storage = storage
        self.job = job
        self.keeps = keeps
        self.is_gathering = True
        self.writes: list[Write] = []
        self.data: dict[str, bytes | None] = {}  # by place: what the writes make of it
        self.is_over = False  # the job has ended
        self._has_counted = job.attempt > 1

    def flush(self, work: Callable[[Any], T]) -> T:
        """Make the writes so far, and do a piece of work that cannot wait, in one commit.

        Raises:
            JobLostError: another worker has the job; nothing is stored.
        """
        writes = self.writes

        def flushed(txn: Any) -> Any:
            txn.queues.extend(self.job, self.storage.lease_s)
            for write in writes:
                write(txn)
            return work(txn)

        result: T = self.storage.transact(flushed)
        self._is_stored()
        return result

    def counted(self, txn: Any, place: str, amount: Any) -> Any:
        """Add to a counter once, however often the job is redelivered; what it counted to then."""
        if not self.keeps:
            return txn.kv.add(place, amount)
        mark = f"m/{self.job.id.number:020}/{hashed(place)}"
        count = txn.kv.get(mark)
        if count is None:
            count = txn.kv.get(place, 0) + amount
            txn.kv.put(place, count)
            txn.kv.put(mark, count)
            self._has_counted = True
        return count

    def begin(self) -> None:
        """The function runs next.

        Raises:
            Stopped: it must not, another worker has the job or the store cannot be asked.
        """
        try:
            if not self.keeps:
                self._end()
            elif self.writes:
                self.flush(_nothing)
        except inmem.InmemError as error:
            raise Stopped(error) from None
        self.is_gathering = False

    def resume(self) -> None:
        """The function has ended."""
        self.is_gathering = self.keeps

    def finish(self) -> None:
        """Commit what was gathered, and end the job.

        Raises:
            JobLostError: another worker has the job; nothing is stored.
        """
        if not self.is_over:
            self._end()

    def give_back(self, error: str) -> None:
        """The task was interrupted: others may do it.

        By the thread that it ran in: nothing of what was gathered is stored. By another one, as the
        consumer ends: the task is taken from here on, and stores what it has brought about if it ends
        before that.
        """
        if not self.keeps or self.is_over:
            return
        if _claim.get() is self:
            self.is_over, self.writes = True, []
            self.storage.queues.nack(self.job, delay_s=0.0, error=error)
        else:
            self.storage.queues.extend(self.job, _SOON_S)

    def _end(self) -> None:
        writes, job = self.writes, self.job

        def ended(txn: Any) -> None:
            for write in writes:
                write(txn)
            if self._has_counted:
                txn.kv.clear(f"m/{job.id.number:020}/")
            clear_parts(txn.kv, data_in(job.payload))
            txn.queues.ack(job)

        self.storage.transact(ended)
        self.is_over = True
        self._is_stored()

    def _is_stored(self) -> None:
        self.writes = []
        self.data.clear()


def _nothing(txn: Any) -> None:
    """No more work than what was gathered."""


def gathering_for(storage: Any) -> TaskClaim | None:
    """The claim that gathers the writes of this thread to a storage now, if one does."""
    found = _claim.get()
    return found if found is not None and found.is_gathering and found.storage is storage else None


def moving_to(storage: Any, message: bytes) -> Moving | None:
    """What is moved to the queue by putting this message."""
    found = _moving.get()
    is_it = found is not None and found.storage is storage and getattr(message, "id", None) == found.task_id
    return found if is_it else None


@contextmanager
def gathered(claim: TaskClaim) -> Iterator[None]:
    """Gather the writes of this thread."""
    token = _claim.set(claim)
    try:
        yield
    finally:
        _claim.reset(token)


@contextmanager
def moved(moving: Moving) -> Iterator[None]:
    """The task is put into the queue now."""
    token = _moving.set(moving)
    try:
        yield
    finally:
        _moving.reset(token)
