"""Which rows of `buckets` a commit locks: those of all that it reads or writes.

A bucket is what a run has of a primitive, with its indices. It has one row; that of
the KV entries has a row for each stripe, and a key's stripe is told by its hash: so
puts of several processes into one run need not wait for each other's. That of the
jobs has one row for the queues, and one for each stripe of jobs, told by the end of
their numbers: so whoever has or takes one need not wait for who does so with another.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Final

import xxhash

from inmem.commit.footprint import Footprint, Looks, Range
from inmem.errors import InmemError
from inmem.keys import TypeTag, successor
from inmem.primitives.server import FOOTPRINTS, LOOKS
from inmem.writeset import OP_CALL, WriteSet

OWNERS: Final = tuple(sorted({int(tag) & 0x0F for tag in TypeTag}))
STRIPES: Final = 16
_KV: Final = int(TypeTag.KV)
_RUN: Final = int(TypeTag.RUN)
REGISTRY: Final = b"\0\xff"  # no type tag
_JOB: Final = int(TypeTag.JOB)
_JOB_QUEUE: Final = int(TypeTag.JOB_QUEUE)
_hash: Final = xxhash.xxh3_64_intdigest


def row_of(key: bytes) -> bytes:
    """The row of the bucket that a key is in."""
    cut = key.index(0) + 2
    tag = key[cut - 1]
    if tag == _KV:
        return b"%b%c" % (key[:cut], _hash(key) % STRIPES)
    tag &= 0x0F
    if tag == _JOB and key[cut - 1] != _JOB_QUEUE:
        return b"%b%c%c" % (key[: cut - 1], _JOB, key[-1] % STRIPES)
    return b"%b%c" % (key[: cut - 1], tag)


def rows_of_bucket(bucket: bytes) -> list[bytes]:
    """All of a bucket, or of any other that a row of it is told for: a prefix, NUL and a tag."""
    cut = bucket.index(0) + 1
    tag = bucket[cut] & 0x0F
    if bucket.startswith(REGISTRY, cut - 1):
        return [bucket]
    if tag == _KV:
        return [b"%b%c%c" % (bucket[:cut], _KV, stripe) for stripe in range(STRIPES)]
    if tag == _JOB:
        jobs = [b"%b%c%c" % (bucket[:cut], _JOB, stripe) for stripe in range(STRIPES)]
        return [b"%b%c" % (bucket[:cut], _JOB), *jobs]
    return [b"%b%c" % (bucket[:cut], tag)]


def head_of_stripes(key: bytes) -> bytes:
    """What the rows of the stripes of a key's bucket start with; the number of the stripe follows."""
    cut = key.index(0) + 1
    return b"%b%c" % (key[:cut], key[cut] & 0x0F)


def buckets_of_prefix(prefix: bytes) -> list[bytes]:
    """All of a run's."""
    return [row for tag in OWNERS for row in rows_of_bucket(b"%b\0%c" % (prefix, tag))]


def quiet_bucket(prefix: bytes) -> bytes:
    """One of a run's that changes when the run is deleted, and hardly else."""
    return b"%b\0%c" % (prefix, _RUN)


def registry_of(start: bytes) -> bytes:
    """The row that changes whenever a run of a namespace gets its first bucket; of a range over its runs."""
    return start.partition(b"\0")[0].rpartition(b"/")[0] + REGISTRY


def is_of_one_prefix(start: bytes, end: bytes) -> bool:
    """Whether a range lies in one run, or in what a namespace has itself."""
    prefix, found, _ = start.partition(b"\0")
    return bool(found) and end <= successor(prefix + b"\0")


def buckets_of_range(start: bytes, end: bytes) -> list[bytes]:
    """Those that a range of one prefix lies in; the registry, for one over several runs."""
    if not is_of_one_prefix(start, end):
        return [registry_of(start)]
    cut = start.index(0) + 1
    if len(start) == cut:
        return buckets_of_prefix(start[:-1])
    if end == start + b"\0" and len(start) > cut + 1:
        return [row_of(start)]
    bucket = start[: cut + 1]
    return rows_of_bucket(bucket) if end <= successor(bucket) else buckets_of_prefix(start[: cut - 1])


_NO_ARGUMENTS: Final = (TypeError, ValueError, LookupError, AttributeError, OverflowError, InmemError)


@functools.lru_cache(maxsize=1024)
def _buckets_of_footprint(footprint: Footprint) -> frozenset[bytes]:
    ranges: set[Range] = {*footprint.looks_at, *footprint.changes}
    return frozenset(row for each in ranges for row in buckets_of_range(*each))


def buckets_of_call(name: str, arguments: list[Any]) -> Iterable[bytes]:
    """Those of a procedure, by its arguments; what is no argument of it is refused later."""
    footprint = FOOTPRINTS.get(name)
    try:
        looks = LOOKS[name](*arguments) if name in LOOKS else None
        if looks is not None and looks.is_of_place and looks.place is not None:
            return [row_of(looks.place)]
        if footprint is not None:
            return _buckets_of_footprint(footprint(*arguments))
        prefix = arguments[0]
        if _names_run(name, arguments):
            run = b"%b/%b" % (prefix, arguments[1].encode())
            return [*buckets_of_prefix(run), b"%b\0%c" % (prefix, _RUN)]
        if name.startswith("queue."):
            return rows_of_bucket(b"%b\0%c" % (prefix, _JOB))
        return [*buckets_of_prefix(prefix), b"%b\0%c" % (prefix.rpartition(b"/")[0], _RUN)]
    except _NO_ARGUMENTS:
        return []


def looks_of(name: str, arguments: list[Any]) -> Looks:
    """What a procedure most likely looks at."""
    try:
        if name in LOOKS:
            return LOOKS[name](*arguments)
        if name in FOOTPRINTS:
            looks_at = FOOTPRINTS[name](*arguments).looks_at
            return Looks(tuple(start for start, end in looks_at if end == start + b"\0"))
    except _NO_ARGUMENTS:
        pass  # it is refused later
    return Looks()


def _names_run(name: str, arguments: list[Any]) -> bool:
    """Whether a procedure is given a namespace and the id of a run in it."""
    return name.startswith(("run.", "import.")) and [*map(type, arguments[:2])] == [bytes, str]


def buckets_of_reads(request: WriteSet) -> set[bytes]:
    """Those that change when something changes that was read."""
    found = {row_of(key) for key in request.reads}
    for start, end, _ in request.ranges:
        found.update(buckets_of_range(start, end))
    return found


def buckets_of(request: WriteSet) -> list[bytes]:
    """All that a commit locks, in order."""
    found = buckets_of_reads(request)
    for op in request.ops:
        if op[0] == OP_CALL:
            found.update(buckets_of_call(op[1], op[2]))
        else:
            found.add(row_of(op[1]))
    return sorted(found)


def owner_of_row(row: bytes) -> bytes:
    """The run or namespace that a row is of."""
    return row.partition(b"\0")[0]


def owners_of(request: WriteSet, rows: list[bytes]) -> set[bytes]:
    """The runs and namespaces that a commit concerns, whose deletion it must know of."""
    found = {owner_of_row(row) for row in rows}
    for op in request.ops:
        if op[0] == OP_CALL and _names_run(op[1], op[2]):
            found.add(op[2][0] + b"/" + op[2][1].encode())
    return found
