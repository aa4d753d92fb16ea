"""Jobs and queues, as the server table describes them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Final

from inmem import values
from inmem.jsonvalues import encoded_to_json
from inmem.keys import TypeTag, encode_name
from inmem.primitives.line_fields import LineFields
from inmem.primitives.queues import rules as job
from inmem.primitives.queues.job import STATES
from inmem.primitives.record_type import Document, LineForm, RecordsOfRun, RecordType, check_each
from inmem.record import payload_of

_FOLLOWING: Final = "next numbers of queues"  # in `LineFields.of_run`


def _check_place(rest: bytes) -> str | None:
    queue, _ = job.split_rest(rest)
    queue.decode()
    return None if len(queue) <= job.MAX_QUEUE_BYTES else "is in no queue"


def _check_body(rest: bytes, payload: bytes) -> str | None:
    job.enqueued_in(payload)
    values.decode(job.value_in(payload))
    return _check_place(rest)


def _check_state(rest: bytes, payload: bytes) -> str | None:
    return job.problem_of(job.unpack(payload)) or _check_place(rest)


def _check_queue(rest: bytes, payload: bytes) -> str | None:
    rest.decode()
    is_name = 0 < len(rest) <= job.MAX_QUEUE_BYTES and 0 not in rest
    return None if is_name and len(payload) == 8 else "is no queue"


class _QueuesCheck:
    """Each queue goes on above its jobs, and has one live job of each key."""

    def __init__(self) -> None:
        self._last: dict[bytes, int] = {}  # number of a job, by queue
        self._of_key = b""  # where the jobs are that have the key which was met last
        self._twice: tuple[bytes, int] = b"", 0  # of the first such place, and how many

    def take(self, tag: int, rest: bytes, payload: bytes) -> str | None:
        if tag == TypeTag.JOB:
            queue, number = job.split_rest(rest)
            self._last[queue] = number
        elif tag == TypeTag.JOB_QUEUE:
            last, following = self._last.pop(rest, -1), int.from_bytes(payload, "big")
            if following <= last:
                return f"the next number is {following}, but there is a job {last}"
        elif tag == TypeTag.JOB_BY_KEY:
            of_key = rest[:-8]
            if of_key == self._of_key:
                self._twice = self._twice[0] or of_key, self._twice[1] + 1
            self._of_key = of_key
        return None

    def finish(self, damaged: Collection[int]) -> list[str]:
        problems = [
            f"queue {queue.decode(errors='replace')} has jobs, and no next number" for queue in self._last
        ]
        place, count = self._twice
        if count and TypeTag.JOB_BY_KEY not in damaged:  # or else that says enough
            queue, _, key = place.rstrip(b"\0").decode(errors="replace").partition("\0")
            problems.append(
                f"{count} jobs have the key of another one that is neither done nor dead, the first in "
                f"queue {queue} with key {key}"
            )
        return problems


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    for rest, record in run.records(TypeTag.JOB):
        stored = run.record(TypeTag.JOB_STATE, rest)
        if stored is None:
            raise ValueError("a job has no state")
        state = job.unpack(payload_of(stored))
        body = payload_of(record)
        queue, number = job.split_rest(rest)
        yield {
            "queue": queue.decode(), "number": number, "state": STATES[state.state],
            "payload": encoded_to_json(job.value_in(body)), "priority": state.priority,
            "attempt": state.attempt, "max_attempts": state.max_attempts, "token": state.token,
            "time": state.time_us, "key": state.key.decode(), "worker": state.worker,
            "errors": state.errors, "enqueued_at": job.enqueued_in(body),
        }


def _parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    last: tuple[bytes, int] = (b"", -1)

    def parse(document: Document) -> list[Any]:
        nonlocal last
        fields.exactly(
            document, "kind", "queue", "number", "state", "payload", "priority", "attempt", "max_attempts",
            "token", "time", "key", "worker", "errors", "enqueued_at",
        )
        queue: bytes = fields.checked(lambda: encode_name(document["queue"], "queue", job.MAX_QUEUE_BYTES))
        number = fields.integer(document, "number", 0)
        if (queue, number) <= last:
            fields.fail(f"job {document['queue']:.80}/{number} does not come after the job before it")
        if number >= fields.of_run.get(_FOLLOWING, {}).get(queue, 0):
            fields.fail(f"job {document['queue']:.80}/{number} is not below the next number of its queue")
        last = queue, number
        if document["state"] not in STATES:
            fields.fail("there is no such state")
        priority = document["priority"]
        if type(priority) is not int or abs(priority) > job.MAX_PRIORITY:
            fields.fail(f"priority is not an integer of at most {job.MAX_PRIORITY}")
        attempt, most = (fields.integer(document, name, 0) for name in ("attempt", "max_attempts"))
        key = fields.text(document["key"], "key")
        if key:
            fields.checked(lambda: encode_name(key, "key", job.MAX_KEY_BYTES))
        errors = document["errors"]
        if type(errors) is not list or len(errors) > job.MAX_ERRORS:
            fields.fail(f"errors is no array of at most {job.MAX_ERRORS}")
        state = job.JobState(
            STATES.index(document["state"]), job.rank_of(priority), attempt, most,
            fields.integer(document, "token", 0), fields.integer(document, "time", 0), 0, key.encode(),
            fields.text(document["worker"], "worker"), [fields.text(each, "errors") for each in errors],
        )
        if (problem := job.problem_of(state)) is not None:
            fields.fail(f"job {document['queue']:.80}/{number}: {problem}")
        return [
            queue, number, fields.integer(document, "enqueued_at"),
            fields.encoded(document["payload"], "payload"), *state[:6], *state[7:],
        ]

    return parse


def _queue_documents(run: RecordsOfRun) -> Iterator[Document]:
    for rest, record in run.records(TypeTag.JOB_QUEUE):
        yield {"name": rest.decode(), "next": int.from_bytes(payload_of(record), "big")}


def _queue_parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    last = b""

    def parse(document: Document) -> list[Any]:
        nonlocal last
        fields.exactly(document, "kind", "name", "next")
        last = fields.name_after(last, document["name"])
        if len(last) > job.MAX_QUEUE_BYTES:
            fields.fail(f"name is longer than {job.MAX_QUEUE_BYTES} bytes")
        following = fields.integer(document, "next", 0)
        if following > job.MAX_NEXT:
            fields.fail(f"next is above {job.MAX_NEXT}")
        fields.of_run.setdefault(_FOLLOWING, {})[last] = following
        return [last, following]

    return parse


JOB: Final = RecordType(
    tag=TypeTag.JOB, name="job", counted="jobs", check=check_each(_check_body),
    lines=LineForm("job", "import.jobs", _documents, _parser, since=2),
)
JOB_STATE: Final = RecordType(
    tag=TypeTag.JOB_STATE, name="job", check=check_each(_check_state),
    index_tags=frozenset({
        TypeTag.JOB_READY, TypeTag.JOB_DUE, TypeTag.JOB_CLAIMED, TypeTag.JOB_DEAD, TypeTag.JOB_BY_KEY
    }),
    index_keys=job.index_keys, is_upkeep=True, goes_with=TypeTag.JOB,
    handed_out=frozenset({TypeTag.JOB_READY, TypeTag.JOB_DUE}),
)
QUEUE: Final = RecordType(
    tag=TypeTag.JOB_QUEUE, name="queue", counted="queues", check=check_each(_check_queue),
    check_run=_QueuesCheck,
    lines=LineForm("queue", "import.queues", _queue_documents, _queue_parser, since=2),
)
RECORD_TYPES: Final = (QUEUE, JOB, JOB_STATE)  # in an export a queue comes before its jobs
