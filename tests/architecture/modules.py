"""Reading the package as source: its modules, what each imports, and which imports go in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "inmem"

# Calls that import what cannot be read off the source.
COMPUTED = frozenset({"__import__", "import_module", "importlib.import_module"})


def real_modules() -> dict[str, str]:
    """Name (packages as `x.__init__`) and source of every module of `inmem`."""
    return modules_of(PACKAGE)


def modules_of(package: Path) -> dict[str, str]:
    """The same of a copy of the package."""
    return {
        ".".join(("inmem", *path.relative_to(package).with_suffix("").parts)): path.read_text("utf-8")
        for path in sorted(package.rglob("*.py"))
    }


def imports_of(module: str, source: str, known: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import, wherever it is; a name from a package may be a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, named(alias.name, known)
        elif isinstance(node, ast.ImportFrom):
            base = origin(module, node)
            for alias in node.names:
                inner = named(f"{base}.{alias.name}", known)
                yield node.lineno, inner if inner in known else named(base, known)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in COMPUTED:
            yield node.lineno, ast.unparse(node.func)


def origin(module: str, node: ast.ImportFrom) -> str:
    """The absolute name of the module that an import takes names from."""
    if not node.level:
        return node.module or ""
    package = module.split(".")[:-1]  # of `inmem.storage.__init__` as of `inmem.storage.store`
    return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])


def named(name: str, known: frozenset[str]) -> str:
    """A package is the module that its `__init__` is."""
    return f"{name}.__init__" if f"{name}.__init__" in known or name == "inmem" else name


def import_graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """The modules that each module imports."""
    known = frozenset(modules)
    return {
        module: {target for _, target in imports_of(module, source, known) if target in known}
        for module, source in modules.items()
    }


def circles(graph: Mapping[str, Iterable[str]]) -> set[tuple[str, ...]]:
    """The groups of modules that reach each other by imports, each sorted (Kosaraju's algorithm)."""
    reverse: dict[str, set[str]] = {module: set() for module in graph}
    for module, targets in graph.items():
        for target in targets:
            reverse[target].add(module)
    finished: list[str] = []
    seen: set[str] = set()
    for module in graph:
        finished += _finishing_order(graph, module, seen)
    found: set[tuple[str, ...]] = set()
    seen = set()
    for module in reversed(finished):
        group = _finishing_order(reverse, module, seen)
        if len(group) > 1 or any(module in graph[module] for module in group):
            found.add(tuple(sorted(group)))
    return found


def _finishing_order(graph: Mapping[str, Iterable[str]], start: str, seen: set[str]) -> list[str]:
    """All that is reached from a module and was not seen, each after what it reaches."""
    if start in seen:
        return []
    seen.add(start)
    order: list[str] = []
    stack = [(start, iter(graph[start]))]
    while stack:
        module, targets = stack[-1]
        for target in targets:
            if target not in seen:
                seen.add(target)
                stack.append((target, iter(graph[target])))
                break
        else:
            order.append(module)
            stack.pop()
    return order
