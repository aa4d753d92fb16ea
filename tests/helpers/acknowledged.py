"""What was acknowledged beside what is stored."""

from __future__ import annotations

from collections import Counter


def compare(stored: list[str], acked: list[str]) -> tuple[list[str], list[str]]:
    """What is missing, and what is there without or beyond an acknowledgement."""
    there, claimed = Counter(stored), Counter(acked)
    return sorted((claimed - there).elements()), sorted((there - claimed).elements())
