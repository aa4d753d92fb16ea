"""What the writer does with notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit.arguments import check_name, check_prefix
from inmem.commit.footprint import Footprint
from inmem.commit.workspace import Workspace
from inmem.errors import InvalidInputError
from inmem.keys import range_of
from inmem.primitives.importing import importing_records

from . import rules


def put(workspace: Workspace, prefix: bytes, name: bytes, text: str, color: str) -> bool:
    """Write a note; whether there was none."""
    check_prefix(prefix)
    check_name(name, 100)
    if type(text) is not str or color not in rules.COLORS:
        raise InvalidInputError("there is no such note", argument="color")
    key = rules.note_key(prefix, name)
    workspace.check_open(key)
    old = workspace.get(key)
    if old is not None:
        for index_key in rules.index_keys(prefix, name, old):
            workspace.delete(index_key)
    payload = rules.pack(text, color)
    workspace.put(key, payload)
    for index_key in rules.index_keys(prefix, name, payload):
        workspace.put(index_key, b"")
    return old is None


def import_notes(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Notes: `[name, text, color]`."""
    with importing_records(workspace, prefix, token, "notes", items):
        for name, text, color in items:
            put(workspace, prefix, name, text, color)


def footprint(prefix: bytes, *_: Any) -> Footprint:
    """Of `put`: the run's notes and their index."""
    return Footprint.of(range_of(prefix, rules.NOTE), range_of(prefix, rules.NOTE_BY_COLOR))


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {"import.notes": import_notes, "notes.put": put}
FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {"notes.put": footprint}
