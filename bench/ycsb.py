"""The mixes of YCSB, A to F. `python -m bench.ycsb`

Eight processes, records of ten fields of 100 bytes, keys chosen by a zipfian
distribution (in D: the newest first). The mixes are YCSB's; with --workloads
they are read from its files. D and E insert, so their stores grow; all stores
are measured in the same rounds. What each mix asks: reads give whole records,
updates write one field, a read-modify-write reads a record and writes one
field. All do the latter as YCSB's own bindings do, as two operations, where
the store can write one field (in inmem: `kv.merge`). "inmem, transactions" asks
more: reading a record and writing a field are one serializable transaction.
"inmem, a key a field" is another way to store a record: dearer to read. All
are measured quiet and beside the largest number of busy processes, unless in
haste.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import string
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.harness import Bench, Options, bench, main
from bench.measuring import BenchError, Work
from bench.peers import Client, Record

SUBJECTS = (
    "inmem", "inmem before", "inmem, a key a field", "inmem, transactions", "redis", "sqlite", "stratadb",
    "diskcache", "manager",
)
PROCESSES = 8
RECORDS, QUICK_RECORDS = 10_000, 1_000
FIELDS, FIELD_BYTES = 10, 100
_ZIPFIAN = 0.99  # YCSB's constant
_ITEMS = 20_000
_CHUNK = 100

READ, UPDATE, INSERT, SCAN, MODIFY = "read", "update", "insert", "scan", "readmodifywrite"
Mix = Mapping[str, Any]  # proportions by operation, `distribution`, `longest`: of a scan
MIXES: dict[str, Mix] = {
    "A": {READ: 0.5, UPDATE: 0.5, "distribution": "zipfian", "longest": 0},
    "B": {READ: 0.95, UPDATE: 0.05, "distribution": "zipfian", "longest": 0},
    "C": {READ: 1.0, "distribution": "zipfian", "longest": 0},
    "D": {READ: 0.95, INSERT: 0.05, "distribution": "latest", "longest": 0},
    "E": {SCAN: 0.95, INSERT: 0.05, "distribution": "zipfian", "longest": 100},
    "F": {READ: 0.5, MODIFY: 0.5, "distribution": "zipfian", "longest": 0},
}


def mixes(place: Path | None) -> dict[str, Mix]:
    """The mixes of a directory of workload files, or the same ones from here."""
    if place is None:
        return MIXES
    found: dict[str, Mix] = {}
    for letter in MIXES:
        lines = (place / f"workload{letter.lower()}").read_text(encoding="utf-8").splitlines()
        pairs = (line.partition("=") for line in lines if not line.startswith("#") and "=" in line)
        settings = {name.strip(): value.strip() for name, _, value in pairs}
        mix: dict[str, Any] = {
            operation: share for operation in (READ, UPDATE, INSERT, SCAN, MODIFY)
            if (share := float(settings.get(f"{operation}proportion", "0")))
        }  # fmt: skip
        mix["distribution"] = settings["requestdistribution"]
        mix["longest"] = int(settings.get("maxscanlength", "0"))
        found[letter] = mix
    return found


def key(number: int) -> str:
    """A record's key: in no order of insertion, as YCSB hashes its numbers."""
    return f"user{number * 0x9E3779B97F4A7C15 % 2**64:020}"


def record(number: int) -> Record:
    """A record that tells its number."""
    return {f"field{n}": f"{number}-{n}".ljust(FIELD_BYTES, string.ascii_letters[n]) for n in range(FIELDS)}


def load(client: Client, count: int) -> None:
    """Write the records that all mixes begin with."""
    for start in range(0, count, _CHUNK):
        client.insert_many({key(n): record(n) for n in range(start, min(count, start + _CHUNK))})


def ranks(count: int, chosen: random.Random) -> list[int]:
    """Ranks below `count`, the lowest ones most often."""
    weights = itertools.accumulate(1 / (rank + 1) ** _ZIPFIAN for rank in range(count))
    return chosen.choices(range(count), cum_weights=list(weights), k=_ITEMS)


@functools.cache  # a process has the same part in every round, and with every store
def _part(index: int, shares: tuple[tuple[str, float], ...], count: int) -> list[tuple[str, int, int]]:
    """What one process does: operations, ranks of records, and a number below that of fields."""
    chosen = random.Random(f"ycsb {index}")
    what = chosen.choices([name for name, _ in shares], [share for _, share in shares], k=_ITEMS)
    return list(zip(what, ranks(count, chosen), chosen.choices(range(FIELDS), k=_ITEMS), strict=True))


@functools.cache
def _popular(count: int) -> list[str]:
    """Keys by rank: the same records are popular in every process."""
    numbers = list(range(count))
    random.Random("ycsb").shuffle(numbers)
    return [key(number) for number in numbers]


def work(client: Client, index: int, mix: Mix, count: int) -> Work:
    """One process's part of a mix."""
    latest = mix["distribution"] == "latest"
    operations = (READ, UPDATE, INSERT, SCAN, MODIFY)
    items = _part(index, tuple((name, mix[name]) for name in operations if name in mix), count)
    keys = _popular(count)
    # Records of one's own: a number range that no other process, and no other round, uses.
    fresh = itertools.count((time.time_ns() // 1000 * 1000 + os.getpid() % 1000) << 10)
    inserted: list[str] = []
    written: dict[tuple[str, str], str] = {}
    changes = itertools.count()

    def pick(rank: int) -> str:
        if not latest:
            return keys[rank]
        older = rank - len(inserted)
        return inserted[-1 - rank] if older < 0 else key(count - 1 - older % count)

    def change(name: str, number: int) -> tuple[str, str, str]:
        field = f"field{number}"
        new = f"{index}-{next(changes)}".ljust(FIELD_BYTES, "u")
        written[name, field] = new
        return name, field, new

    def operation(item: tuple[str, int, int]) -> Any:
        kind, rank, number = item
        if kind == READ:
            return client.read(pick(rank))
        if kind == UPDATE:
            return client.update(*change(pick(rank), number))
        if kind == MODIFY:
            return client.modify(*change(pick(rank), number))
        if kind == SCAN:
            return client.scan(pick(rank), 1 + number * mix["longest"] // FIELDS)
        new = next(fresh)
        client.insert(key(new), record(new))
        inserted.append(key(new))
        return None

    def verify(item: tuple[str, int, int], result: Any) -> bool:
        if item[0] == READ:
            return result is not None and len(result) == FIELDS and len(result["field0"]) == FIELD_BYTES
        if item[0] == SCAN:
            return len(result) >= 1 and all(len(found) == FIELDS for found in result)
        return True

    def check(_: int) -> None:
        for name in inserted[-100:]:
            found = client.read(name)
            if found is None or len(found) != FIELDS:
                raise BenchError(f"{name} was inserted, and is {found!r:.100}")
        # Another process may have written the same field since: then it is one of its values.
        for name, field in itertools.islice(reversed(written), 100):
            found = client.read(name)
            if found is None or not found[field].endswith("u"):
                raise BenchError(f"{field} of {name} was written, and is not there: {found!r:.100}")

    return Work(operation, items, verify, check)


def _load(b: Bench, count: int) -> None:
    for name in [*b.subjects]:
        b.prepare(name, load, count)


def run(options: Options) -> dict[str, Any]:
    """All mixes, all stores."""
    count = options.records or options.size(RECORDS, QUICK_RECORDS)
    with bench("ycsb", "the mixes of YCSB, eight processes", options, SUBJECTS) as b:
        _load(b, count)
        b.note(f"{count:,} records of {FIELDS} fields of {FIELD_BYTES} bytes, {PROCESSES} processes")
        for letter, mix in mixes(options.workloads).items():
            b.cases(
                f"ycsb {letter}", work, mix, count, processes=PROCESSES, sample=True,
                situations=(0,) if options.quick else (0, *options.beside[-1:]),
            )
        b.rounds()
        return b.document()


if __name__ == "__main__":
    sys.exit(main("ycsb", __doc__, run))
