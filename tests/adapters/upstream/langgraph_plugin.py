"""A pytest plugin: LangGraph's own tests, with `InmemSaver` and `InmemStore` in place of its own.

`tests/adapters/test_langgraph_upstream.py` loads it into a pytest of its own.
Each saver and store is of an agent that nobody has used, in the store that
`INMEM_UPSTREAM_PLACE` names. Tests that make neither are not counted: the
property `inmem` of a test says how many it made.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import langgraph.checkpoint.memory
import langgraph.store.memory
import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

import inmem
import inmem.aio
from inmem.adapters.langgraph import InmemSaver, InmemStore

PLACE = os.environ["INMEM_UPSTREAM_PLACE"]
_numbers = itertools.count()
_opened = ExitStack()  # of the test that runs
_KEY = b"1234567890123456"
_AGAIN = {"sync_checkpointer": "sqlite"}  # what "memory" has already tested


def _agent() -> str:
    return f"upstream-{os.getpid()}-{next(_numbers)}"


def _open() -> inmem.Database:
    return _opened.enter_context(inmem.open(PLACE, agent=_agent()))


class Saver(InmemSaver):
    """Made as `InMemorySaver` is."""

    def __init__(self, *, serde: Any = None) -> None:
        super().__init__(_open(), serde=serde)


class Store(InmemStore):
    """Made as `InMemoryStore` is, or as `SqliteStore`."""

    def __init__(self, *, index: Any = None, ttl: Any = None) -> None:
        super().__init__(_open(), index=_index(index), ttl=ttl)

    @classmethod
    @contextmanager
    def from_conn_string(cls, _: str, **options: Any) -> Iterator[Store]:
        yield cls(**options)

    def setup(self) -> None:
        """There are no tables."""


class AsyncStore(InmemStore):
    """Made as `AsyncSqliteStore` is."""

    @classmethod
    @asynccontextmanager
    async def from_conn_string(cls, _: str, *, index: Any = None) -> AsyncIterator[AsyncStore]:
        async with inmem.aio.open(PLACE, agent=_agent()) as db:
            yield cls(db, index=_index(index))

    async def setup(self) -> None:
        """There are no tables."""


def _index(index: Any) -> Any:
    """The tests of the SQLite store name the fields so."""
    return index and {**index, "fields": index.get("fields") or index.get("text_fields")}


@contextmanager
def _saver(serde: Any = None) -> Iterator[InmemSaver]:
    yield Saver(serde=serde)


@contextmanager
def _encrypted() -> Iterator[InmemSaver]:
    # No `Saver`: for what they take for `InMemorySaver` the tests have pictures of graphs to compare with.
    yield InmemSaver(_open(), serde=EncryptedSerializer.from_pycryptodome_aes(key=_KEY))


@asynccontextmanager
async def _async_saver() -> AsyncIterator[InmemSaver]:
    async with inmem.aio.open(PLACE, agent=_agent()) as db:
        yield InmemSaver(db)


@contextmanager
def _store() -> Iterator[InmemStore]:
    yield Store()


FIXTURES: dict[str, Any] = {
    "_checkpointer_memory": _saver, "_checkpointer_sqlite_aes": _encrypted,
    "_checkpointer_sqlite_aio": _async_saver, "_store_memory": _store,
}
CLASSES: dict[str, Any] = {
    "InMemorySaver": Saver, "MemorySaver": Saver, "InMemoryStore": Store, "SqliteStore": Store,
    "AsyncSqliteStore": AsyncStore,
}


def pytest_plugin_registered(plugin: object) -> None:
    """LangGraph's conftest calls these when a test asks for a saver or a store."""
    for name, ours in FIXTURES.items():
        if hasattr(plugin, name):
            setattr(plugin, name, ours)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Replace the classes that test modules have imported, now that all subclasses of them are made."""
    left = [
        item for item in items
        if not any(
            getattr(item, "callspec", None) and item.callspec.params.get(name) == value  # type: ignore[attr-defined]
            for name, value in _AGAIN.items()
        )
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in left])
    items[:] = left
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        for name, ours in CLASSES.items():
            if hasattr(module, name):
                setattr(module, name, ours)
    for place, name in (
        (langgraph.checkpoint.memory, "InMemorySaver"), (langgraph.checkpoint.memory, "MemorySaver"),
        (langgraph.store.memory, "InMemoryStore"),
    ):  # which tests import in their functions
        setattr(place, name, CLASSES[name])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Close what a test has opened."""
    item.stash[_begun] = next(_numbers)
    made = yield
    _opened.close()
    return made


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """How many it has opened."""
    item.user_properties.append(("inmem", next(_numbers) - item.stash[_begun] - 1))


_begun = pytest.StashKey[int]()
