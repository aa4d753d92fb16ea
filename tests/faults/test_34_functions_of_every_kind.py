"""Every callable works as a function, or is refused before it runs; none silently does nothing."""

from __future__ import annotations

import asyncio
import functools
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import inmem

RAN: list[str] = []


def put(txn: Any) -> Any:
    """What is wanted of a transaction's function, and in a transition of a cell's."""
    RAN.append("ran")
    if isinstance(txn, inmem.State):
        return txn.value + 1, "result"
    txn.kv.put("k", txn.kv.get("k", 0) + 1)
    return "result"


class Plain:
    def method(self, txn: Any) -> Any:
        return put(txn)

    @classmethod
    def of_class(cls, txn: Any) -> Any:
        return put(txn)

    @staticmethod
    def static(txn: Any) -> Any:
        return put(txn)

    def __call__(self, txn: Any) -> Any:
        return put(txn)


class Derived(Plain):
    pass


def with_word(word: str, txn: Any) -> Any:
    return put(txn)


@functools.wraps(put)
def wrapper(*args: Any) -> Any:
    return put(*args)


GOOD: dict[str, Callable[[Any], Any]] = {
    "function": put,
    "method": Plain().method,
    "classmethod": Plain.of_class,
    "staticmethod": Plain.static,
    "staticmethod itself": staticmethod(put),
    "callable object": Plain(),
    "inherited call": Derived(),
    "lambda": lambda txn: put(txn),
    "partial": functools.partial(with_word, "word"),
    "partial of a partial": functools.partial(functools.partial(with_word, "word")),
    "partial of an object": functools.partial(Plain()),
    "partial of a method": functools.partial(Plain().method),
    "wrapper": wrapper,
    "transactional": inmem.transactional(put),
}


async def coroutine(txn: Any) -> Any:
    return put(txn)


def generator(txn: Any) -> Iterator[Any]:
    yield put(txn)


async def asynchronous(txn: Any) -> AsyncIterator[Any]:
    yield put(txn)


class Later:
    async def method(self, txn: Any) -> Any:
        return put(txn)

    @classmethod
    async def of_class(cls, txn: Any) -> Any:
        return put(txn)

    @staticmethod
    def static(txn: Any) -> Iterator[Any]:
        yield put(txn)

    async def __call__(self, txn: Any) -> Any:
        return put(txn)


class Generates:
    def __call__(self, txn: Any) -> Iterator[Any]:
        yield put(txn)


BAD: dict[str, Any] = {
    "coroutine function": coroutine,
    "generator function": generator,
    "asynchronous generator": asynchronous,
    "method": Later().method,
    "classmethod": Later.of_class,
    "staticmethod": Later.static,
    "staticmethod itself": staticmethod(coroutine),
    "object": Later(),
    "object that generates": Generates(),
    "partial": functools.partial(coroutine),
    "partial of a partial": functools.partial(functools.partial(generator)),
    "partial of an object": functools.partial(Later()),
    "partial of an object that generates": functools.partial(Generates()),
    "nothing": None,
    "name": "put",
    "classmethod itself": classmethod(put),
}


class Awaitable:
    closed = False

    def __await__(self) -> Iterator[Any]:
        yield

    def close(self) -> None:
        self.closed = True


def gives_later(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A plain function that does something, and returns something that would do more."""

    def call(txn: Any) -> Any:
        put(txn)
        return make(txn)

    return call


RESULTS: dict[str, Callable[[Any], Any]] = {
    "coroutine": gives_later(coroutine),
    "generator": gives_later(generator),
    "asynchronous generator": gives_later(asynchronous),
    "generator expression": gives_later(lambda txn: (n for n in range(3))),
    "awaitable": gives_later(lambda txn: Awaitable()),
    "wrapped coroutine function": functools.wraps(coroutine)(gives_later(coroutine)),
    "cached coroutine function": functools.lru_cache(maxsize=0)(coroutine),
    "lambda": lambda txn: coroutine(txn),
}


def decorated(db: inmem.Database, fn: Any) -> Any:
    return inmem.transactional(fn)(db.run("r"))


def composed(db: inmem.Database, fn: Any) -> Any:
    with db.transaction("r") as txn:
        return inmem.transactional(fn)(txn)


def in_transaction(db: inmem.Database, fn: Any) -> Any:
    with db.transaction("r") as txn:
        return txn.cells.transition("c", fn)


WAYS: dict[str, Callable[[inmem.Database, Any], Any]] = {
    "transact": lambda db, fn: db.transact("r", fn),
    "scope.transact": lambda db, fn: db.run("r").transact(fn),
    "kv.transaction": lambda db, fn: db.kv.transaction("r", fn),
    "scope.kv.transaction": lambda db, fn: db.run("r").kv.transaction(fn),
    "transactional": decorated,
    "transactional in a transaction": composed,
    "transition": lambda db, fn: db.cells.transition("r", "c", fn),
    "scope.transition": lambda db, fn: db.run("r").cells.transition("c", fn),
    "transition in a transaction": in_transaction,
}


@pytest.fixture(autouse=True)
def nothing_ran() -> Iterator[None]:
    RAN.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also: a coroutine was never awaited
        yield


def state(db: inmem.Database) -> Any:
    return db.kv.get("r", "k", 0), db.cells.read("r", "c").value, db.status().version


@pytest.mark.parametrize("way", WAYS)
def test_every_callable_works(db: inmem.Database, way: str) -> None:
    db.cells.init("r", "c", 0)
    is_cell = "transition" in way
    for done, (name, fn) in enumerate(GOOD.items(), 1):
        if is_cell and name == "transactional":
            with pytest.raises(inmem.InvalidInputError):
                WAYS[way](db, fn)
            continue
        assert WAYS[way](db, fn) == "result", name
        assert state(db)[is_cell] == done, name


@pytest.mark.parametrize("way", WAYS)
def test_what_is_done_later_is_refused_before_it_runs(db: inmem.Database, way: str) -> None:
    db.cells.init("r", "c", 0)
    before = state(db)
    for name, fn in BAD.items():
        if name == "classmethod itself" and way.startswith("transactional"):
            continue  # see the decorated methods
        with pytest.raises(inmem.InvalidInputError, match=r"fn must be") as caught:
            WAYS[way](db, fn)
        assert caught.value.argument == "fn" and not RAN, name
    assert state(db) == before


@pytest.mark.parametrize("way", WAYS)
def test_what_returns_something_to_be_done_is_refused(db: inmem.Database, way: str) -> None:
    db.cells.init("r", "c", 0)
    before = state(db)
    for name, fn in RESULTS.items():
        with pytest.raises(inmem.InvalidInputError, match="fn must return a result"):
            WAYS[way](db, fn)
        assert state(db) == before, name


def test_what_was_returned_is_closed(db: inmem.Database) -> None:
    made: list[Any] = []

    def returning(make: Callable[[], Any]) -> Callable[[Any], Any]:
        def call(txn: Any) -> Any:
            txn.kv.put("k", 1)
            made.append(make())
            return made[-1]

        return call

    async def run() -> None:
        for make in (
            lambda: coroutine(None), lambda: generator(None), Awaitable,
            asyncio.get_running_loop().create_future, lambda: asyncio.ensure_future(coroutine(None)),
        ):
            with pytest.raises(inmem.InvalidInputError, match="must return"):
                db.transact("r", returning(make))
        await asyncio.sleep(0)

    asyncio.run(run())
    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED
    assert inspect.getgeneratorstate(made[1]) == inspect.GEN_CLOSED
    assert made[2].closed and made[3].cancelled() and made[4].cancelled()
    assert not RAN and not db.kv.exists("r", "k")


def test_a_pair_of_a_transition_is_looked_at_too(db: inmem.Database) -> None:
    db.cells.init("r", "c", 0)
    for fn in (lambda s: (coroutine(s), 1), lambda s: (1, coroutine(s)), lambda s: (1, generator(s))):
        with pytest.raises(inmem.InvalidInputError, match="must return"):
            db.cells.transition("r", "c", fn)
    assert db.cells.read("r", "c").version == 1


class Account:
    """Methods that are transactional, in both orders of decorators."""

    def __init__(self, name: str) -> None:
        self.name = name

    @inmem.transactional
    def add(self, txn: inmem.Transaction, amount: int, *, note: str = "") -> int:
        """Add to the account."""
        txn.kv.put(self.name, txn.kv.get(self.name, 0) + amount)
        return amount

    @classmethod
    @inmem.transactional
    def of_class(cls, txn: inmem.Transaction, amount: int) -> str:
        txn.kv.put("class", amount)
        return cls.__name__

    @inmem.transactional
    @classmethod
    def of_class_too(cls, txn: inmem.Transaction, amount: int) -> str:
        txn.kv.put("class", amount)
        return cls.__name__

    @staticmethod
    @inmem.transactional
    def static(txn: inmem.Transaction, amount: int) -> int:
        txn.kv.put("static", amount)
        return amount

    @inmem.transactional
    @staticmethod
    def static_too(txn: inmem.Transaction, amount: int) -> int:
        txn.kv.put("static", amount)
        return amount

    @inmem.transactional
    def twice(self, txn: inmem.Transaction) -> int:
        return self.add(txn, 1) + self.add(txn, 1)


class Richer(Account):
    @inmem.transactional
    def add(self, txn: inmem.Transaction, amount: int, *, note: str = "") -> int:
        return super().add(txn, 2 * amount, note=note)


def test_methods(db: inmem.Database) -> None:
    scope = db.run("r")
    for account, expected in ((Account("a"), 18), (Richer("b"), 36)):
        assert account.add(scope, 5) == 5 * (expected // 18)
        account.add(scope, amount=5, note="n")
        account.add(txn=scope, amount=5)
        type(account).add(account, scope, 1)
        account.twice(scope)
        assert scope.kv.get(account.name) == expected
        with pytest.raises(inmem.ConflictError), db.transaction("r") as txn:
            account.add(txn, 5)
            scope.kv.put(account.name, expected)
        assert scope.kv.get(account.name) == expected
        for call in (account.of_class, type(account).of_class, account.of_class_too):
            assert call(scope, 3) == type(account).__name__
        for call in (account.static, Account.static, account.static_too, Account.static_too):
            assert call(scope, 3) == 3
        for wrong in (7, None, "r", db, account):
            for call in (account.add, account.of_class, account.of_class_too, account.static):
                with pytest.raises(inmem.InvalidInputError, match="first argument"):
                    call(wrong, 1)
        with pytest.raises(inmem.InvalidInputError, match="first argument"):
            account.add()
    with pytest.raises(inmem.InvalidInputError, match="first argument"):
        GOOD["transactional"](7)


def test_a_method_retries(db: inmem.Database) -> None:
    tries = []

    class Contended:
        @inmem.transactional
        def step(self, txn: inmem.Transaction) -> int:
            n = txn.kv.get("n", 0)
            tries.append(n)
            if len(tries) == 1:
                db.kv.put("r", "n", 10)
            txn.kv.put("n", n + 1)
            return n + 1

    assert Contended().step(db.run("r")) == 11 and tries == [0, 10]


def test_name_doc_signature_and_type_are_kept() -> None:
    plain = Account.add.__wrapped__
    assert inspect.isfunction(Account.add) and inspect.ismethod(Account("a").add)
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        assert getattr(Account.add, name) == getattr(plain, name)
    assert inspect.signature(Account.add) == inspect.signature(plain)
    assert list(inspect.signature(Account("a").add).parameters) == ["txn", "amount", "note"]
    assert isinstance(vars(Account)["of_class_too"], classmethod)
    assert isinstance(vars(Account)["static_too"], staticmethod)
    for wrong in (coroutine, generator, asynchronous, Later(), 7):
        with pytest.raises(inmem.InvalidInputError, match="fn must be"):
            inmem.transactional(wrong)
