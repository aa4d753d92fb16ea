"""Entries of the KV store, as the server table describes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from inmem import values
from inmem.jsonvalues import encoded_to_json
from inmem.keys import TypeTag
from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import (
    Document,
    LineForm,
    RecordsOfRun,
    RecordType,
    check_each,
    name_problem,
)
from inmem.record import expires_at, payload_of, timestamp_of


def _check(rest: bytes, payload: bytes) -> str | None:
    problem = name_problem(rest)
    if problem is None:
        values.decode(payload)
    return problem


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    for key, record in run.records(TypeTag.KV):
        yield {
            "key": key.decode(), "value": encoded_to_json(payload_of(record)),
            "timestamp": timestamp_of(record), "expires_at": expires_at(record) or None,
        }


def _parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    last = b""

    def parse(document: Document) -> list[Any]:
        nonlocal last
        fields.exactly(document, "kind", "key", "value", "timestamp", "expires_at")
        expires = document["expires_at"]
        last = fields.name_after(last, document["key"])
        return [
            last, fields.encoded(document["value"], "value"),
            0 if expires is None else fields.integer(document, "expires_at"),
            fields.integer(document, "timestamp"),
        ]

    return parse


KV: Final = RecordType(
    tag=TypeTag.KV, name="kv", counted="kv", check=check_each(_check),
    lines=LineForm("kv", "import.entries", _documents, _parser, since=1),
)
RECORD_TYPES: Final = (KV,)
