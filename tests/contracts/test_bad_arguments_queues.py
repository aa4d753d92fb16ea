"""Every bad argument of queues: a typed error that names it, and nothing stored."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from bad_arguments import BAD_RUNS, BAD_VALUES, HUGE, NO_STR, Opaque, refused, shown
from forms import new_run
from hypothesis import given, settings
from hypothesis import strategies as st

import inmem
from inmem.config import MAX_TRANSACTION_OPS, MAX_TTL_S

Method = tuple[str, dict[str, Any], dict[str, list[Any]]]

JOB = object()  # stands for a claimed job


class MadeFrom(dict[str, Any]):
    """Stands for a claimed job of which some fields were changed by hand."""


BAD_QUEUES = [*NO_STR, "", "\0", "a\0b", "\ud800", "q" * 101, "\u00e9" * 51, "q" * 10**6]
BAD_KEYS = [
    *[each for each in NO_STR if each is not None], "", "\0", "a\0b", "\ud800", "k" * 201, "k" * 10**6,
]
BAD_JOB_IDS = [
    *NO_STR, "", "q", "q/", "/0", "q/-1", "q/1.0", "q/x", "q/\u0661", "q/ 1", "q/" + "9" * 19,
    "q/1" + "0" * 19, "q/" + "1" * 10**5, "\0/1", "\ud800/1", "q" * 101 + "/1", "q/1\n",
]
NO_NUMBERS = [None, -1, 1 << 63, 1 << 64, 1.0, True, "1", Opaque()]
BAD_JOBS = [
    None, 7, "q/0", b"q/0", [], {}, HUGE, Opaque(), inmem.JobLostError, {"id": "q/0"},
    *(MadeFrom(id=value) for value in BAD_JOB_IDS), MadeFrom(id="another/0"),
    *(MadeFrom(id=inmem.JobId(value)) for value in BAD_JOB_IDS if isinstance(value, str)),
    *(MadeFrom(queue=value) for value in BAD_QUEUES), *(MadeFrom(token=value) for value in NO_NUMBERS),
    *(MadeFrom(mark=value) for value in NO_NUMBERS),
    *(MadeFrom(prefix=value) for value in (None, "x", b"\xff")),
]
INFO = inmem.JobInfo(inmem.JobId("q/0"), "q", "ready", 1, None, 0, 0, 1, None, 0, "", 0, ())
BAD_PLACES = [
    7, "q/0", b"q/0", [], {}, HUGE, Opaque(), inmem.JobInfo,
    *(dataclasses.replace(INFO, id=value) for value in (*BAD_JOB_IDS, "another/0")),
]
BAD_DELAYS = [
    -1, -0.5, math.nan, math.inf, -math.inf, True, HUGE, -HUGE, MAX_TTL_S + 1, "1", b"1", [], {},
    timedelta(seconds=-1), timedelta.max, 1j, Opaque(),
]
BAD_LEASES = [None, 0, 0.0, timedelta(0), *BAD_DELAYS]
BAD_PRIORITIES = [None, 1 << 31, -(1 << 31), HUGE, -HUGE, 1.0, True, "1", b"1", [], math.nan, Opaque()]
BAD_ATTEMPTS = [0, -1, 1 << 16, HUGE, -HUGE, 1.0, True, "1", b"1", [], Opaque()]
BAD_LIMITS = [-1, -HUGE, 1.0, True, False, "1", b"1", [], math.nan, Opaque()]
BAD_COUNTS = [None, 0, MAX_TRANSACTION_OPS + 1, HUGE, *BAD_LIMITS]
BAD_STATES = ["", "Ready", "gone", 0, 7, True, b"ready", [], {}, HUGE, Opaque()]
BAD_ERRORS = [7, HUGE, True, b"bytes", [], {}, Opaque()]
BAD_FLAGS = [None, 0, 1, "yes", b"", [], HUGE, Opaque()]
BAD_EVENTS = [7, HUGE, True, "stop", b"", [], {}, Opaque()]
BAD_PAYLOADS = [None, 7, "text", b"bytes", [{1}], [1, HUGE], [Opaque()], Opaque(), True]

OPTIONS = {"delay_s": [None, *BAD_DELAYS], "priority": BAD_PRIORITIES, "max_attempts": BAD_ATTEMPTS}
READS: list[Method] = [
    ("holds", {"job": JOB}, {"job": BAD_JOBS}),
    ("get", {"job_id": "q/0"}, {"job_id": BAD_JOB_IDS}),
    ("counts", {"queue": "q"}, {"queue": BAD_QUEUES}),
    ("has_ready", {"queue": "q"}, {"queue": BAD_QUEUES}),
    ("peek", {"queue": "q"}, {"queue": BAD_QUEUES, "limit": BAD_LIMITS, "start_after": BAD_PLACES}),
    ("dead", {"queue": "q"}, {"queue": BAD_QUEUES, "limit": BAD_LIMITS, "start_after": BAD_PLACES}),
    ("list", {}, {}),
]
PUTS: list[Method] = [
    ("put", {"queue": "q", "payload": 1},
     {"queue": BAD_QUEUES, "payload": BAD_VALUES, "key": BAD_KEYS} | OPTIONS),
    ("put_many", {"queue": "q", "payloads": [1]}, {"queue": BAD_QUEUES, "payloads": BAD_PAYLOADS} | OPTIONS),
]
ACK: list[Method] = [("ack", {"job": JOB}, {"job": BAD_JOBS, "result": BAD_VALUES})]
CHANGES: list[Method] = [
    *ACK,
    ("nack", {"job": JOB},
     {"job": BAD_JOBS, "delay_s": BAD_DELAYS, "error": BAD_ERRORS, "retry": BAD_FLAGS}),
    ("extend", {"job": JOB}, {"job": BAD_JOBS, "lease_s": BAD_LEASES}),
    ("requeue", {"job_id": "dead/0"}, {"job_id": BAD_JOB_IDS}),
]
CLAIM = {
    "queue": BAD_QUEUES, "lease_s": BAD_LEASES, "wait_s": BAD_DELAYS,
    "worker": [*[each for each in BAD_QUEUES if each is not None]],
}
TAKES: list[Method] = [
    ("claim", {"queue": "q"}, CLAIM | {"limit": BAD_COUNTS}),
    ("claim_many", {"queue": "q", "limit": 2}, CLAIM | {"limit": BAD_COUNTS}),
    ("consume", {"queue": "q"}, CLAIM | {"stop": BAD_EVENTS}),
    ("purge", {"queue": "q"}, {"queue": BAD_QUEUES, "state": BAD_STATES}),
]
METHODS: dict[str, list[Method]] = {
    "facade": READS + PUTS + CHANGES + TAKES, "scope": READS + PUTS + CHANGES + TAKES,
    "transaction": READS + PUTS + CHANGES, "snapshot": READS, "pipeline": PUTS + ACK, "pipelined": PUTS + ACK,
}
RUN_FIRST = ("facade", "pipeline")
OF_JOBS = ("ack", "nack", "extend", "holds")


def bad_of(form: str, name: str, bad: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return bad | {"run_id": BAD_RUNS} if form in RUN_FIRST and name not in OF_JOBS else bad


CASES = [
    pytest.param(form, name, good, argument, values, id=f"{form}.{name}({argument})")
    for form, methods in METHODS.items() for name, good, bad in methods
    for argument, values in bad_of(form, name, bad).items()
]


@pytest.fixture(scope="module")
def db() -> Iterator[inmem.Database]:
    with inmem.open() as database:
        yield database


class Prepared:
    """A run with a ready, a claimed and a dead job."""

    def __init__(self, db: inmem.Database) -> None:
        self.db = db
        self.run_id = new_run()
        queues = db.run(self.run_id).queues
        queues.put("dead", 1)
        queues.nack(self._claimed("dead"), retry=False)
        queues.put("held", 1)
        self.job = self._claimed("held")
        queues.put("q", 1)

    def _claimed(self, queue: str) -> Any:
        return self.db.queues.claim(self.run_id, queue)

    def holder(self, form: str) -> Any:
        db, run = self.db, self.run_id
        return {
            "facade": lambda: db, "scope": lambda: db.run(run), "transaction": lambda: db.transaction(run),
            "snapshot": lambda: db.snapshot(run), "pipeline": db.pipeline,
            "pipelined": lambda: db.pipeline().run(run),
        }[form]()

    def arguments(self, form: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
        run = {"run_id": self.run_id} if form in RUN_FIRST and name not in OF_JOBS else {}
        return run | {key: self._job(value) for key, value in given.items()}

    def _job(self, value: Any) -> Any:
        if isinstance(value, MadeFrom):
            return dataclasses.replace(self.job, **value)
        return self.job if value is JOB else value


def end(holder: Any) -> None:
    """Commit, flush or close it."""
    for name in ("commit", "flush", "close"):
        if not isinstance(holder, inmem.Database) and hasattr(holder, name):
            getattr(holder, name)()
            return


@pytest.mark.parametrize(("form", "name", "good", "argument", "values"), CASES)
def test_methods(
    db: inmem.Database, form: str, name: str, good: dict[str, Any], argument: str, values: list[Any]
) -> None:
    prepared = Prepared(db)
    version = db.status().version
    holder = prepared.holder(form)
    method = getattr(holder.queues, name)
    for value in values:
        arguments = prepared.arguments(form, name, good | {argument: value})
        refused(lambda arguments=arguments: method(**arguments), argument, shown(value))
    end(holder)
    assert db.status().version == version and len(values) > 5


@pytest.mark.parametrize("run_id", ["another", "\ud800", "", "@agent", "@agents", "@", None, 7])
def test_jobs_whose_run_was_changed_by_hand(db: inmem.Database, run_id: Any) -> None:
    """The facade of a database finds the run of a job by it."""
    prepared = Prepared(db)
    made = dataclasses.replace(prepared.job, run_id=run_id)
    for name in OF_JOBS:
        with pytest.raises(inmem.InvalidInputError):
            getattr(db.queues, name)(made)
    with db.pipeline() as pipeline, pytest.raises(inmem.InvalidInputError):
        pipeline.queues.ack(made)
    assert db.queues.holds(prepared.job)


def test_a_place_has_a_priority(db: inmem.Database) -> None:
    for value in (*BAD_PRIORITIES[3:], 1 << 31, -(1 << 32)):
        place = dataclasses.replace(INFO, priority=value)
        call = partial(db.queues.peek, "run", "q", start_after=place)
        refused(call, "start_after", shown(value))
    assert db.queues.peek("run", "q", start_after=INFO) == []


@pytest.mark.parametrize("form", METHODS)
def test_the_good_arguments_are_good(db: inmem.Database, form: str) -> None:
    """Else the tests above would pass for another reason."""
    for name, good, _ in METHODS[form]:
        prepared = Prepared(db)
        holder = prepared.holder(form)
        getattr(holder.queues, name)(**prepared.arguments(form, name, good))
        end(holder)


@pytest.mark.parametrize("form", METHODS)
def test_no_method_and_no_argument_is_left_out(db: inmem.Database, form: str) -> None:
    holder = Prepared(db).holder(form)
    target = holder.queues
    public = {each for each in dir(target) if not each.startswith("_") and callable(getattr(target, each))}
    public -= {"claim", "claim_many", "consume", "purge"} if form == "transaction" else set()  # refused there
    known = {name: bad_of(form, name, bad) for name, _, bad in METHODS[form]}
    assert public == set(known)
    for name in known:
        assert set(inspect.signature(getattr(target, name)).parameters) == set(known[name]), name
    end(holder)


@pytest.mark.parametrize("form", ["facade", "scope", "transaction", "snapshot", "pipeline"])
def test_after_the_end_every_method_says_so(form: str) -> None:
    database = inmem.open()
    prepared = Prepared(database)
    holder = prepared.holder(form)
    queues = holder.queues
    with inmem.open(database.path):  # keeps what is shared alive
        if form == "pipeline":
            with holder:
                pass
        elif form in ("transaction", "snapshot"):
            (holder.abort if form == "transaction" else holder.close)()
        else:
            database.close()
        for name, good, _ in METHODS[form]:
            with pytest.raises(inmem.ClosedError):
                result = getattr(queues, name)(**prepared.arguments(form, name, good))
                list(result) if name == "consume" else result
    database.close()


ODD = [HUGE, -HUGE, Opaque(), object(), len, ..., "q", "dead/0", timedelta(1), timedelta.max]  # by index
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=4)
    | st.text(st.characters(codec=None), max_size=4) | st.integers(0, len(ODD) - 1).map(lambda i: ODD[i]),
    lambda inner: st.lists(inner, max_size=2) | st.tuples(inner, inner) | st.dictionaries(
        st.text(max_size=2) | st.integers(), inner, max_size=2),
    max_leaves=4,
)
CALLS = [
    (form, name, good, argument)
    for form, methods in METHODS.items() for name, good, bad in methods
    for argument in bad_of(form, name, bad)
]


@pytest.fixture(scope="module")
def some(db: inmem.Database) -> Prepared:
    return Prepared(db)


@settings(max_examples=500)
@given(case=st.sampled_from(CALLS), value=junk, second=junk, which=st.integers(0, 9))
def test_arbitrary_arguments(
    some: Prepared, case: tuple[Any, ...], value: Any, second: Any, which: int
) -> None:
    """Accepted or refused, but never an error of the internals."""
    form, name, good, argument = case
    holder = some.holder(form)
    arguments = some.arguments(form, name, good | {argument: value})
    names = sorted(arguments)
    if which < len(names):
        arguments[names[which]] = second
    if "wait_s" in arguments:
        waits = arguments["wait_s"]
        arguments["wait_s"] = 0 if waits is None or isinstance(waits, int | float | timedelta) else waits
    try:
        getattr(holder.queues, name)(**arguments)
        end(holder)
    except inmem.InmemError as error:
        assert len(str(error)) < 500
    finally:
        getattr(holder, "abort", None) and holder.abort()
    queues = some.db.run(some.run_id).queues
    assert all(queues.counts(queue) for queue in queues.list())


def test_durations_may_be_timedeltas(db: inmem.Database) -> None:
    queues = db.run(new_run()).queues
    second: Any = timedelta(seconds=1)
    queues.put("q", 1, delay_s=second)
    job: Any = queues.claim("q", wait_s=timedelta(seconds=30), lease_s=second)  # type: ignore[arg-type]
    job = queues.extend(job, second)
    queues.nack(job, delay_s=second)
    info: Any = queues.get("q/0")
    assert 900_000 < info.time - job.claimed_until + 1_000_000 < 2_000_000


def test_what_a_loop_offers_is_no_event(db: inmem.Database) -> None:
    class Stop:
        is_set: Callable[[], bool] | bool = True

    refused(lambda: db.queues.consume("run", "q", stop=Stop()), "stop")
