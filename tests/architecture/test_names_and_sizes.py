"""No two classes share a name, and no file is over 500 lines."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping

import pytest
from architecture.known import CLASS_NAMES, LONG_FILES
from architecture.modules import PACKAGE, real_modules

MAX_LINES = 500


def shared_names(modules: Mapping[str, str]) -> set[str]:
    """The names that more than one class has, nested ones too."""
    counts = Counter(
        node.name
        for source in modules.values() for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    )
    return {name for name, count in counts.items() if count > 1}


def long_files(sources: Mapping[str, str]) -> set[str]:
    """The files of more than 500 lines."""
    return {name for name, source in sources.items() if len(source.splitlines()) > MAX_LINES}


def test_no_two_classes_share_a_name() -> None:
    assert shared_names(real_modules()) == CLASS_NAMES


def test_no_file_is_too_long() -> None:
    sources = {
        path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")
    }
    assert len(sources) > 100
    assert long_files(sources) == LONG_FILES


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({"inmem.a": "class A: ...", "inmem.b": "class A: ..."}, {"A"}),
        ({"inmem.a": "class A:\n    class B: ...", "inmem.b": "def f():\n    class B: ..."}, {"B"}),
        ({"inmem.a": "class A: ...\nclass A: ..."}, {"A"}),
        ({"inmem.a": "class A: ...", "inmem.b": "class B: ...\nA = B"}, set()),
    ],
)
def test_the_checker_of_names(modules: dict[str, str], expected: set[str]) -> None:
    assert shared_names(modules) == expected


@pytest.mark.parametrize(("lines", "is_long"), [(MAX_LINES, False), (MAX_LINES + 1, True)])
def test_the_checker_of_sizes(lines: int, is_long: bool) -> None:
    assert (long_files({"a.py": "x\n" * lines}) == {"a.py"}) is is_long
