"""No two classes share a name, and no file is over 500 lines."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping

import pytest
from architecture.known import CLASS_NAMES, LONG_FILES
from architecture.modules import PACKAGE, real_modules

MAX_LINES = 500
ADAPTERS = "inmem.adapters."


def shared_names(modules: Mapping[str, str]) -> set[str]:
    """The names that more than one class has, nested ones too.

    What packages of `inmem.adapters` export is named as their ecosystems name it: it may have the name of
    what another one exports, and of no other class.
    """
    trees = {module: ast.parse(source) for module, source in modules.items()}
    exported = {
        (module.removesuffix(".__init__"), name) for module, tree in trees.items()
        if module.startswith(ADAPTERS) for name in exports(tree)
    }
    counts: Counter[str] = Counter()
    public = set()
    for module, tree in trees.items():
        package = ADAPTERS + module.removeprefix(ADAPTERS).partition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                is_first = (package, node.name) not in public
                if (package, node.name) in exported and is_first:
                    public.add((package, node.name))
                else:
                    counts[node.name] += 1
    counts.update({name for _, name in public})
    return {name for name, count in counts.items() if count > 1}


def exports(tree: ast.Module) -> set[str]:
    """The names in `__all__`."""
    return {
        name for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for name in ast.literal_eval(node.value)
    }


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


EXPORTED = {"inmem.adapters.x.__init__": "__all__ = ['A']", "inmem.adapters.x.b": "class A: ..."}
EXPORTED_TOO = {"inmem.adapters.y.__init__": "__all__ = ['A']", "inmem.adapters.y.z": "class A: ..."}


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({"inmem.a": "class A: ...", "inmem.b": "class A: ..."}, {"A"}),
        ({"inmem.a": "class A:\n    class B: ...", "inmem.b": "def f():\n    class B: ..."}, {"B"}),
        ({"inmem.a": "class A: ...\nclass A: ..."}, {"A"}),
        ({"inmem.a": "class A: ...", "inmem.b": "class B: ...\nA = B"}, set()),
        (EXPORTED | EXPORTED_TOO, set()),
        (EXPORTED | {"inmem.adapters.y.z": "class A: ..."}, {"A"}),  # not exported
        (EXPORTED | {"inmem.b": "class A: ..."}, {"A"}),
        (EXPORTED | {"inmem.adapters.x.c": "class A: ..."}, {"A"}),
    ],
)
def test_the_checker_of_names(modules: dict[str, str], expected: set[str]) -> None:
    assert shared_names(modules) == expected


@pytest.mark.parametrize(("lines", "is_long"), [(MAX_LINES, False), (MAX_LINES + 1, True)])
def test_the_checker_of_sizes(lines: int, is_long: bool) -> None:
    assert (long_files({"a.py": "x\n" * lines}) == {"a.py"}) is is_long
