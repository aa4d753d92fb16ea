"""Names that somebody else has written, and that are no UTF-8, are told as damage: on each engine."""

from __future__ import annotations

import os
import random
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from damaging import DamagedImage, DamagedTables
from homes import HOMES, LocalHome, PostgresHome
from support import kill_writer
from typer.testing import CliRunner

import inmem
from inmem.cli.app import app
from inmem.keys import TypeTag
from inmem.storage.environment import Table
from inmem.storage.wal.format import DELETE, PUT

RUN = "r"
KINDS = [*{*TypeTag} - {TypeTag.STATE_MARK, TypeTag.LEASE_WAITER}]  # what `fill` makes some of
TEXTS = (b"etype-01", b"holder-01", b"jobkey-02", b"tag-01", b"worker-01")  # in records
BURIED = (b"jobkey-02",)  # a claim that meets it ends the job

Damaged = DamagedImage | DamagedTables


def fill(place: Any) -> None:
    """Some of each kind of record."""
    with inmem.open(place) as db:
        db.runs.create_run(run_id="above")
        db.runs.create_run(run_id=RUN, tags=("tag-01",), metadata={"a": 1}, parent_run="above")
        run = db.run(RUN)
        run.kv.put("key-0", 1)
        run.kv.put("key-1", 2, ttl=1000.0)
        top = run.traces.record(inmem.Thought("top"), tags=["tag-01"])
        run.traces.record_child(top, inmem.Thought("below"))
        for n in range(3):
            run.events.append("etype-01", n)
            run.cells.set(f"cell-{n}", n)
            run.queues.put("queue-0", n, key=f"jobkey-0{n}", max_attempts=1)
        run.queues.put("queue-1", 1, delay_s=1000.0)
        dead = run.queues.claim("queue-0", lease_s=100.0, worker="worker-01")
        assert dead is not None
        run.queues.nack(dead)
        run.queues.claim("queue-0", lease_s=100.0, worker="worker-01")
        db.leases.acquire(RUN, "lease-0", ttl_s=1000.0, holder="holder-01")
        db.run("bare").kv.put("k", 1)
        db.transact("bare", lambda txn: txn.kv.put("l", 2))


def calls_of(db: inmem.Database) -> dict[str, Callable[[], Any]]:
    """Everything that reads, and what writes beside it."""
    run = db.run(RUN)

    def followed(things: Any) -> Any:
        return next(iter(things), None)

    def in_snapshot() -> Any:
        with run.snapshot() as view:
            return [view.kv.list(), view.cells.list(), view.traces.list(), view.leases.list(),
                    view.queues.list(), view.events.iter(), view.runs.list_runs()]

    def held() -> None:
        with run.leases.hold("lease-0", ttl_s=1.0):
            pass

    return {
        "kv": lambda: [run.kv.list(), run.kv.list_with_values(), [*run.kv.iter()], run.kv.count()],
        "kv list": lambda: run.kv.list_with_values(), "kv iter": lambda: [*run.kv.iter()],
        "kv watch": lambda: followed(run.kv.watch("key", timeout_s=0.01)),
        "events": lambda: run.events.read_range(0), "head": lambda: run.events.head(),
        "event iter": lambda: [*run.events.iter()], "types": lambda: run.events.query_by_type("etype-01"),
        "chain": lambda: run.events.verify_chain(),
        "follow": lambda: followed(run.events.follow(timeout_s=0.01)),
        "cells": lambda: run.cells.list(), "cell iter": lambda: [*run.cells.iter()],
        "traces": lambda: run.traces.list(), "trace iter": lambda: [*run.traces.iter()],
        "trace type": lambda: run.traces.query_by_type("Thought"),
        "trace tag": lambda: run.traces.query_by_tag("tag-01"), "roots": lambda: run.traces.roots(),
        "children": lambda: [run.traces.get_children(each.id) for each in run.traces.list()],
        "trees": lambda: [run.traces.get_tree(each.id) for each in run.traces.list()],
        "trace follow": lambda: followed(run.traces.follow(timeout_s=0.01)),
        "queues": lambda: run.queues.list(), "peek": lambda: run.queues.peek("queue-0", limit=9),
        "dead": lambda: run.queues.dead("queue-0"), "counts": lambda: run.queues.counts("queue-0"),
        "job": lambda: [run.queues.get(each.id) for each in run.queues.dead("queue-0")],
        "leases": lambda: run.leases.list(), "lease": lambda: run.leases.get("lease-0"),
        "runs": lambda: db.runs.list_runs(include_uncreated=True), "query": lambda: db.runs.query_runs(),
        "tagged": lambda: db.runs.query_runs(tags=["tag-01"]),
        "iter runs": lambda: [*db.runs.iter_runs()],
        "child runs": lambda: db.runs.get_child_runs("above"), "run": lambda: db.runs.get_run(RUN),
        "stats": lambda: db.runs.get_stats(), "snapshot": in_snapshot,
        "transaction": lambda: run.transact(lambda txn: [txn.kv.list(), txn.cells.list(), txn.traces.list()]),
        "append": lambda: run.events.append("etype-01", 1), "set": lambda: run.cells.set("cell-0", 5),
        "claim": lambda: run.queues.claim_many("queue-0", 9, lease_s=0.01), "held": held,
        "put job": lambda: run.queues.put("queue-0", 1, key="jobkey-01"),
        "acquire": lambda: run.leases.acquire("lease-0", ttl_s=1.0), "tags": lambda: run.runs.add_tags(["t"]),
        "record": lambda: run.traces.record(inmem.Thought("new"), tags=["tag-01"]),
        "repair": lambda: db.repair_indices(), "check": lambda: db.check(),
        "other": lambda: db.run("bare").kv.list(),
    }  # fmt: skip


COMMANDS = [
    ("runs",), ("runs", "--json"), ("run", RUN), ("run", RUN, "--json"), ("events", RUN),
    ("events", RUN, "--json"), ("cells", RUN), ("traces", RUN), ("traces", RUN, "--json"), ("leases", RUN),
    ("kv", "ls", RUN), ("queue", "ls", RUN), ("verify", RUN), ("check",), ("export", "-o", "-"),
]  # fmt: skip


def told_of(db: inmem.Database) -> dict[str, str]:
    """What each call gave that was no result: the class of an error; of one that is not ours, from where."""
    told = {}
    for name, call in calls_of(db).items():
        try:
            call()
        except inmem.InmemError as error:
            told[name] = type(error).__name__
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-2:]
            told[name] = f"{type(error).__name__} at {where}"
    return told


def told_by_commands(place: Any) -> dict[str, str]:
    """The same of commands, which end with a message."""
    told = {}
    for words in COMMANDS:
        result = CliRunner().invoke(app, [*words, "-d", str(place)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            told[" ".join(words)] = repr(result.exception)
    return told


def damages(keys: list[bytes]) -> Iterator[tuple[str, bytes, bytes]]:
    """What was done, and the key as it was and as somebody else has it."""
    for tag in KINDS:
        mark = b"\0%c" % tag
        found = next((key for key in keys if mark in key), None)
        if found is None:
            continue
        cut = found.index(mark) + 2
        if len(found) > cut:
            yield f"{tag.name}, first byte", found, found[:cut] + b"\xff" + found[cut + 1 :]
            yield f"{tag.name}, last byte", found, found[:-1] + b"\xff"
        yield f"{tag.name}, longer", found, found + b"\xff"


@pytest.fixture(params=HOMES, ids=lambda home: str(home.name))
def damaged(request: pytest.FixtureRequest) -> Iterator[Damaged]:
    if request.param is LocalHome:
        yield DamagedImage(request.getfixturevalue("store_path"), fill)
        return
    psycopg: Any = pytest.importorskip("psycopg")
    home = PostgresHome(request.getfixturevalue("postgres_server"))
    options = f"-c search_path={home.schema}"
    with psycopg.connect(home.conninfo, autocommit=True, options=options) as connection:
        yield DamagedTables(home.url, connection, fill)
    home.close()


ALLOWED = {
    "CorruptionError", "DamagedValueError", "CellNotFoundError", "RunNotFoundError", "TraceNotFoundError",
    "JobLostError", "LeaseLostError", "LeaseHeldError", "InvariantError", "AlreadyExistsError",
}


def end(damaged: Damaged) -> None:
    if isinstance(damaged, DamagedImage):
        kill_writer(damaged.path)


def restore(damaged: Damaged, stored: dict[bytes, bytes]) -> None:
    """As it was before the calls, some of which have written."""
    gone = [(DELETE, Table.DATA, key) for key in damaged.all_keys() if key not in stored]
    damaged.change(*gone, *((PUT, Table.DATA, key, record) for key, record in stored.items()))


@pytest.mark.timeout(1800 if os.environ.get("INMEM_EXHAUSTIVE") else 120)
def test_of_keys(damaged: Damaged, rng: random.Random) -> None:
    stored = {key: damaged.stored(key) for key in damaged.all_keys()}
    every = [*damages([*stored])]
    assert {what.partition(",")[0] for what, _, _ in every} == {tag.name for tag in KINDS}
    some = every if os.environ.get("INMEM_EXHAUSTIVE") else rng.sample(every, 5)
    count: dict[str, int] = {}
    wrong = []
    calls = 0
    for what, key, other in some:
        for is_added in (True, False):  # beside the right one, or in its place
            gone = [] if is_added else [(DELETE, Table.DATA, key)]
            damaged.change(*gone, (PUT, Table.DATA, other, stored[key]))
            with inmem.open(damaged.place) as db:
                told, calls = told_of(db), len(calls_of(db))
            if not is_added:
                wrong += [(what, *each) for each in told_by_commands(damaged.place).items()]
            end(damaged)
            restore(damaged, stored)
            wrong += [(what, name, error) for name, error in told.items() if error not in ALLOWED]
            for error in told.values():
                count[error] = count.get(error, 0) + 1
    print(f"{len(some)} keys, {calls} calls, {len(COMMANDS)} commands: {count}")
    assert not wrong, "\n".join(map(str, wrong))
    assert count.get("DamagedValueError", 0) > 0


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: text.decode())
def test_of_texts_in_records(damaged: Damaged, text: bytes) -> None:
    changed = 0
    for key in damaged.all_keys():
        record = damaged.stored(key)
        if text in record:
            changed += 1
            damaged.change((PUT, Table.DATA, key, record.replace(text, b"\xff" * len(text))))
    assert changed
    with inmem.open(damaged.place) as db:
        told = told_of(db)
        dead = [job.id.number for job in db.run(RUN).queues.dead("queue-0")] if text in BURIED else []
    commands = told_by_commands(damaged.place)
    end(damaged)
    print(f"{changed} records: {told}")
    assert set(told.values()) <= ALLOWED and not commands, f"{told}, {commands}"
    if text in BURIED:  # a claim has found it out
        assert dead == [0, 2]
    else:
        assert "DamagedValueError" in told.values() or "CorruptionError" in told.values()
