"""One word, one meaning: no two classes of the package share a name."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import inmem

PACKAGE = Path(inmem.__file__).parent
# These still do. A name that is not shared any more has to leave the list.
SHARED = {"Position", "Snapshot", "Source", "State", "Transaction"}


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    shared = {name: where for name, where in places.items() if len(where) > 1}
    assert shared.keys() == SHARED, shared
