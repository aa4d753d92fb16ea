"""The check of the records under one prefix: each decodes, and the indices are what the records say.

Indices are compared without keeping them in memory: equal sets of entries
have equal counts and equal sums of digests. So are the names of records that
come in twos.
"""

from __future__ import annotations

import xxhash

from inmem.keys import Key, TypeTag
from inmem.primitives import server
from inmem.primitives.record_type import RecordCheck
from inmem.record import payload_of, version_of


class PrefixCheck:
    """Takes the records of a run, or of a namespace, in key order."""

    def __init__(self, prefix: bytes = b"") -> None:
        self.prefix = prefix
        self.events = 0  # of its log
        self._checks: dict[int, RecordCheck] = {}
        self._expected: dict[int, list[int]] = {tag: [0, 0] for tag in server.INDEX_TAGS}  # count and sum
        self._stored: dict[int, list[int]] = {tag: [0, 0] for tag in server.INDEX_TAGS}
        self._twos = [
            (one.tag, one.goes_with) for one in server.RECORD_TYPES.values() if one.goes_with is not None
        ]
        self._of_run = [
            one.check_run() for one in server.RECORD_TYPES.values() if one.check_run is not None
        ]
        self._names: dict[int, list[int]] = {tag: [0, 0] for two in self._twos for tag in two}

    def take(self, tag: int, rest: bytes, record: bytes) -> str | None:
        """Look at one record; what is wrong with it."""
        payload = payload_of(record)
        if tag in server.INDEX_TAGS:
            _add(self._stored[tag], Key.of(self.prefix, tag, rest))
            return self._with_others(tag, rest, payload)
        if tag in self._names:
            _add(self._names[tag], rest)
        try:
            for entry in set(server.entries_of(self.prefix, tag, rest, payload)):
                _add(self._expected[Key(entry).split_key()[1]], entry)
            kind = server.RECORD_TYPES[tag]
            if tag not in self._checks:
                self._checks[tag] = kind.check()
            self.events += kind.is_log
            of_others = self._with_others(tag, rest, payload)
            return self._checks[tag](rest, payload) or of_others
        except Exception as error:  # whatever a decoder says of bytes that are not its own
            return f"does not decode: {type(error).__name__}: {error}"

    def _with_others(self, tag: int, rest: bytes, payload: bytes) -> str | None:
        problems = [each.take(tag, rest, payload) for each in self._of_run]
        return next(filter(None, problems), None)

    def finish(self) -> list[str]:
        """What is wrong with the indices, with what comes in twos, and with what must agree."""
        damaged = [tag for tag in sorted(server.INDEX_TAGS) if self._stored[tag] != self._expected[tag]]
        return [
            f"there are {self._names[one][0]} records {TypeTag(one).name} and "
            f"{self._names[other][0]} {TypeTag(other).name}, or of others"
            for one, other in self._twos
            if self._names[one] != self._names[other]
        ] + [
            f"the index {TypeTag(tag).name} has {self._stored[tag][0]} entries, "
            f"the records ask for {self._expected[tag][0]}, or for others"
            for tag in damaged
        ] + [problem for each in self._of_run for problem in each.finish(damaged)]


def _add(total: list[int], entry: bytes) -> None:
    total[0] += 1
    total[1] += xxhash.xxh3_64_intdigest(entry)


def header_problem(record: bytes, version: int) -> str | None:
    """What is wrong with the header of a record in a store that is at a version."""
    if len(record) < 16 or (record[0] & 0x80 and len(record) < 24):
        return "is too short for a record"
    if not 0 < version_of(record) <= version:
        return f"has commit version {version_of(record)}, the store is at {version}"
    return None
