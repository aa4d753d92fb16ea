"""The records of runs, as the server table describes them. An export has them in the first line of a run."""

from __future__ import annotations

from typing import Final

from inmem.keys import TypeTag
from inmem.primitives.record_type import RecordType, check_each, name_problem
from inmem.primitives.runs import rules as run


def _check(rest: bytes, payload: bytes) -> str | None:
    problem = name_problem(rest)
    if problem is None:
        run.unpack(rest.decode(), payload)
    return problem


RUN: Final = RecordType(
    tag=TypeTag.RUN, name="run", check=check_each(_check),
    index_tags=frozenset({TypeTag.RUN_BY_STATUS, TypeTag.RUN_BY_TAG, TypeTag.RUN_BY_PARENT}),
    index_keys=run.index_keys,
)
RECORD_TYPES: Final = (RUN,)
