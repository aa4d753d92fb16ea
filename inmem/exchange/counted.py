"""What an export and an import tell: how many runs, and how many records of each kind."""

from __future__ import annotations

from dataclasses import dataclass, field

from inmem.primitives import server


def no_records() -> dict[str, int]:
    """0 for each kind of records that an export can have."""
    return {name: 0 for name, _ in server.line_forms()}


@dataclass(slots=True)
class Counted:
    """A file, with the numbers of runs, of bytes, and of records by their kind."""

    file: str
    runs: int = 0
    bytes: int = 0
    counts: dict[str, int] = field(default_factory=no_records)

    @property
    def records(self) -> int:
        """All records."""
        return sum(self.counts.values())

    @property
    def kv(self) -> int:
        """Entries of KV stores."""
        return self.counts["kv"]

    @property
    def cells(self) -> int:
        """State cells."""
        return self.counts["cells"]

    @property
    def events(self) -> int:
        """Events."""
        return self.counts["events"]

    @property
    def traces(self) -> int:
        """Traces."""
        return self.counts["traces"]
