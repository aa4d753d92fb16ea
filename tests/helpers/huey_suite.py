"""Huey's own tests, of its wheel, against `InmemHuey` in place of `MemoryHuey`."""

from __future__ import annotations

import importlib
import io
import itertools
import os
import unittest
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import inmem
from inmem.adapters.huey import InmemHuey, InmemStorage

# Those that take a storage, and how many of them there are in huey 3.5.
MODULES = {
    "test_storage": 10, "test_api": 118, "test_consumer": 22, "test_priority": 5, "test_signals": 13,
    "test_immediate": 13, "test_asyncio": 4, "test_registry": 7,
}
_numbers = itertools.count()


class CountedStorage(InmemStorage):
    """One of which a test looks at the counters as those of a `MemoryStorage`."""

    @property
    def _counters(self) -> dict[str, Any]:
        return {place: self.run.kv.get(place) for place in self.run.kv.list("c")}


def suite(name: str, taken: str, db: inmem.Database, patch: pytest.MonkeyPatch) -> unittest.TestSuite:
    """The tests of a module of Huey's.

    `taken` says how `dequeue` gets a task: `"removed"`, as it is, or by a claim as the consumer does,
    which ends when the task `"begins"` or `"ends"`.
    """

    class Here(InmemHuey):
        def __init__(self, name: str = "huey", **options: Any) -> None:
            super().__init__(name, db, blocking=False, redeliver=taken == "ends", **options)

        def get_storage(self, **options: Any) -> InmemStorage:
            return CountedStorage(f"{self.name}-{os.getpid()}-{next(_numbers)}", **options)

        def dequeue(self) -> Any:
            return super().dequeue() if taken == "removed" else self.take()

    patch.setenv("HUEY_SLOW_TESTS", "1")
    base = importlib.import_module("huey.tests.base")
    module = importlib.import_module(f"huey.tests.{name}")
    for each in (base, module):
        if hasattr(each, "MemoryHuey"):
            patch.setattr(each, "MemoryHuey", Here)
    if name == "test_consumer":  # this one has SQLite in each, and leaves it open
        patch.delattr(module, "TestProcessWorkers")
    if name != "test_storage":
        return unittest.defaultTestLoader.loadTestsFromModule(module)
    found = type("TestInmemStorage", (module.StorageTests, base.BaseTestCase), {})
    return unittest.defaultTestLoader.loadTestsFromTestCase(found)


def close_flags(patch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Huey leaves the pipes of its flags open; call what this returns to close them."""
    consumer = importlib.import_module("huey.consumer")
    made: list[Any] = []
    begin = consumer.ForkSafeFlag.__init__

    def begun(flag: Any) -> None:
        begin(flag)
        made.append(flag)

    def close() -> None:
        for flag in made:
            os.close(flag._r)
            os.close(flag._w)

    patch.setattr(consumer.ForkSafeFlag, "__init__", begun)
    return close


def run(tests: unittest.TestSuite) -> tuple[int, list[str], list[str]]:
    """How many ran, what went wrong in which, and which were skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # they fork while threads run
        result = unittest.TextTestRunner(io.StringIO()).run(tests)
    wrong = [f"{test.id()}: {text}" for test, text in result.errors + result.failures]
    return result.testsRun, wrong, [test.id() for test, _ in result.skipped]
