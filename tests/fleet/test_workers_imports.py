"""The programs use the public API alone, and their modules import one way."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "workers"

# From the ground up. A folder is one name.
ORDER = (
    "judge", "observer", "pool", "stores", "screen", "fleet", "stress", "chaos", "cli", "replay", "__main__"
)  # fmt: skip
# Recorded runs of agents are deprecated as a part of inmem and go to the programs with the next release.
PUBLIC = {"inmem", "inmem.exchange.recorded"}
SCREENS = {"screen", "cli"}  # worker processes start without these


def modules() -> dict[str, ast.Module]:
    """Every module by its dotted name below `workers`."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text(encoding="utf-8"))
        for path in ROOT.rglob("*.py")
    }


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level
            yield node.module


def test_only_what_is_public_of_inmem_is_used() -> None:
    used = {name for tree in modules().values() for name in imported(tree) if name.split(".")[0] == "inmem"}
    assert used == PUBLIC


def test_folders_import_one_way() -> None:
    for name, tree in modules().items():
        part = name.split(".")[0]
        for target in imported(tree):
            if target.startswith("workers."):
                allowed = ORDER if name.endswith("__main__") else ORDER[: ORDER.index(part) + 1]
                assert target.split(".")[1] in allowed, f"{name} imports {target}"


def test_modules_have_no_circle() -> None:
    needs = {
        name: {target.removeprefix("workers.") for target in imported(tree) if target.startswith("workers.")}
        for name, tree in modules().items()
    }
    while ready := [name for name, targets in needs.items() if not targets & needs.keys()]:
        for name in ready:
            del needs[name]
    assert not needs, f"in a circle, or behind one: {sorted(needs)}"


def test_worker_processes_load_no_screen() -> None:
    for name, tree in modules().items():
        if name not in SCREENS:
            assert not {target.split(".")[0] for target in imported(tree)} & {"typer", "rich"}, name


def test_a_name_is_of_one_class() -> None:
    names = Counter(
        node.name for tree in modules().values() for node in tree.body if isinstance(node, ast.ClassDef)
    )
    assert {name for name, count in names.items() if count > 1 and not name.startswith("_")} == set()
