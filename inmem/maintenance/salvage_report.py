"""The result of a salvage, and the list of losses that it grows from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from inmem.primitives import server
from inmem.storage.wal.format import LogRecord

_MAX_NAMED: Final = 1000  # runs of which something is lost: more than anybody reads


@dataclass(frozen=True, slots=True)
class Dropped:
    """Bytes `offset` to `end` of a file that are not in the new database, and what they are.

    `first_version` and `last_version` are of the records in them; 0 where
    none could be read. What was lost lies between the versions around it.
    """

    file: str
    offset: int
    end: int
    what: str
    records: int = 0
    first_version: int = 0
    last_version: int = 0


@dataclass(frozen=True, slots=True)
class SalvageReport:
    """What a salvage made, and all that it had to leave.

    The state is that of the old `version`; `published` is the last version
    that the old database is known to have shown, `durable` the last that it
    promised to keep. `lost_runs` names the runs of which something that could
    still be read was left out, with the kinds of records; of bytes that could
    not be read no run is known. `problems` are those of a check of the result.
    """

    path: str
    target: str
    source: str
    version: int
    durable: int
    published: int
    entries: int
    replayed: int
    seconds: float
    dropped: list[Dropped] = field(default_factory=list)
    lost_runs: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Losses:
    """Notes, and what is not in the result: bytes of files, and records of runs."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.dropped: list[Dropped] = []
        self._runs: dict[str, set[str]] = {}
        self._has_more = False

    def add_key(self, key: bytes) -> None:
        """A record that could be read is not in the result."""
        prefix, _, rest = key.partition(b"\0")
        run = prefix.decode(errors="replace")
        if run not in self._runs and len(self._runs) >= _MAX_NAMED:
            self._has_more = True
            return
        found = server.record_type_of(rest[0]) if rest else None
        self._runs.setdefault(run, set()).add("unknown" if found is None else found.name)

    def add_record(self, record: LogRecord, table: int) -> None:
        """A record of the log is not in the result; `table` is the one that holds keys of runs."""
        for op in record.ops:
            if op[1] == table:
                self.add_key(op[2])

    def runs(self) -> dict[str, list[str]]:
        """The runs that lost something, with the kinds of records; a note if there are more."""
        if self._has_more:
            self.notes.append(f"more runs than the {_MAX_NAMED} that are named have lost something")
            self._has_more = False
        return {run: sorted(kinds) for run, kinds in sorted(self._runs.items())}
