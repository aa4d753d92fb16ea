"""Fault 64: the same with one and two commits fewer than a session may have unanswered."""

from __future__ import annotations

from pathlib import Path

import pytest
from unanswered import settled_by_the_next_calls

from inmem.config import MAX_IN_FLIGHT


@pytest.mark.parametrize("count", [MAX_IN_FLIGHT - 2, MAX_IN_FLIGHT - 1])
def test_they_are_settled_by_the_next_calls(store_path: Path, count: int) -> None:
    settled_by_the_next_calls(store_path, count)
