"""More jobs than one commit has room for, and more than one procedure looks at; on each engine."""

from __future__ import annotations

import pytest
from forms import new_run
from test_queues import counts

import inmem
from inmem import LimitError
from inmem.primitives.queues.facade import RunQueues


@pytest.fixture
def run(shared_db: inmem.Database) -> inmem.RunScope:
    """A run of its own."""
    return shared_db.run(new_run())


def test_an_interrupted_claim_gives_back_all_that_it_took(
    run: inmem.RunScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.queues.put_many("q", range(2500))
    monkeypatch.setattr(RunQueues, "_found", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.queues.claim_many("q", 2500, lease_s=1000)
    assert counts(run) == (2500, 0, 0, 0)
    assert [info.attempt for info in run.queues.peek("q", limit=2)] == [0, 0]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_too_many_jobs_for_one_commit(run: inmem.RunScope) -> None:
    with pytest.raises(LimitError, match=r"5000 jobs do not fit into one commit, 3\d\d\d of") as caught:
        run.queues.put_many("q", range(5000))
    assert caught.value.what == "jobs of one commit" and caught.value.size == 5000
    assert len(run.queues.put_many("q", range(caught.value.limit))) == caught.value.limit
    with pytest.raises(LimitError, match="jobs do not fit into one commit"):
        run.transact(lambda txn: [txn.queues.put("other", "x" * 1000, key=f"k-{n}") for n in range(4000)])
    assert run.queues.list() == ["q"]
