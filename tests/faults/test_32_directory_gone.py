"""The directory is removed, moved or made anew under open handles: they say so, and a fresh open works."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from support import alive, runtime_entries, wait_until, writer_pid

import inmem

NOTICED_S = 1.0  # the promise
SLACK_S = 15.0  # of a machine with other work: alone it is far below one

OPEN_ELSEWHERE = """
import sys, inmem
with inmem.open(sys.argv[1]) as db:
    db.kv.put("r", "k", "new")
    print("open", flush=True)
    sys.stdin.read()
"""


def removed(path: Path) -> None:
    shutil.rmtree(path)


def moved(path: Path) -> None:
    path.rename(path.with_name("moved"))


def emptied(path: Path) -> None:
    for each in path.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()


def parent_moved(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


FATES = [removed, moved, emptied, parent_moved]
CALLS: dict[str, Callable[[inmem.Database], object]] = {
    "get": lambda db: db.kv.get("r", "k"),
    "list": lambda db: db.kv.list("r"),
    "head": lambda db: db.events.head("r"),
    "snapshot": lambda db: db.snapshot("r").kv.get("k"),
    "put": lambda db: db.kv.put("r", "k", 2),
    "append": lambda db: db.events.append("r", "t"),
    "transact": lambda db: db.transact("r", lambda txn: txn.kv.put("k", txn.kv.get("k"))),
    "pipeline": lambda db: _pipelined(db),
    "status": lambda db: db.status(),
    "stream": lambda db: list(db.kv.iter("r")),
    "check": lambda db: db.check(),
    "backup": lambda db: db.backup(db.path.with_name(f"backup-{time.time_ns()}")),
}


def _pipelined(db: inmem.Database) -> None:
    with db.pipeline() as p:
        p.kv.put("r", "k", 2)


@pytest.fixture
def path(scratch: Path) -> Path:
    (scratch / "parent").mkdir()
    return scratch / "parent" / "data"


def seconds_to(call: Callable[[], object]) -> float:
    """How long until a call that is repeated says that the directory is gone; other errors fail."""
    now = time.monotonic()
    return seconds_to_each({"": call}, {"": now})[""]


def seconds_to_each(calls: dict[str, Callable[[], object]], since: dict[str, float]) -> dict[str, float]:
    """The same of calls on different stores, which are repeated in turn, each since its moment."""
    took: dict[str, float] = {}
    began = time.monotonic()
    while time.monotonic() - began < 30:
        for name in calls.keys() - took.keys():
            try:
                calls[name]()
            except inmem.DatabaseGoneError:
                took[name] = time.monotonic() - since[name]
            except inmem.CommitUnknownError as error:  # of the commit that was under way at that moment
                assert "removed" in str(error) or "made anew" in str(error)
        if len(took) == len(calls):
            return took
        time.sleep(0.005)
    raise AssertionError(f"it was not noticed by {calls.keys() - took.keys()}")


@pytest.mark.parametrize("fate", FATES)
def test_each_call_notices(scratch: Path, fate: Callable[[Path], None]) -> None:
    """By itself: each on a store of its own."""
    with ExitStack() as stack:
        stores: dict[str, inmem.Database] = {}
        for name in CALLS:
            (scratch / name / "parent").mkdir(parents=True)
            db = stores[name] = stack.enter_context(inmem.open(scratch / name / "parent" / "data"))
            db.kv.put("r", "k", 1)
            assert db.kv.get("r", "k") == 1
        since = {}
        for name, db in stores.items():
            fate(db.path)
            since[name] = time.monotonic()
        took = seconds_to_each({name: partial(CALLS[name], db) for name, db in stores.items()}, since)
        assert max(took.values()) < NOTICED_S + SLACK_S, took
        for db in stores.values():
            again = time.monotonic()
            for call in CALLS.values():  # from then on at once
                with pytest.raises(inmem.DatabaseGoneError) as error:
                    call(db)
                assert error.value.path == str(db.path) and error.value.hint
            assert time.monotonic() - again < NOTICED_S


@pytest.mark.parametrize("fate", FATES)
def test_a_fresh_open_works_meanwhile(path: Path, fate: Callable[[Path], None]) -> None:
    with inmem.open(path) as old:
        old.kv.put("r", "k", "old")
        assert old.kv.get("r", "k") == "old"
        fate(path)
        path.parent.mkdir(exist_ok=True)
        with inmem.open(path) as new:
            assert new.kv.get("r", "k") is None
            new.kv.put("r", "k", "new")
            seconds_to(lambda: old.kv.get("r", "k"))
            seconds_to(lambda: old.kv.put("r", "k", "lost"))
            assert new.kv.get("r", "k") == "new"
        with pytest.raises(inmem.DatabaseGoneError):
            old.kv.get("r", "k")
    for at in (path.with_name("moved"), path.parent.with_name("elsewhere") / "data"):
        if at.exists():
            with inmem.open(at, create=False) as found:
                assert found.kv.get("r", "k") == "old"


@pytest.mark.parametrize("to", ["moved", "elsewhere"])
def test_what_was_moved_can_be_opened_where_it_is(path: Path, to: str) -> None:
    """In the same process, while the old handle is open, and the old writer has not noticed."""
    with inmem.open(path) as old:
        old.kv.put("r", "k", 1)
        assert old.kv.get("r", "k") == 1
        at = path.with_name(to)
        path.rename(at)
        with inmem.open(at, create=False) as new:
            assert new.kv.get("r", "k") == 1
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and new.kv.get("r", "n", 0) < 50:
                new.kv.add("r", "n")
                time.sleep(0.05)  # over the time in which the old writer leaves and another one starts
            assert new.kv.get("r", "n") >= 50
            with pytest.raises(inmem.DatabaseGoneError):
                old.kv.get("r", "k")
            with pytest.raises(inmem.DatabaseGoneError):
                old.kv.put("r", "k", 2)
        path.symlink_to(at.name)  # a name that leads back to it is a link as the directory: refused
    with inmem.open(at) as db:
        assert db.kv.get("r", "n") >= 50 and db.check().problems == []


def test_moved_away_and_back(path: Path) -> None:
    with inmem.open(path) as db:
        db.kv.put("r", "k", 1)
        path.rename(path.with_name("moved"))
        seconds_to(lambda: db.kv.get("r", "k"))
        path.with_name("moved").rename(path)
        assert db.kv.add("r", "k") == 2, "it is there again"


@pytest.mark.parametrize("is_alive", [True, False], ids=["writer stopped", "writer dead"])
def test_made_anew_by_another_process(path: Path, is_alive: bool) -> None:
    with inmem.open(path, timeout_s=5) as db:
        db.kv.put("r", "k", "old")
        assert db.kv.get("r", "k") == "old"
        pid = writer_pid(path)
        in_memory = runtime_entries(path)
        os.kill(pid, signal.SIGSTOP if is_alive else signal.SIGKILL)
        try:
            shutil.rmtree(path)
            other = subprocess.Popen(
                [sys.executable, "-c", OPEN_ELSEWHERE, str(path)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                assert other.stdout is not None and other.stdout.readline() == b"open\n"
                took = seconds_to(lambda: db.kv.list("r"))  # without the writer's word
                assert took < NOTICED_S + SLACK_S
                if is_alive:
                    os.kill(pid, signal.SIGCONT)
                    wait_until(lambda: not alive(pid), "the old writer leaves", 10)
                seconds_to(lambda: db.kv.put("r", "k", "lost"))
                seconds_to(lambda: db.kv.get("r", "k"))
                with inmem.open(path) as new:
                    assert new.kv.get("r", "k") == "new"
            finally:
                other.communicate()
        finally:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
            for entry in in_memory if not is_alive else []:  # nobody is left who would remove it soon
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def test_how_long_it_takes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        calls: dict[str, Callable[[], object]] = {}
        since = {}
        for number in range(4):
            for name in ("get", "put"):
                db = stack.enter_context(inmem.open(path.with_name(f"{name}-{number}")))
                db.kv.put("r", "k", 1)
                db.kv.get("r", "k")
                calls[f"{name} {number}"] = partial(CALLS[name], db)
                time.sleep(0.13 * number)
                shutil.rmtree(db.path)
                since[f"{name} {number}"] = time.monotonic()
        took = seconds_to_each(calls, since)
    with capsys.disabled():
        print({name: round(seconds, 2) for name, seconds in sorted(took.items())})
    assert max(took.values()) < NOTICED_S + SLACK_S
