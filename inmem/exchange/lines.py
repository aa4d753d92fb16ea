"""The lines of an export that are about no single record: the first, those around a run, the last.

docs/EXPORT.md describes the schema for readers and writers in other
languages. The lines of records are described by the server table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import xxhash

from inmem.jsonvalues import dumps, to_json
from inmem.primitives import server
from inmem.primitives.events import rules as event_log
from inmem.primitives.runs import rules as run

SCHEMA: Final = "inmem-export"
FIRST_VERSION: Final = 1  # of a file that has only kinds of records which the first release had

CHAIN_NAMES: Final = {number: name for name, number in event_log.CHAIN_IDS.items()}
RECORD_FIELDS: Final = (
    "parent_run", "status", "created_at", "updated_at", "completed_at", "tags", "metadata", "error", "version"
)  # fmt: skip


def newest_version() -> int:
    """The newest version of the schema that is known here."""
    return max(form.since for _, form in server.line_forms())


class Checksum:
    """xxh3-128 over lines, as 32 hexadecimal digits."""

    def __init__(self, state: xxhash.xxh3_128 | None = None) -> None:
        self._state = xxhash.xxh3_128() if state is None else state
        self.update = self._state.update

    def copy(self) -> Checksum:
        """One that goes on by itself from here."""
        return Checksum(self._state.copy())

    def text(self) -> str:
        """Of what has come so far."""
        return self._state.hexdigest()


def header_line(version: int) -> bytes:
    """The first line. It says nothing of when and where: equal stores give equal files."""
    return dumps({"schema": SCHEMA, "version": version})


def run_line(run_id: str, record: run.RunMetadata | None, chain: int | None, cell_mark: int) -> bytes:
    """The first line of a run."""
    described = None
    if record is not None:
        described = {name: getattr(record, name) for name in RECORD_FIELDS}
        described |= {
            "status": record.status.value, "tags": list(record.tags), "metadata": to_json(record.metadata)
        }
    return dumps({
        "kind": "run", "run_id": run_id, "record": described,
        "chain": None if chain is None else CHAIN_NAMES[chain], "deleted_cell_version": cell_mark,
    })


def end_line(run_id: str, counts: Mapping[str, int], checksum: str) -> bytes:
    """The last line of a run; the checksum is of all its lines before this one."""
    return dumps({"kind": "end", "run_id": run_id, **shown_counts(counts), "checksum": checksum})


def shown_counts(counts: Mapping[str, int]) -> dict[str, int]:
    """What the last line of a run tells: all kinds of the first version, and others if there were any."""
    return {
        name: counts.get(name, 0)
        for name, form in server.line_forms()
        if form.since == FIRST_VERSION or counts.get(name, 0)
    }


def close_line(runs: int, checksum: str) -> bytes:
    """The last line; the checksum is of all lines before it."""
    return dumps({"kind": "close", "runs": runs, "checksum": checksum})
