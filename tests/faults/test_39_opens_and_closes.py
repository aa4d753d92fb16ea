"""Opening and closing leaves nothing open, without the help of the collector."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import inmem

OPENS = int(os.environ.get("INMEM_TEST_OPENS", "200"))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def used() -> tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.timeout(60 + OPENS)
def test_what_is_open_does_not_grow(store_path: Path, no_collector: None) -> None:
    inmem.open(store_path).close()
    before = used()
    for number in range(OPENS):
        with suppress(ZeroDivisionError), inmem.open(store_path) as db:
            db.kv.put("r", "k", number)
            assert db.run("r").kv.get("k") == number
            with db.snapshot("r") as view:
                assert view.kv.get("k") == number
            db.transact("r", lambda txn: txn.kv.put("n", txn.kv.get("n", 0)))
            if number % 3 == 0:
                1 / 0  # noqa: B018
    del db, view  # the last ones: whoever keeps a view keeps what it looked at
    assert used() == before
    print(f"{OPENS} opens: {before[0]} descriptors and {before[1]} threads before and after")
