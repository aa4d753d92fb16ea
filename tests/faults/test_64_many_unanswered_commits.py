"""Fault 64: the same with as many as are still a few below the limit of one session."""

from __future__ import annotations

from pathlib import Path

import pytest
from unanswered import settled_by_the_next_calls

from inmem.config import MAX_IN_FLIGHT


@pytest.mark.parametrize("count", [1000, MAX_IN_FLIGHT - 3])
def test_they_are_settled_by_the_next_calls(store_path: Path, count: int) -> None:
    settled_by_the_next_calls(store_path, count)
