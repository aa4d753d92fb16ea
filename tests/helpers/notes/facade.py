"""Notes of a run, in every form that a primitive has."""

from __future__ import annotations

from typing import Generic, TypeVar

from inmem.engines.base import Sink, View
from inmem.keys import encode_name, range_of
from inmem.pending import Pending
from inmem.primitives.byrun import ByRun, by_run
from inmem.record import payload_of

from . import rules

B = TypeVar("B")  # whether there was none, or what will say so


class NoteReads:
    """Reads of one run's notes."""

    __slots__ = ("_prefix", "_view")

    def __init__(self, view: View, prefix: bytes) -> None:
        self._view = view
        self._prefix = prefix

    def get(self, name: str) -> str | None:
        """The text of a note."""
        record = self._view.read(rules.note_key(self._prefix, encode_name(name)))
        return None if record is None else rules.unpack(payload_of(record))[0]

    def of_color(self, color: str) -> list[str]:
        """The names of the notes of a color."""
        head = color.encode() + b"\0"
        found = self._view.scan(*range_of(self._prefix, rules.NOTE_BY_COLOR, head))
        return [key.rpartition(b"\0")[2].decode() for key, _ in found]


class NoteWrites(Generic[B]):
    """Writes of one run's notes."""

    __slots__ = ()

    _prefix: bytes
    _sink: Sink

    def put(self, name: str, text: str, color: str = "red") -> B:
        """Write a note; whether there was none."""
        is_new: B = self._sink.call("notes.put", [self._prefix, encode_name(name), text, color], Pending)
        return is_new


class Notes(NoteReads, NoteWrites[B]):
    """One run's notes."""

    __slots__ = ("_sink",)

    def __init__(self, view: View, sink: Sink, prefix: bytes) -> None:
        super().__init__(view, prefix)
        self._sink = sink


class RunNotes(Notes[bool]):
    """One run's notes outside a transaction."""

    __slots__ = ()


class TransactionNotes(Notes[Pending[bool]]):
    """One run's notes inside a transaction."""

    __slots__ = ()


class PipedNotes(NoteWrites[Pending[bool]]):
    """One run's notes in a pipeline."""

    __slots__ = ("_prefix", "_sink")

    def __init__(self, sink: Sink, prefix: bytes) -> None:
        self._sink = sink
        self._prefix = prefix


class NoteStore(ByRun[RunNotes]):
    """Notes of every run."""

    __slots__ = ()

    KIND = "notes"

    get = by_run(RunNotes.get)
    of_color = by_run(RunNotes.of_color)
    put = by_run(RunNotes.put)


class PipelineNotes(ByRun[PipedNotes]):
    """Notes of a pipeline."""

    __slots__ = ()

    KIND = "notes"

    put = by_run(PipedNotes.put)
