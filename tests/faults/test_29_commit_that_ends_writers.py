"""A commit that ends writers is found and refused: others go on, and so does the one that sent it."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import epoch, wait_until, writer_pid

import inmem
from inmem.client.direct import commit_call
from inmem.engines.local import attachment_of
from inmem.keys import Key, Namespace

TESTS = Path(__file__).parents[1]
KEY = bytes(Key.kv(Namespace(), "fatal", "k"))
DEADLINE_S = 60.0  # for tests beside load; what it takes is told
KILLS = int(os.environ.get("INMEM_TEST_KILLS", "6"))


@pytest.fixture
def deaths(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writers started from here on have the procedure `test.fatal`; the file lists those that ran it."""
    file = scratch / "deaths"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS / "plants"), str(TESTS.parent)]))
    monkeypatch.setenv("INMEM_TEST_FATAL", str(file))
    return file


class Bystander:
    """A thread that adds one to a counter, again and again."""

    def __init__(self, db: inmem.Database, run: str = "others") -> None:
        self.db = db
        self.run = run
        self.count = 0
        self.errors: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                self.count += 1
                assert self.db.kv.add(self.run, "n") == self.count
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
        assert self.errors == []


def fatal(db: inmem.Database, how: str) -> inmem.InmemError:
    with pytest.raises(inmem.InmemError) as caught:
        commit_call(attachment_of(db.engine), "test.fatal", [KEY, how], DEADLINE_S)
    return caught.value


@pytest.mark.parametrize(
    ("how", "writers"),
    [("raise", 1), ("recurse", 0), ("allocate", 0), ("kill", 3), ("crash", 3), ("grow", 3)],
)
@pytest.mark.parametrize("durability", ["memory", "buffered", "sync"])
def test_a_commit_that_ends_its_writer(
    store_path: Path, deaths: Path, how: str, writers: int, durability: str
) -> None:
    with inmem.open(store_path, durability=durability, timeout_s=DEADLINE_S) as db:
        db.kv.put("fatal", "before", 1)
        before = epoch(store_path)
        with Bystander(db) as others:
            wait_until(lambda: others.count > 20, "others work")
            began = time.monotonic()
            error = fatal(db, how)
            took = time.monotonic() - began
            assert isinstance(error, inmem.CommitRefusedError), error
            assert (error.code, error.retryable, error.writers) == ("commit_refused", False, writers)
            seen = others.count
            wait_until(lambda: others.count > seen + 20, "others go on")
        assert epoch(store_path) - before == writers, "writers that ended"
        assert len(set(deaths.read_text().split())) == max(1, writers)
        assert not db.kv.exists("fatal", "k"), "nothing of it is stored"
        db.kv.put("fatal", "after", 2)  # the same session goes on
        assert db.kv.get("others", "n") == others.count
        assert db.check().problems == []
    assert took < DEADLINE_S
    print(f"{how} in {durability}: {writers} writers ended, refused after {took:.2f} s")


def test_killed_in_the_middle_of_commits(store_path: Path, deaths: Path) -> None:
    """Kills from outside hit commits at any place: none is taken for the reason."""
    with inmem.open(store_path, timeout_s=DEADLINE_S) as db:
        with Bystander(db, "a"), Bystander(db, "b"), Bystander(db, "c") as last:
            for _ in range(KILLS):
                pid = wait_until(lambda: writer_pid(store_path), "a writer serves")
                seen = last.count
                wait_until(lambda seen=seen: last.count > seen + 5, "work goes on")
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: writer_pid(store_path) not in (0, pid), "another writer serves")
        assert db.check().problems == []
    assert not deaths.exists()
