"""No two modules import each other, directly or by way of others."""

from __future__ import annotations

import pytest
from architecture.known import CIRCLES
from architecture.modules import circles, import_graph, real_modules


def test_no_imports_go_in_a_circle() -> None:
    assert circles(import_graph(real_modules())) == CIRCLES


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ({"inmem.a": "import inmem.b", "inmem.b": "from inmem import a"}, {("inmem.a", "inmem.b")}),
        (
            {"inmem.a": "from inmem.b import x", "inmem.b": "def f():\n    import inmem.a"},
            {("inmem.a", "inmem.b")},
        ),
        (
            {"inmem.a": "if TYPE_CHECKING:\n    from inmem.b import B", "inmem.b": "from .a import A"},
            {("inmem.a", "inmem.b")},
        ),
        (
            {"inmem.a": "import inmem.b", "inmem.b": "import inmem.c", "inmem.c": "import inmem.a"},
            {("inmem.a", "inmem.b", "inmem.c")},
        ),
        (
            {"inmem.p.__init__": "from inmem.p.a import A", "inmem.p.a": "from inmem import p"},
            {("inmem.p.__init__", "inmem.p.a")},
        ),
        (
            {
                "inmem.a": "import inmem.b, inmem.c", "inmem.b": "import inmem.a",
                "inmem.c": "import inmem.d", "inmem.d": "import inmem.c",
            },
            {("inmem.a", "inmem.b"), ("inmem.c", "inmem.d")},
        ),
        ({"inmem.a": "import inmem.a"}, {("inmem.a",)}),
        ({"inmem.a": "import inmem.b, inmem.c", "inmem.b": "import inmem.c", "inmem.c": "import os"}, set()),
        ({"inmem.a": "from inmem.b import x, y", "inmem.b": ""}, set()),
    ],
)
def test_the_checker(modules: dict[str, str], expected: set[tuple[str, ...]]) -> None:
    assert circles(import_graph(modules)) == expected
