"""Jobs and queues, as the server table describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from inmem import values
from inmem.jsonvalues import encoded_to_json
from inmem.keys import TypeTag, encode_name
from inmem.primitives.line_fields import LineFields
from inmem.primitives.queues import rules as job
from inmem.primitives.queues.job import STATES
from inmem.primitives.record_type import Document, LineForm, RecordsOfRun, RecordType, check_each
from inmem.record import payload_of


def _check_place(rest: bytes) -> str | None:
    queue, _ = job.split_rest(rest)
    queue.decode()
    return None if len(queue) <= job.MAX_QUEUE_BYTES else "is in no queue"


def _check_body(rest: bytes, payload: bytes) -> str | None:
    job.enqueued_in(payload)
    values.decode(job.value_in(payload))
    return _check_place(rest)


def _check_state(rest: bytes, payload: bytes) -> str | None:
    job.unpack(payload)
    return _check_place(rest)


def _check_queue(rest: bytes, payload: bytes) -> str | None:
    rest.decode()
    is_name = 0 < len(rest) <= job.MAX_QUEUE_BYTES and 0 not in rest
    return None if is_name and len(payload) == 8 else "is no queue"


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
        last = queue, number
        if document["state"] not in STATES:
            fields.fail("there is no such state")
        priority = document["priority"]
        if type(priority) is not int or abs(priority) > job.MAX_PRIORITY:
            fields.fail(f"priority is not an integer of at most {job.MAX_PRIORITY}")
        attempts = [fields.integer(document, name, 0) for name in ("attempt", "max_attempts")]
        if max(attempts) >= 1 << 16 or not attempts[1]:
            fields.fail("attempt and max_attempts are at most 65,535, and max_attempts is above 0")
        key = fields.text(document["key"], "key")
        if key:
            fields.checked(lambda: encode_name(key, "key", job.MAX_KEY_BYTES))
        errors = document["errors"]
        if type(errors) is not list or len(errors) > job.MAX_ERRORS:
            fields.fail(f"errors is no array of at most {job.MAX_ERRORS}")
        return [
            queue, number, fields.integer(document, "enqueued_at"),
            fields.encoded(document["payload"], "payload"), STATES.index(document["state"]),
            job.rank_of(priority), *attempts, fields.integer(document, "token", 0),
            fields.integer(document, "time", 0), key.encode(), fields.text(document["worker"], "worker"),
            [fields.text(each, "errors") for each in errors],
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
        return [last, fields.integer(document, "next", 0)]

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
    lines=LineForm("queue", "import.queues", _queue_documents, _queue_parser, since=2),
)
RECORD_TYPES: Final = (JOB, JOB_STATE, QUEUE)
