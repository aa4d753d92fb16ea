"""A Huey whose tasks are in a store of inmem: `InmemHuey`, and its consumer.

Invariant: a task is in one place at any time. It leaves the schedule in the
commit that queues it, and the queue in the commit that begins or ends it.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from huey import signals
from huey.api import Huey
from huey.consumer import Consumer, Scheduler, Worker

import inmem
from inmem.adapters.huey.claim import Moving, Stopped, TaskClaim, gathered, moved
from inmem.adapters.huey.layout import Message
from inmem.adapters.huey.storage import InmemStorage

logger = logging.getLogger("huey.inmem")

_JOB = "inmem_job"  # an attribute of a task that a worker has taken


class InmemHuey(Huey):  # type: ignore[misc]  # huey has no types
    """A Huey whose queue, schedule, results and locks are in a store of inmem.

    `db` is a path, a URL of a PostgreSQL server, or an open `Database`. What
    else Huey takes is taken by name, and so is what `InmemStorage` takes.

    A task whose worker is killed while it runs is lost, as Huey has it. With
    `redeliver` it comes back after `lease_s` seconds, and after `max_attempts`
    attempts it is dead. Its result, the tasks that it brings about and its end
    are one commit then. `@huey.task(redeliver=True)` is for one task alone.

    >>> import inmem
    >>> from inmem.adapters.huey import InmemHuey
    >>> with inmem.open() as db:
    ...     huey = InmemHuey("my-app", db)
    ...     @huey.task()
    ...     def add(a, b):
    ...         return a + b
    ...     result = add(1, 2)  # a consumer executes it; here this program does
    ...     huey.execute(huey.dequeue())
    ...     result()
    3
    3

    Raises:
        InvalidInputError: an argument is wrong.
    """

    storage_class = InmemStorage

    def __init__(
        self, name: str = "huey", db: str | Path | inmem.Database | None = None, **options: Any
    ) -> None:
        self._claims: dict[str, TaskClaim] = {}  # of tasks that run in this process
        super().__init__(name, db=db, **options)
        self.signal(signals.SIGNAL_INTERRUPTED)(self._given_back)

    def create_consumer(self, **options: Any) -> Consumer:
        """A consumer whose workers and scheduler lose no task when they are killed.

        A worker keeps a task in the store until its function begins, or with `redeliver` until it is done.
        """
        return InmemConsumer(self, **options)

    def serialize_task(self, task: Any) -> bytes:
        """Huey's message of a task, with what it is called."""
        name = self._registry.task_to_string(type(task))
        return Message.of(super().serialize_task(task), name, str(task.id))

    # --- what the consumer calls ----------------------------------------------------------

    def take(self) -> Any:
        """Take the next task, for `execute`; None if there is none in time.

        A message of which no task can be made counts as a failed attempt: it comes again, and is dead
        after the last one.
        """
        if not isinstance(self.storage, InmemStorage):
            return self.dequeue()
        taken = self.storage.take()
        if taken is None:
            return None
        job, data = taken
        try:
            task = self.deserialize_task(data)
        except Exception as error:
            self.storage.queues.nack(job, error=f"{type(error).__name__}: {error}")
            raise
        setattr(task, _JOB, job)
        return task

    def execute(self, task: Any, timestamp: Any = None) -> Any:
        """Execute a task. One from `take` ends its job, see there."""
        job = task.__dict__.pop(_JOB, None)
        if job is None:
            return super().execute(task, timestamp)
        keeps = bool(getattr(task, "redeliver", self.storage.redeliver))
        claim = TaskClaim(self.storage, job, keeps=keeps)
        run = task.execute

        def execute() -> Any:
            claim.begin()
            try:
                return run()
            finally:
                claim.resume()

        task.execute = execute
        self._claims[task.id] = claim
        try:
            with job, gathered(claim):
                try:
                    value = super().execute(task, timestamp)
                except Stopped as stopped:
                    raise stopped.cause from None
                claim.finish()
        except inmem.JobLostError:
            logger.warning("Task %s is another worker's by now: nothing of it is stored.", task.id)
            return None
        finally:
            del task.execute
            if self._claims.get(task.id) is claim:
                del self._claims[task.id]
        return value

    def _given_back(self, signal: str, task: Any) -> None:
        """The task was interrupted, or the consumer ends while it runs."""
        claim = self._claims.get(task.id)
        if claim is not None:
            claim.give_back(signal)

    # --- what the scheduler calls ---------------------------------------------------------

    def due_tasks(self, timestamp: Any = None) -> list[tuple[str, Any]]:
        """Scheduled tasks whose time has come, with where they are; they stay there until `queue_due`."""
        if timestamp is None:
            timestamp = self._get_timestamp()
        found = []
        for place, data in self.storage.due(timestamp):
            try:
                found.append((place, self.deserialize_task(data)))
            except Exception:  # as Huey does with what it cannot read
                logger.exception("Unable to deserialize task.")
                self.storage.drop_due(place)
        return found

    def queue_due(self, place: str, task: Any) -> None:
        """Move a scheduled task to the queue, in one commit, unless another scheduler has."""
        moving = Moving(self.storage, place, str(task.id))
        with moved(moving):
            self.enqueue(task)
        if not moving.is_done:  # a subclass makes messages of its own, or queues elsewhere
            self.storage.drop_due(place)


class _Seen:
    """A Huey, as a part of a consumer sees it."""

    def __init__(self, huey: InmemHuey) -> None:
        self._huey = huey

    def __getattr__(self, name: str) -> Any:
        return getattr(self._huey, name)


class _SeenByWorker(_Seen):
    def dequeue(self) -> Any:
        return self._huey.take()


class _SeenByScheduler(_Seen):
    def __init__(self, huey: InmemHuey) -> None:
        super().__init__(huey)
        self._places: dict[int, str] = {}

    def read_schedule(self, timestamp: Any = None) -> list[Any]:
        due = self._huey.due_tasks(timestamp)
        self._places = {id(task): place for place, task in due}
        return [task for _, task in due]

    def enqueue(self, task: Any) -> Any:
        place = self._places.pop(id(task), None)
        return self._huey.enqueue(task) if place is None else self._huey.queue_due(place, task)


class InmemWorker(Worker):  # type: ignore[misc]  # huey has no types
    """A worker that keeps a task in the store until it begins, or until it is done."""

    def __init__(self, huey: InmemHuey, *args: Any, **options: Any) -> None:
        super().__init__(_SeenByWorker(huey), *args, **options)


class InmemScheduler(Scheduler):  # type: ignore[misc]  # huey has no types
    """A scheduler that moves a task from the schedule to the queue in one commit."""

    def __init__(self, huey: InmemHuey, *args: Any, **options: Any) -> None:
        super().__init__(_SeenByScheduler(huey), *args, **options)


class InmemConsumer(Consumer):  # type: ignore[misc]  # huey has no types
    """Huey's consumer, with these workers and this scheduler."""

    worker_class = InmemWorker
    scheduler_class = InmemScheduler
