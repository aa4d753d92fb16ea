"""Checks, and the comparison of values that they rest on."""

from __future__ import annotations

from typing import Any

import pytest

from workers.judge.checks import Check, check_numbers
from workers.judge.values import canonical, same


class TestChecks:
    def test_a_check_that_compared_nothing_fails(self) -> None:
        check = Check("empty")
        assert not check.ok
        assert check.summary() == "nothing was compared"

    def test_many_problems_are_counted_and_few_are_told(self) -> None:
        check = Check("tickets")
        check_numbers(check, "tickets", [1] * 50, 50)
        assert check.problem_count == 50
        assert len(check.problems) == 5
        assert check.summary().endswith("and 45 more")

    @pytest.mark.parametrize(
        ("left", "right"),
        [(True, 1), (1.0, 1), ("x", b"x"), (None, False), ([], {}), (0.0, -0.0), ([1], [1, 1])],
    )
    def test_values_of_different_types_are_not_the_same(self, left: Any, right: Any) -> None:
        assert not same(left, right)
        assert not same([{"a": left}], [{"a": right}])

    def test_the_order_of_keys_does_not_matter(self) -> None:
        assert same({"a": 1, "b": [float("nan")]}, {"b": [float("nan")], "a": 1})

    def test_only_values_of_the_store_have_a_text(self) -> None:
        with pytest.raises(TypeError, match="set"):
            canonical({1, 2})
