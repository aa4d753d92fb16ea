"""Holds the saver against the conformance package that is first on the path; prints JSON of what passed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator

from langgraph.checkpoint.conformance import checkpointer_test, validate

import inmem
import inmem.aio
from inmem.adapters.langgraph import InmemSaver


def passed(kind: str) -> dict[str, list[int]]:
    """How many tests of each capability passed, and how many there are."""
    place = os.environ["INMEM_UPSTREAM_PLACE"]
    numbers = itertools.count()

    @checkpointer_test(name=kind)
    async def make() -> AsyncIterator[InmemSaver]:
        agent = f"conformance-{kind}-{os.getpid()}-{next(numbers)}"
        if kind == "threads":
            with inmem.open(place, agent=agent) as db:
                yield InmemSaver(db)
        else:
            async with inmem.aio.open(place, agent=agent) as db:
                yield InmemSaver(db)

    results = asyncio.run(validate(make)).results
    return {
        name: [each.tests_passed, each.tests_passed + each.tests_failed] for name, each in results.items()
    }


if __name__ == "__main__":
    print(json.dumps({kind: passed(kind) for kind in ("threads", "loops")}))
