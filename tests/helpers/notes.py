"""A primitive that only the tests have: notes, each a text of one color under a name, found by color.

It is what a release would add: two type tags, one line in the server table,
and its procedures. `added` adds it to this process. A writer or a helper that
starts with `ENVIRONMENT` adds it as it starts, see `tests/plants`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgpack

from inmem.commit.arguments import check_name, check_prefix
from inmem.commit.workspace import Workspace
from inmem.errors import InvalidInputError
from inmem.keys import TypeTag
from inmem.primitives import server
from inmem.primitives import server as procedures
from inmem.primitives.importing import importing_records
from inmem.primitives.line_fields import LineFields
from inmem.primitives.record_type import Document, LineForm, RecordsOfRun, RecordType, check_each
from inmem.record import payload_of

TESTS = Path(__file__).parents[1]
NOTE: Final = 0x0E
NOTE_BY_COLOR: Final = 0x1E
COLORS: Final = ("blue", "red")
ENVIRONMENT: Final = {
    "INMEM_TEST_PRIMITIVE": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS / "plants"), str(TESTS / "helpers"), str(TESTS.parent)]),
}


def note_key(prefix: bytes, name: bytes) -> bytes:
    """Where a note is."""
    return b"%b\0%c%b" % (prefix, NOTE, name)


def index_keys(prefix: bytes, name: bytes, payload: bytes) -> list[bytes]:
    """The index key of a note: by its color."""
    _, color = msgpack.unpackb(payload)
    return [b"%b\0%c%b\0%b" % (prefix, NOTE_BY_COLOR, color.encode(), name)]


def _check(name: bytes, payload: bytes) -> str | None:
    text, color = msgpack.unpackb(payload)
    return None if name and type(text) is str and color in COLORS else "is no note"


# --- procedures -------------------------------------------------------------------------------------


def put(workspace: Workspace, prefix: bytes, name: bytes, text: str, color: str) -> bool:
    """Write a note; whether there was none."""
    check_prefix(prefix)
    check_name(name, 100)
    if type(text) is not str or color not in COLORS:
        raise InvalidInputError("there is no such note", argument="color")
    key = note_key(prefix, name)
    workspace.check_open(key)
    old = workspace.get(key)
    if old is not None:
        for index_key in index_keys(prefix, name, old):
            workspace.delete(index_key)
    payload = msgpack.packb([text, color])
    workspace.put(key, payload)
    for index_key in index_keys(prefix, name, payload):
        workspace.put(index_key, b"")
    return old is None


def import_notes(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Notes: `[name, text, color]`."""
    with importing_records(workspace, prefix, token, "notes", items):
        for name, text, color in items:
            put(workspace, prefix, name, text, color)


# --- lines of an export -----------------------------------------------------------------------------


def _documents(run: RecordsOfRun) -> Iterator[Document]:
    for name, record in run.records(NOTE):
        text, color = msgpack.unpackb(payload_of(record))
        yield {"name": name.decode(), "text": text, "color": color}


def _parser(fields: LineFields, _chain: int) -> Callable[[Document], list[Any]]:
    last = b""

    def parse(document: Document) -> list[Any]:
        nonlocal last
        fields.exactly(document, "kind", "name", "text", "color")
        last = fields.name_after(last, document["name"])
        if document["color"] not in COLORS:
            fields.fail("there is no such color")
        return [last, fields.text(document["text"], "text"), document["color"]]

    return parse


NOTES: Final = RecordType(
    tag=NOTE, name="note", counted="notes", check=check_each(_check),
    index_tags=frozenset({NOTE_BY_COLOR}), index_keys=index_keys,
    lines=LineForm("note", "import.notes", _documents, _parser, since=2),
)

# --- adding it --------------------------------------------------------------------------------------

_TAGS: Final = {"NOTE": NOTE, "NOTE_BY_COLOR": NOTE_BY_COLOR}
_PROCEDURES: Final[dict[str, Callable[..., Any]]] = {"notes.put": put, "import.notes": import_notes}


def add() -> None:
    """The tags, the line in the server table, and the procedures."""
    for name, number in _TAGS.items():  # as two more lines of `TypeTag` would
        tag = int.__new__(TypeTag, number)
        tag._name_, tag._value_ = name, number
        TypeTag._member_map_[name] = TypeTag._value2member_map_[number] = tag
        TypeTag._member_names_.append(name)
    server.add(NOTES)
    assert isinstance(procedures.PROCEDURES, dict)
    procedures.PROCEDURES.update(_PROCEDURES)


@contextmanager
def added() -> Iterator[None]:
    """This process has the primitive inside the block."""
    add()
    try:
        yield
    finally:
        for name, number in _TAGS.items():
            del TypeTag._member_map_[name], TypeTag._value2member_map_[number]
            TypeTag._member_names_.remove(name)
        del server.RECORD_TYPES[NOTE]
        server.INDEX_TAGS.difference_update(NOTES.index_tags)
        assert isinstance(procedures.PROCEDURES, dict)
        for name in _PROCEDURES:
            del procedures.PROCEDURES[name]
