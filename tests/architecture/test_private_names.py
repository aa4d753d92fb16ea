"""No module uses the private names of another one.

A name with a leading underscore belongs to the module that defines it. The
types of expressions are not known here. So an attribute counts as another
module's if this module defines none of that name, or if the object is an
argument that is annotated with a class imported from the package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from architecture.known import PRIVATE_NAMES
from architecture.modules import origin, real_modules

PUBLIC = frozenset({"_replace", "_make", "_asdict", "_fields"})  # of named tuples


def private_names(module: str, source: str) -> set[str]:
    """The private names of other modules that a module uses."""
    tree = ast.parse(source)
    ours, foreign, found = set(), {"self", "cls"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {alias.asname or alias.name for alias in node.names if not is_ours(alias.name)}
        elif isinstance(node, ast.ImportFrom):
            base = origin(module, node)
            for alias in node.names:
                (ours if is_ours(base) else foreign).add(alias.asname or alias.name)
                if is_ours(base):
                    found |= set(private_parts(f"{base}.{alias.name}", module))
    own = set(defined(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own | PUBLIC:
            if not (isinstance(node.value, ast.Name) and node.value.id in foreign):
                found.add(ast.unparse(node))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            strangers = {
                argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if argument.annotation is not None and names_in(argument.annotation) & ours
            }
            found |= {
                ast.unparse(inner) for inner in ast.walk(node)
                if isinstance(inner, ast.Attribute) and is_private(inner.attr) and inner.attr not in PUBLIC
                and isinstance(inner.value, ast.Name) and inner.value.id in strangers
            }
    return found


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "inmem"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_parts(path: str, module: str) -> Iterator[str]:
    """The private parts of a dotted path, but for modules of the package that `module` is in."""
    parts = path.split(".")
    for at, part in enumerate(parts):
        if is_private(part) and not module.startswith(".".join(parts[:at]) + "."):
            yield part


def defined(tree: ast.Module) -> Iterator[str]:
    """The names that a module defines: functions, classes, variables, attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield from {node.attr} if ast.unparse(node.value) in ("self", "cls") else ()


def names_in(annotation: ast.expr) -> set[str]:
    """The names in an annotation, in one that is quoted too."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    return {node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)}


def test_no_module_uses_private_names_of_another() -> None:
    found = {
        (module, name) for module, source in real_modules().items() for name in private_names(module, source)
    }
    assert found == PRIVATE_NAMES


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from inmem.client.session import _Line", {"_Line"}),
        ("from ..client.session import _Line as Line", {"_Line"}),
        ("if TYPE_CHECKING:\n    from inmem.client.session import _Line", {"_Line"}),
        ("from inmem.primitives._common import Facade", {"_common"}),
        ("from inmem.primitives import _common", {"_common"}),
        ("from inmem.host import files\nfiles._forbidden()", {"files._forbidden"}),
        ("def f(db): return db._attachment.image", {"db._attachment"}),
        ("class A:\n    def f(self): return self.store._tables", {"self.store._tables"}),
        ("store._tables = None", {"store._tables"}),
        (
            "from inmem.database import Database\n"
            "class A:\n    def __init__(self, db: Database): self._attachment = db._attachment",
            {"db._attachment"},
        ),
        (
            "from inmem.database import Database\n"
            "class A:\n    def __init__(self, db: 'Database | None'): self._core = db._core",
            {"db._core"},
        ),
    ],
)
def test_the_checker_sees(source: str, expected: set[str]) -> None:
    assert private_names("inmem.maintenance.check", source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "from inmem.maintenance._common import report",
        "from inmem.version import __version__",
        "import os\nos._exit(0)",
        "from collections import namedtuple\nposition._replace(offset=1)",
        "class A:\n    def f(self, other: A): return other._f() + self._x\n    def _f(self): ...",
        "class A:\n    def __init__(self): self._x = 1\ndef read(a: A): return a._x",
        "x = object().__class__",
    ],
)
def test_the_checker_allows(source: str) -> None:
    assert private_names("inmem.maintenance.check", source) == set()
