"""The writer is killed again and again under work, where each commit is synced before its answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from killing import KILLS, killed_again_and_again
from support import Workers


@pytest.mark.timeout(120 + 4 * KILLS)
@pytest.mark.parametrize("durability", ["sync"])
def test_killed_again_and_again_under_work(store_path: Path, workers: Workers, durability: str) -> None:
    killed_again_and_again(store_path, workers, durability)
