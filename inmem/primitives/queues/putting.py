"""Putting jobs into queues: what a run's facade, a transaction and a pipeline share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from inmem.engines.base import Sink
from inmem.errors import InvalidInputError
from inmem.keys import encode_name, shorten
from inmem.pending import Pending
from inmem.primitives._common import encoded, microseconds
from inmem.primitives.queues import rules
from inmem.primitives.queues.job import JobId
from inmem.primitives.queues.reads import encode_queue

I = TypeVar("I")  # noqa: E741  # the id of a job, or what will have it


class PendingJobId(Pending[JobId]):
    """A job that was put in a transaction or pipeline: `id` is there after the commit."""

    __slots__ = ()

    def resolve_part(self, result: Any, position: int) -> None:
        """Which of the jobs of a call this is."""
        self._known = (_job_id(result, position),)

    @property
    def id(self) -> JobId:
        """The job's id."""
        return self.result()


class QueuePuts(Generic[I]):
    """What puts jobs into queues of a run."""

    __slots__ = ()

    _sink: Sink
    _prefix: bytes

    def put(
        self, queue: str, payload: Any, *, delay_s: float = 0.0, priority: int = 0, key: str | None = None,
        max_attempts: int | None = None,
    ) -> I:
        """Put a job into a queue; its id. Cost: one round trip.

        Higher priorities are taken first, then what was committed first. With
        `delay_s` the job is ready so many seconds after its commit. While a
        job with the same `key` is there that is neither done nor dead, nothing
        is put, and the id is that one's. After `max_attempts` claims, 5 if
        none is given, a job that did not succeed is dead.

        >>> import inmem
        >>> with inmem.open() as db:
        ...     db.queues.put("run-1", "mail", {"to": "ada"}, key="welcome-ada")
        ...     db.queues.put("run-1", "mail", {"to": "ada"}, key="welcome-ada")
        JobId('mail/0')
        JobId('mail/0')

        Raises:
            InvalidKeyError, InvalidValueError, LimitError: queue, key or payload cannot be stored.
            RunDeletedError: the run was deleted.
        """
        item = self._item(payload, "payload", *_options(delay_s, priority, key, max_attempts))
        one: I = self._sink.join("queue.put", self._head(queue), [item], _job_id, PendingJobId, is_one=True)
        return one

    def put_many(
        self, queue: str, payloads: Iterable[Any], *, delay_s: float = 0.0, priority: int = 0,
        max_attempts: int | None = None,
    ) -> list[I]:
        """Put a job for each payload, in one commit; their ids. Cost: one round trip, and 10 µs a job.

        A commit has room for some 3,500 small jobs.

        Raises:
            LimitError: they do not fit into one commit; it says how many would.
        """
        options = _options(delay_s, priority, None, max_attempts)
        if isinstance(payloads, str | bytes) or not isinstance(payloads, Iterable):
            raise InvalidInputError("payloads must be an iterable of values", argument="payloads")
        items = [self._item(each, f"payloads[{i}]", *options) for i, each in enumerate(payloads)]
        many: list[I] = self._sink.join("queue.put", self._head(queue), items, _job_id, PendingJobId)
        return many

    def _head(self, queue: str) -> list[bytes]:
        return [self._prefix, encode_queue(queue)]

    def _item(
        self, payload: Any, argument: str, delay_us: int, rank: int, key: bytes, most: int
    ) -> rules.Item:
        return [encoded(self._sink, payload, argument), delay_us, rank, key, most]


def _options(
    delay_s: float, priority: int, key: str | None, max_attempts: int | None
) -> tuple[int, int, bytes, int]:
    if type(priority) is not int or abs(priority) > rules.MAX_PRIORITY:
        raise InvalidInputError(
            f"priority must be an int from {-rules.MAX_PRIORITY} to {rules.MAX_PRIORITY}, "
            f"not {shorten(priority)}",
            argument="priority",
        )
    if max_attempts is None:
        max_attempts = rules.MAX_ATTEMPTS
    if type(max_attempts) is not int or not 1 <= max_attempts < 1 << 16:
        raise InvalidInputError(
            f"max_attempts must be an int from 1 to 65535, not {shorten(max_attempts)}",
            argument="max_attempts",
        )
    name = b"" if key is None else encode_name(key, "key", rules.MAX_KEY_BYTES)
    return microseconds(delay_s, "delay_s"), rules.rank_of(priority), name, max_attempts


def _job_id(result: Any, position: int) -> JobId:
    queue, numbers = result
    return JobId.of(queue, numbers[position])
