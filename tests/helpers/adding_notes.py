"""A primitive that only the tests have, `notes`, and adding it to what is there.

`notes` is laid out as a folder of `inmem.primitives` is. It is added in two
ways: to a running process by `added`, and a writer or a helper that starts
with `ENVIRONMENT` adds it as it starts, see `tests/plants`; or to a copy of the
package by the lines that a release would add, `LINES`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from notes import procedures, records
from notes.rules import NOTE, NOTE_BY_COLOR

from inmem.keys import TypeTag
from inmem.primitives import server

HELPERS = Path(__file__).parent
TESTS = HELPERS.parent
PACKAGE = TESTS.parent / "inmem"
ENVIRONMENT: Final = {
    "INMEM_TEST_PRIMITIVE": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS / "plants"), str(HELPERS), str(TESTS.parent)]),
}
_TAGS: Final = {"NOTE": NOTE, "NOTE_BY_COLOR": NOTE_BY_COLOR}


def add() -> None:
    """The tags, and the line in the server table."""
    for name, number in _TAGS.items():  # as two more lines of `TypeTag` would
        tag = int.__new__(TypeTag, number)
        tag._name_, tag._value_ = name, number
        TypeTag._member_map_[name] = TypeTag._value2member_map_[number] = tag
        TypeTag._member_names_.append(name)
    server.add(records.RECORD_TYPES, procedures.PROCEDURES, procedures.FOOTPRINTS)


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
        for record_type in records.RECORD_TYPES:
            server.RECORD_TYPES.pop(record_type.tag, None)
            server.INDEX_TAGS.difference_update(record_type.index_tags)
        for name in procedures.PROCEDURES:
            del server.PROCEDURES[name]
        for name in procedures.FOOTPRINTS:
            del server.FOOTPRINTS[name]


# --- in a copy of the package -----------------------------------------------------------------------

# All that a release changes outside the new folder, but for exports, pages and screens: of each file, a
# line that is there, and what comes after it.
LINES: Final[dict[str, list[tuple[str, str]]]] = {
    "keys.py": [("    RUN = 0x05\n", "    NOTE = 0x0E\n    NOTE_BY_COLOR = 0x1E\n")],
    "primitives/server.py": [
        (
            "from inmem.primitives.kv import records as kv_records\n",
            "from inmem.primitives.notes import procedures as note_procedures\n"
            "from inmem.primitives.notes import records as note_records\n",
        ),
        (
            "add(run_records.RECORD_TYPES, run_procedures.PROCEDURES, run_procedures.FOOTPRINTS)\n",
            "add(note_records.RECORD_TYPES, note_procedures.PROCEDURES, note_procedures.FOOTPRINTS)\n",
        ),
    ],
    "primitives/facades.py": [
        (
            "from inmem.primitives.kv.facade import KVReads, KVStore, PipedKV, PipelineKV, RunKV, "
            "TransactionKV\n",
            "from inmem.primitives.notes.facade import (\n"
            "    NoteReads,\n    NoteStore,\n    PipedNotes,\n    PipelineNotes,\n    RunNotes,\n"
            "    TransactionNotes,\n)\n",
        ),
        ("        self.kv = KVStore(database)\n", "        self.notes = NoteStore(database)\n"),
        (
            "        self.kv = RunKV(view, sink, prefix, transact, waits)\n",
            "        self.notes = RunNotes(view, sink, prefix)\n",
        ),
        ("        self.kv = KVReads(view, prefix)\n", "        self.notes = NoteReads(view, prefix)\n"),
        (
            "        self.kv = TransactionKV(view, sink, prefix)\n",
            "        self.notes = TransactionNotes(view, sink, prefix)\n",
        ),
        ("        self.kv = PipelineKV(pipeline)\n", "        self.notes = PipelineNotes(pipeline)\n"),
        ("        self.kv = PipedKV(sink, prefix)\n", "        self.notes = PipedNotes(sink, prefix)\n"),
    ],
}
_SLOTS: Final = '    __slots__ = ('  # of the classes of facades.py that have them


def package_with_notes(directory: Path) -> Path:
    """A copy of the package that has the primitive, in a directory that goes on PYTHONPATH."""
    package = directory / "inmem"
    shutil.copytree(PACKAGE, package)
    shutil.copytree(HELPERS / "notes", package / "primitives" / "notes")
    for name, lines in LINES.items():
        text = (package / name).read_text("utf-8")
        for before, line in lines:
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, before + line)
        if name == "primitives/facades.py":
            text = text.replace(_SLOTS, f'{_SLOTS}"notes", ')
        (package / name).write_text(text, "utf-8")
    return directory
