"""Ready and dead jobs, listed page by page."""

from __future__ import annotations

from typing import Any

import pytest
from forms import new_run

import inmem


@pytest.fixture
def run(shared_db: inmem.Database) -> inmem.RunScope:
    """A run of its own."""
    return shared_db.run(new_run())


def in_pages(listed: Any, size: int) -> list[Any]:
    """What is listed, page by page."""
    pages = [listed(limit=size)]
    while pages[-1]:
        assert len(pages[-1]) <= size
        pages.append(listed(limit=size, start_after=pages[-1][-1]))
    return [job for page in pages for job in page]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_jobs_are_listed_in_pages(run: inmem.RunScope, size: int) -> None:
    priorities = [0, 5, -3, 5, 0, 2_147_483_647, -2_147_483_647, -3, 0, 0, 7]
    for name in ("q", "q2"):
        for number, priority in enumerate(priorities):
            run.queues.put(name, number, priority=priority)
    for number in range(9):
        run.queues.put("gone", number, priority=number % 2)
    for job in run.queues.claim_many("gone", 8):
        run.queues.nack(job, retry=False)
    in_order = sorted(range(len(priorities)), key=lambda number: (-priorities[number], number))
    with run.transaction() as txn, run.snapshot() as view:
        for queues in (run.queues, txn.queues, view.queues):
            found = in_pages(lambda queues=queues, **given: queues.peek("q", **given), size)
            assert [job.payload for job in found] == in_order
            dead = in_pages(lambda queues=queues, **given: queues.dead("gone", **given), size)
            assert [job.id.number for job in dead] == [each for each in range(9) if each != 8]
            assert [*map(str, queues.dead("gone", start_after=dead[6]))] == [*map(str, dead[7:])]
            assert queues.dead("q", start_after=found[0]) == []


def test_a_list_goes_on_after_a_job_that_is_done(run: inmem.RunScope) -> None:
    run.queues.put_many("q", [*range(5)])
    first = run.queues.peek("q", limit=2)
    for job in run.queues.claim_many("q", 3):
        run.queues.ack(job)
    assert [job.payload for job in run.queues.peek("q", limit=9, start_after=first[-1])] == [3, 4]
    assert run.queues.get(first[-1].id) is None
