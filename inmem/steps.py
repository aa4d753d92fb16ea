"""Durable steps: programs that go on where a dead worker has left them, each step recorded once.

A program is a function that calls functions with `@step`. `run` calls it as
the owner of a run. Each step's result is stored before the program sees it.
Whoever runs the program again, after an end of any kind, gets the stored
results of the steps that were done, and executes the others.

>>> import inmem
>>> from inmem import steps
>>> @steps.step
... def search(city):
...     print("searching", city)
...     return ["night train", "bus"]
>>> @steps.step(retries=3)
... def book(offer):
...     return {"booked": offer}
>>> def trip(city):
...     return book(search(city)[0])
>>> with inmem.open() as db:
...     steps.run(db, "trip-7", trip, "Oslo")
...     steps.run(db, "trip-7", trip, "Oslo")
searching Oslo
{'booked': 'night train'}
{'booked': 'night train'}

Invariant: a result is stored by a commit that the run's lease guards, so of
two workers one alone can record a step. A step may be executed again when its
worker dies in it, and its effects outside with it; what a step of a
transaction writes to the store happens once, with its record.

In the run's KV store, under `@step/`: for each step its name, `state` (`begun`,
`done`, `failed`), how often it was begun and has failed, and its result or its
error. `@program` has the same of the program.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import hashlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, ParamSpec, TypeVar, overload

from inmem import stepping, values
from inmem.aio.database import AsyncDatabase
from inmem.aio.driving import driven as awaited
from inmem.aio.scopes import AsyncRunScope
from inmem.client.retry import check_timeout
from inmem.database import Database
from inmem.errors import (
    ClosedError,
    CommitUnknownError,
    DatabaseGoneError,
    ForkError,
    InvalidInputError,
    InvariantError,
    LeaseLostError,
    RunDeletedError,
    StepFailedError,
    WriterUnavailableError,
)
from inmem.keys import encode_name, shorten
from inmem.pending import Pending
from inmem.primitives.leases.calls import LeaseHolder
from inmem.primitives.runs.owners import OWNER
from inmem.primitives.runs.pruning import TERMINAL
from inmem.primitives.runs.rules import RunStatus
from inmem.scopes import RunScope
from inmem.stepping import Pause, Steps

__all__ = ["arun", "run", "scope", "step"]

P = ParamSpec("P")
T = TypeVar("T")

MAX_DEATHS: Final = 10  # of workers in one step: then it is taken for what kills them
_PROGRAM: Final = "@program"
_MAX_STEP_BYTES: Final = 128  # of a step's name: a key has more in it
_MAX_PAUSE_S: Final = 300.0
# What says nothing about a step: another worker, or this one later, goes on with it.
_LEAVES: Final = (
    LeaseLostError, CommitUnknownError, WriterUnavailableError, ClosedError, DatabaseGoneError, ForkError,
    RunDeletedError,
)


@dataclass(frozen=True, slots=True)
class _Step:
    """How a function is executed as a step."""

    fn: Callable[..., Any]
    name: str
    retries: int
    pause_s: float
    timeout_s: float | None
    in_order: bool
    in_transaction: bool


@dataclass(slots=True)
class _Program:
    """A program that runs here: whose steps are recorded in which run."""

    scope: RunScope | AsyncRunScope
    lease: LeaseHolder
    met: dict[str, int] = field(default_factory=dict)  # how often each step came
    lock: threading.Lock = field(default_factory=threading.Lock)

    def key_of(self, step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Where a call is recorded: the same in each execution of a program that makes the same calls."""
        what = step.name
        if not step.in_order:
            given = values.encode([[*args], [[name, kwargs[name]] for name in sorted(kwargs)]], "arguments")
            what += "/" + hashlib.blake2b(given, digest_size=12).hexdigest()
        with self.lock:
            number = self.met[what] = self.met.get(what, -1) + 1
        return f"@step/{what}/{number}"

    def record(self, change: Callable[[Any], Any]) -> Any:
        """A commit of the owner alone."""
        return self.scope.transact(change, lease=self.lease)


_program: contextvars.ContextVar[_Program | None] = contextvars.ContextVar("inmem_program", default=None)


@overload
def step(fn: Callable[P, T], /) -> Callable[P, T]: ...
@overload
def step(
    *, name: str | None = None, retries: int = 0, pause_s: float | timedelta = 1.0,
    timeout_s: float | timedelta | None = None, by: str = "arguments", transaction: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...
def step(
    fn: Any = None, /, *, name: str | None = None, retries: int = 0, pause_s: float | timedelta = 1.0,
    timeout_s: float | timedelta | None = None, by: str = "arguments", transaction: bool = False,
) -> Any:
    """Make a function, or a coroutine function, a step of programs. Elsewhere it is called as it is.

    A step is told from others by its name (default: that of the function),
    its arguments, and how often it was called with these before. With
    `by="order"` arguments do not count, only the how-manieth call it is; they
    need not be storable then. A step within a step is part of that one.

    A step that raises is executed again `retries` times, after `pause_s`
    seconds, which double each time. Failures are counted across workers.
    `timeout_s` ends a step that takes longer: a coroutine is cancelled, a
    function goes on in its thread, and what it returns is dropped. With
    `transaction` the function gets a transaction of the run first. It is
    committed with the record, so all that it writes happens exactly once; the
    function must be pure, as for `Database.transact`.

    Results are stored: any `inmem.Value`. Cost of a step: two commits; one
    with `transaction`; a read if it was done.

    Raises:
        InvalidInputError: an argument is wrong.
    """
    if fn is None:
        return functools.partial(
            step, name=name, retries=retries, pause_s=pause_s, timeout_s=timeout_s, by=by,
            transaction=transaction,
        )
    _check_callable(fn)
    if type(retries) is not int or retries < 0:
        raise InvalidInputError(
            f"retries must be an int of 0 or more, not {shorten(retries)}", argument="retries"
        )
    if by not in ("arguments", "order"):
        raise InvalidInputError(f"by must be 'arguments' or 'order', not {shorten(by)}", argument="by")
    if transaction and timeout_s is not None:
        raise InvalidInputError("a step that is a transaction has no timeout", argument="timeout_s")
    name = getattr(fn, "__qualname__", "step").rpartition("<locals>.")[2] if name is None else name
    encode_name(name, "name", _MAX_STEP_BYTES)
    made = _Step(
        fn, name, retries, check_timeout(pause_s, "pause_s"),
        None if timeout_s is None else check_timeout(timeout_s), by == "order", bool(transaction),
    )

    def call(*args: Any, **kwargs: Any) -> Any:
        program = _program.get()
        if program is None:
            return fn(*args, **kwargs)
        if not isinstance(program.scope, RunScope):
            raise InvariantError(
                f"step {made.name} is no coroutine function, and its program is one",
                hint="Write it with `async def`, or run the program with steps.run.",
            )
        return stepping.driven(_taken(program, made, args, kwargs))

    async def acall(*args: Any, **kwargs: Any) -> Any:
        program = _program.get()
        if program is None:
            return await fn(*args, **kwargs)
        if isinstance(program.scope, RunScope):
            raise InvariantError(
                f"step {made.name} is a coroutine function, and its program is none",
                hint="Run the program with steps.arun.",
            )
        return await awaited(_taken(program, made, args, kwargs))

    return functools.wraps(fn)(acall if inspect.iscoroutinefunction(fn) else call)


def scope() -> Any:
    """The scope of the run whose program this is: a `RunScope`, of `arun` an `AsyncRunScope`.

    Raises:
        InvariantError: no program runs here.
    """
    program = _program.get()
    if program is None:
        raise InvariantError("no program runs here", hint="Call it in what steps.run or steps.arun runs.")
    return program.scope


def run(
    db: Database, run_id: str | RunScope, fn: Callable[..., T], /, *args: Any,
    ttl_s: float | timedelta = 30.0, wait_s: float | timedelta | None = 0.0, **kwargs: Any,
) -> T:
    """Call `fn(*args, **kwargs)` as the program of a run, and return what it returned, now or before.

    Owns the run while it lasts: holds its lease `@run` for `ttl_s` seconds,
    renewed all the time, after a wait of up to `wait_s` for it. Creates the
    run if need be, and completes it in the commit that stores the result. An
    exception that leaves the program fails the run; what ends the process or
    loses the lease leaves it active, for the next worker.

    Raises:
        LeaseHeldError: another worker has the run.
        LeaseLostError: this worker was away for longer than `ttl_s`; another one may have gone on.
        StepFailedError: the program has failed before.
        RunDeletedError: the run was deleted.
        InvariantError: called in a program.
        Exception: whatever the program raises.
    """
    if not isinstance(db, Database):
        raise InvalidInputError(
            f"db must be a Database, not {type(db).__name__}", argument="db",
            hint="For a database of inmem.aio: await steps.arun(...).",
        )
    _check_callable(fn)
    store = db.run(run_id)
    with store.leases.hold(OWNER, ttl_s=ttl_s, wait_s=wait_s) as lease:
        result: T = stepping.driven(_run(_Program(store, lease), fn, args, kwargs))
        return result


async def arun(
    db: AsyncDatabase, run_id: str | AsyncRunScope, fn: Callable[..., Awaitable[T]], /, *args: Any,
    ttl_s: float | timedelta = 30.0, wait_s: float | timedelta | None = 0.0, **kwargs: Any,
) -> T:
    """Await `fn(*args, **kwargs)` as the program of a run. See `run`; its steps are coroutine functions."""
    if not isinstance(db, AsyncDatabase):
        raise InvalidInputError(
            f"db must be an AsyncDatabase, not {type(db).__name__}", argument="db",
            hint="For a database of inmem.open: steps.run(...).",
        )
    _check_callable(fn)
    store = db.run(run_id)
    async with store.leases.hold(OWNER, ttl_s=ttl_s, wait_s=wait_s) as lease:
        result: T = await awaited(_run(_Program(store, lease), fn, args, kwargs))
        return result


@contextmanager
def _within(program: _Program | None) -> Iterator[None]:
    """Steps that are called in this block are those of a program, or of none."""
    token = _program.set(program)
    try:
        yield
    finally:
        _program.reset(token)


def _run(program: _Program, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Any]:
    if _program.get() is not None:
        raise InvariantError("a program runs here already", hint="Give the other one a thread or process.")

    def begin(txn: Any) -> Any:
        found = txn.kv.get(_PROGRAM, {"begun": 0})
        status = txn.runs.create_run(exist_ok=True).status
        if status not in TERMINAL:
            txn.kv.put(_PROGRAM, {"state": "begun", "begun": found["begun"] + 1})
        elif found.get("state") not in ("done", "failed"):
            raise InvariantError(f"run {program.scope.run_id} has ended without this program")
        return found

    found = yield program.record(begin)
    if found.get("state") == "done":
        return found["result"]
    if found.get("state") == "failed":
        raise StepFailedError(f"the program has failed before: {found['error']}", step=_PROGRAM)
    try:
        with _within(program):
            result = yield fn(*args, **kwargs)
    except _LEAVES:
        raise
    except Exception as error:
        why = _shown(error)

        def fail(txn: Any) -> None:
            txn.kv.put(_PROGRAM, {"state": "failed", "begun": found["begun"] + 1, "error": why})
            if txn.runs.get_run().status == RunStatus.ACTIVE:
                txn.runs.fail_run(why)

        yield program.record(fail)
        raise
    done = {"state": "done", "begun": found["begun"] + 1, "result": result}

    def complete(txn: Any) -> None:
        txn.kv.put(_PROGRAM, done)
        txn.runs.complete_run()

    yield program.record(complete)
    return result


def _taken(program: _Program, step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Steps[Any]:
    """Execute a step, or give back what was recorded of it."""
    key = program.key_of(step, args, kwargs)
    found = yield program.scope.kv.get(key)
    pause_s = step.pause_s
    while True:
        if found is not None and found["state"] == "done":
            return found["result"]
        entry = found or {"step": step.name, "begun": 0, "failed": 0}
        if entry["failed"] > step.retries or entry.get("state") == "failed":
            raise StepFailedError(f"step {step.name} has failed: {entry['error']}", step=step.name)
        if entry["begun"] - entry["failed"] >= MAX_DEATHS:
            raise StepFailedError(
                f"step {step.name} was begun {entry['begun']} times, and its worker did not come back",
                step=step.name,
            )
        entry = entry | {"state": "begun", "begun": entry["begun"] + 1}
        try:
            if step.in_transaction:
                done = _with_record(step, key, entry, args, kwargs)
                with _within(None):
                    result = yield program.record(done)
                return result
            yield program.record(functools.partial(_put, key, entry))
            with _within(None):
                result = yield _executed(step, args, kwargs)
        except _LEAVES:
            raise
        except Exception as error:
            found = entry | {"failed": entry["failed"] + 1, "error": _shown(error)}
            found["state"] = "failed" if found["failed"] > step.retries else "begun"
            yield program.record(functools.partial(_put, key, found))
            if found["state"] == "failed":
                why = f"step {step.name} has failed: {found['error']}"
                raise StepFailedError(why, step=step.name) from error
        else:
            entry |= {"state": "done", "result": result}
            yield program.record(functools.partial(_put, key, entry))
            return result
        yield Pause(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def _put(key: str, entry: dict[str, Any], txn: Any) -> None:
    txn.kv.put(key, entry)


def _with_record(
    step: _Step, key: str, entry: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Any], Any]:
    """What executes a step in its transaction, and records it there."""

    def record(txn: Any) -> Any:
        result = _known(step.fn(txn, *args, **kwargs))
        txn.kv.put(key, entry | {"state": "done", "result": result})
        return result

    async def arecord(txn: Any) -> Any:
        result = _known(await step.fn(txn, *args, **kwargs))
        await txn.kv.put(key, entry | {"state": "done", "result": result})
        return result

    return arecord if inspect.iscoroutinefunction(step.fn) else record


def _known(result: Any) -> Any:
    """The result, to be stored in the same commit: what only that would know must have been read before."""
    return result.value if isinstance(result, Pending) else result


def _executed(step: _Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the function gives, or what is to be awaited for it; within its time."""
    if step.timeout_s is None:
        return step.fn(*args, **kwargs)
    if inspect.iscoroutinefunction(step.fn):
        return asyncio.wait_for(step.fn(*args, **kwargs), step.timeout_s)
    ended: list[tuple[Any, BaseException | None]] = []
    context = contextvars.copy_context()

    def call() -> None:
        try:
            ended.append((context.run(step.fn, *args, **kwargs), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=call, name=f"inmem-step-{step.name}", daemon=True)
    thread.start()
    thread.join(step.timeout_s)
    if not ended:
        raise TimeoutError(f"step {step.name} took longer than {step.timeout_s} s")
    result, error = ended[0]
    if error is not None:
        raise error
    return result


def _check_callable(fn: object) -> None:
    if not callable(fn):
        raise InvalidInputError(f"fn must be callable, not {type(fn).__name__}", argument="fn")


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
