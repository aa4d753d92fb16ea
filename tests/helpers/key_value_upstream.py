"""Upstream's tests of stores, with our store: `run_suite` copies this to where it runs."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest
from tests.stores.base import BaseStoreTests, ContextManagerStoreTestMixin  # of the checkout

from inmem.adapters.key_value import InmemStore


class TestInmemStore(ContextManagerStoreTestMixin, BaseStoreTests):
    """All of them, in a store that nobody has used."""

    @pytest.fixture
    async def store(self) -> Any:
        return InmemStore(os.environ["INMEM_TESTED"], name=uuid.uuid4().hex)

    @pytest.mark.skip(reason="a store of inmem has no bound of entries; it has a quota of bytes")
    async def test_not_unbounded(self, store: Any) -> None: ...
