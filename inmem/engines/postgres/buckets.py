"""Which buckets a commit locks: those of all that it reads or writes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from inmem.commit.footprint import Range
from inmem.keys import TypeTag, bucket_of, successor
from inmem.primitives.server import FOOTPRINTS
from inmem.writeset import OP_CALL, WriteSet

OWNERS: Final = tuple(sorted({int(tag) & 0x0F for tag in TypeTag}))
_RUN: Final = int(TypeTag.RUN)
REGISTRY: Final = b"\0\xff"  # no type tag
_JOB: Final = int(TypeTag.JOB)


def owner_bucket(bucket: bytes) -> bytes:
    """The bucket that a primitive shares with its indices, of a prefix and any of its tags."""
    return bucket if bucket.endswith(REGISTRY) else bucket[:-1] + bytes([bucket[-1] & 0x0F])


def buckets_of_prefix(prefix: bytes) -> list[bytes]:
    """All of a run's."""
    return [b"%b\0%c" % (prefix, tag) for tag in OWNERS]


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
    if start.endswith(b"\0") and start.count(b"\0") == 1:
        return buckets_of_prefix(start[:-1])
    bucket = bucket_of(start)
    return [owner_bucket(bucket)] if end <= successor(bucket) else buckets_of_prefix(bucket[:-2])


def buckets_of_call(name: str, arguments: list[Any]) -> Iterable[bytes]:
    """Those of a procedure, by its arguments; what is no argument of it is refused later."""
    footprint = FOOTPRINTS.get(name)
    try:
        if footprint is not None:
            ranges: tuple[Range, ...] = sum(footprint(*arguments), ())
            return [bucket for each in ranges for bucket in buckets_of_range(*each)]
        prefix = arguments[0]
        if _names_run(name, arguments):
            run = b"%b/%b" % (prefix, arguments[1].encode())
            return [*buckets_of_prefix(run), b"%b\0%c" % (prefix, _RUN)]
        if name.startswith("queue."):
            return [b"%b\0%c" % (prefix, _JOB)]
        return [*buckets_of_prefix(prefix), b"%b\0%c" % (prefix.rpartition(b"/")[0], _RUN)]
    except (TypeError, ValueError, LookupError, AttributeError):
        return []


def _names_run(name: str, arguments: list[Any]) -> bool:
    """Whether a procedure is given a namespace and the id of a run in it."""
    return name.startswith(("run.", "import.")) and [*map(type, arguments[:2])] == [bytes, str]


def buckets_of_reads(request: WriteSet) -> set[bytes]:
    """Those that change when something changes that was read."""
    found = {owner_bucket(bucket_of(key)) for key in request.reads}
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
            found.add(owner_bucket(bucket_of(op[1])))
    return sorted(found)


def owners_of(request: WriteSet, buckets: list[bytes]) -> set[bytes]:
    """The runs and namespaces that a commit concerns, whose deletion it must know of."""
    found = {bucket[:-2] for bucket in buckets}
    for op in request.ops:
        if op[0] == OP_CALL and _names_run(op[1], op[2]):
            found.add(op[2][0] + b"/" + op[2][1].encode())
    return found
