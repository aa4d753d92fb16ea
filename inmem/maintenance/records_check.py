"""The check of records, wherever they are: each is one, and what a prefix has goes together."""

from __future__ import annotations

from inmem.keys import Key
from inmem.maintenance.findings import Findings
from inmem.maintenance.prefix_check import PrefixCheck, header_problem
from inmem.primitives import server


class RecordsCheck:
    """Takes records in key order; what one prefix has must be of one moment."""

    def __init__(self, findings: Findings) -> None:
        self._findings = findings
        self.known = {*server.RECORD_TYPES, *server.INDEX_TAGS}  # type tags
        self._place = PrefixCheck()
        findings.counts.update(dict.fromkeys(("records", "logs", "events"), 0))

    def take(self, key: bytes, record: bytes, version: int) -> bytes | None:
        """Look at one record, which is of this version at most; the prefix, of the first one of it."""
        self._findings.counts["records"] += 1
        try:
            prefix, tag, rest = Key(key).split_key()
        except (ValueError, IndexError):
            prefix, tag, rest = b"", -1, b""
        if tag not in self.known:
            self._findings.problem(f"{key!r} is no key")
            return None
        begun = None
        if prefix != self._place.prefix:
            self.finish()
            self._place = PrefixCheck(prefix)
            begun = prefix
        wrong = header_problem(record, version) or self._place.take(tag, rest, record)
        if wrong:
            self._findings.problem(f"{Key(key)!r}: {wrong}")
        return begun

    def finish(self) -> None:
        """What the last prefix has is whole."""
        place, self._place = self._place, PrefixCheck()
        if place.events:
            self._findings.counts["logs"] += 1
            self._findings.counts["events"] += place.events
        for wrong in place.finish():
            self._findings.problem(f"{place.prefix.decode(errors='replace')}: {wrong}")
