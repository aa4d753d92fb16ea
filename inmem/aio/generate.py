"""Writes the facades of asyncio from those of the primitives: `python -m inmem.aio.generate [--check]`.

Invariant: nothing here names a primitive. All that `inmem.primitives.facades`
has gets its twin: a class `X` the class `AsyncX` of the same bases, with the
same methods. A class that has a sink awaits what its own methods return; other
classes read, and what they return is there. A method that returns a context
manager `C` is not awaited: its twin gives an `AsyncC` of it, for `async with`.
That one is written by hand: `inmem.aio.x` has it, if `C` is of a module `x`.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, get_args

import inmem.primitives.facades as table
from inmem.primitives.byrun import ByRun

HERE: Final = Path(__file__).parent
PACKAGE: Final = "inmem.aio.facades"
HEAD: Final = '"""{}: written by `python -m inmem.aio.generate`, and not by hand."""\n'
WIDTH: Final = 110

Imports = set[tuple[str, str]]  # module, and name in it; an empty name is the module itself


# --- what is there ----------------------------------------------------------------------------------


@cache
def source_of(module: str) -> tuple[str, ast.Module]:
    """The text of a module, and what it says."""
    text = inspect.getsource(sys.modules[module])
    return text, ast.parse(text)


def node_of(cls: type) -> ast.ClassDef:
    """What a module says of a class."""
    body = source_of(cls.__module__)[1].body
    return next(node for node in body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


@cache
def facades() -> list[type]:
    """The classes that handles have, after what they are made of; those that take the run first are last."""
    used = [value for value in vars(table).values() if isinstance(value, type) and is_facade(value)]
    found: dict[type, None] = {}
    for cls in sorted(used, key=lambda each: (issubclass(each, ByRun), node_of(each).lineno)):
        found |= dict.fromkeys(
            each for each in reversed(cls.__mro__) if is_facade(each) and not each.__name__.startswith("_")
        )
    return [*found]


def is_facade(cls: type) -> bool:
    """Whether a class is of a primitive, and not what all of them share."""
    return cls.__module__.startswith("inmem.primitives.") and cls.__module__.count(".") > 2


def own_methods(cls: type) -> Iterator[tuple[type, ast.FunctionDef]]:
    """The public methods that a class defines, or takes from a private base; and where each is from."""
    for owner in (cls, *cls.__bases__):
        if owner is cls or (is_facade(owner) and owner.__name__.startswith("_")):
            for node in node_of(owner).body:
                if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                    assert not node.decorator_list, f"{cls.__name__}.{node.name}: what would its twin be?"
                    yield owner, node


def has_sink(cls: type) -> bool:
    """Whether a class writes, or waits."""
    return any("_sink" in (*vars(each).get("__slots__", ()), *inspect.get_annotations(each))
               for each in cls.__mro__)  # fmt: skip


# --- one method -------------------------------------------------------------------------------------


class Method:
    """A method, as text."""

    def __init__(self, owner: type, node: ast.FunctionDef) -> None:
        self.name = node.name
        self._module = owner.__module__
        every = node.args
        required = len(every.args) - len(every.defaults)
        self.parameters: list[str] = []
        self.arguments: list[str] = []
        for n, argument in enumerate(every.args[1:], 1):
            self._take(argument, every.defaults[n - required] if n >= required else None, "{0}")
        if every.vararg:
            self._take(every.vararg, None, "*{0}", "*")
        elif every.kwonlyargs:
            self.parameters.append("*")
        for argument, default in zip(every.kwonlyargs, every.kw_defaults, strict=True):
            self._take(argument, default, "{0}={0}")
        if every.kwarg:
            self._take(every.kwarg, None, "**{0}", "**")
        assert node.returns is not None
        self.returns = self._text(node.returns)
        self.names = {
            each.id for part in (node.args, node.returns) for each in ast.walk(part)
            if isinstance(each, ast.Name)
        }

    def _text(self, node: ast.expr) -> str:
        return " ".join(str(ast.get_source_segment(source_of(self._module)[0], node)).split())

    def _take(self, argument: ast.arg, default: ast.expr | None, given: str, stars: str = "") -> None:
        assert argument.annotation is not None
        end = "" if default is None else f" = {self._text(default)}"
        self.parameters.append(f"{stars}{argument.arg}: {self._text(argument.annotation)}{end}")
        self.arguments.append(given.format(argument.arg))

    def twin(self, cls: type, imports: Imports) -> list[str]:
        """The asynchronous method of the same name."""
        streams = self.returns.startswith("Iterator[")
        if is_context(getattr(sys.modules[self._module], self.returns, None)):
            return self._context(cls, imports)
        awaits = has_sink(cls) or issubclass(cls, ByRun)
        returns = f"Async{self.returns}" if streams else self.returns
        start = f"    {'' if streams else 'async '}def {self.name}("
        found = filled(start, ["self", *self.parameters], f") -> {returns}:")
        call = f"self._sync.{self.name}("
        if self.returns == "NoReturn":
            call, arguments = f"        {cls.__name__}.{self.name}(", ["self._sync", *self.arguments]
            found += filled(call, arguments, ")")
        elif streams and not awaits:
            imports.add(("inmem.aio.wrapping", "Each"))
            found += filled(f"        return Each({call}", self.arguments, "))")
        else:
            call = call if streams or not awaits else f"await {call}"
            if returns == "Any":
                found += filled(f"        return {call}", self.arguments, ")")
            else:
                result = "returned" if {"result", "result=result"} & {*self.arguments} else "result"
                found += filled(f"        {result}: {returns} = {call}", self.arguments, ")")
                found.append(f"        return {result}")
        for name in self.names - {"Iterator"} if streams else self.names:
            imports |= where(name, self._module)
        if streams:
            imports.add(("collections.abc", "AsyncIterator"))
        return found


    def _context(self, cls: type, imports: Imports) -> list[str]:
        """The asynchronous method that returns a context manager."""
        made: type = getattr(sys.modules[self._module], self.returns)
        returns = f"Async{self.returns}"
        imports.add((f"inmem.aio.{made.__module__.rpartition('.')[2]}", returns))
        found = filled(f"    def {self.name}(", ["self", *self.parameters], f") -> {returns}:")
        call = f"self._sync.{self.name}("
        if issubclass(cls, ByRun):
            found += filled(f"        result: {returns} = {call}", self.arguments, ")")
            found.append("        return result")
        else:
            found += filled(f"        return {returns}({call}", self.arguments, "))")
        for name in self.names - {self.returns}:
            imports |= where(name, self._module)
        return found


def is_context(found: object) -> bool:
    """Whether something is a class of context managers."""
    return isinstance(found, type) and hasattr(found, "__enter__")


def filled(head: str, items: list[str], tail: str) -> list[str]:
    """Items between brackets, on one line or on more."""
    if len(line := f"{head}{', '.join(items)}{tail}") <= WIDTH:
        return [line]
    indent = " " * (len(head) - len(head.lstrip()))
    lines = [f"{indent}    {items[0]}"]
    for item in items[1:]:
        if len(lines[-1]) + len(item) + 3 <= WIDTH:
            lines[-1] += f", {item}"
        else:
            lines[-1] += ","
            lines.append(f"{indent}    {item}")
    if len(lines) > 1:
        lines[-1] += ","
    return [head, *lines, f"{indent}{tail}"]


def where(name: str, module: str) -> Imports:
    """Where a name of a module is from, nowhere if every module has it."""
    for node in source_of(module)[1].body:
        if isinstance(node, ast.Import) and name in (each.name for each in node.names):
            return {(name, "")}
        if isinstance(node, ast.ImportFrom) and name in (each.asname or each.name for each in node.names):
            return {(str(node.module), name)}
    return set() if hasattr(builtins, name) else {(module, name)}


# --- one class --------------------------------------------------------------------------------------


def twin(cls: type, imports: Imports) -> list[str]:
    """The asynchronous class for one."""
    imports |= {("inmem.aio.wrapping", "documented"), (cls.__module__, cls.__name__)}
    bases = [
        with_twins(node, cls.__module__, imports) for node in node_of(cls).bases
        if not (isinstance(node, ast.Name) and node.id.startswith("_"))
    ]
    if not any(base.startswith(("Async", "ByRun[")) for base in bases):
        imports.add(("inmem.aio.wrapping", "AsyncFacade"))
        bases.insert(0, "AsyncFacade")
    body = run_first(cls, imports) if issubclass(cls, ByRun) else bound(cls, imports)
    return [f"@documented({cls.__name__})", f"class Async{cls.__name__}({', '.join(bases)}):", *body]


def with_twins(node: ast.expr, module: str, imports: Imports) -> str:
    """An expression, with the twin of each facade in its place."""
    text = ast.unparse(node)
    for name in {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}:
        if getattr(sys.modules[module], name, None) in facades():
            text = re.sub(rf"\b{name}\b", f"Async{name}", text)
        else:
            imports |= where(name, module)
    return text


def bound(cls: type, imports: Imports) -> list[str]:
    """The body of one that is bound to a run."""
    lines = ["    __slots__ = ()"]
    for each in own_methods(cls):
        lines += ["", *Method(*each).twin(cls, imports)]
    return lines


def run_first(cls: type, imports: Imports) -> list[str]:
    """The body of one that takes the run first. What it does itself, it does with what is bound to a run."""
    (of_run,) = get_args(vars(cls)["__orig_bases__"][0])
    made, written = [], []
    for node in node_of(cls).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            imports.add(("inmem.primitives.byrun", ast.unparse(node.value.func)))
            value = with_twins(node.value, cls.__module__, imports)
            made.append(f"    {ast.unparse(node.targets[0])} = {value}")
    for owner, node in own_methods(cls):
        if is_only_by_run(getattr(cls, node.name), getattr(of_run, node.name, None)):
            made.insert(0, f"    {node.name} = by_run(Async{of_run.__name__}.{node.name})")
        else:
            written += ["", *Method(owner, node).twin(cls, imports)]
    slots = '("_sync",)' if written else "()"
    start = [f"    __slots__ = {slots}", "", f'    KIND = "{cls.KIND}"', ""]  # type: ignore[attr-defined]
    if written:
        imports |= {("inmem.primitives.byrun", "Host"), ("typing", "Any")}
        start += [
            "    def __init__(self, database: Host) -> None:", "        super().__init__(database)",
            f"        self._sync: Any = {cls.__name__}(database)", "",
        ]
    return [*start, *made, *written]


def is_only_by_run(method: Callable[..., Any], of_run: Callable[..., Any] | None) -> bool:
    """Whether a method has the arguments of one that is bound to a run, after the run."""
    if of_run is None:
        return False
    _, *of_all = inspect.signature(method).parameters.values()
    _, *of_one = inspect.signature(of_run).parameters.values()
    run = inspect.Parameter("run_id", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation="str | OfRun")
    return of_all == [run, *of_one]


# --- the files --------------------------------------------------------------------------------------


def module_of(primitive: str) -> str:
    """The module with the twins of one primitive."""
    imports: Imports = set()
    lines = []
    for cls in facades():
        if cls.__module__.split(".")[2] == primitive:
            lines += ["", "", *twin(cls, imports)]
    return written(f"The facades of {primitive} for asyncio", imports, lines)


def facade_sets() -> str:
    """The module with the twins of `inmem.primitives.facades`."""
    imports: Imports = set()
    lines = []
    for node in source_of(table.__name__)[1].body:
        if isinstance(node, ast.ClassDef):
            imports.add((table.__name__, node.name))
            lines += ["", "", *set_of(node, imports)]
    return written("The attributes of handles for asyncio", imports, lines)


def set_of(node: ast.ClassDef, imports: Imports) -> list[str]:
    """A class that has the facades of one kind of handle."""
    made = next(each for each in node.body if isinstance(each, ast.FunctionDef))
    method = Method(getattr(table, node.name), made)
    for name in method.names:
        imports |= where(name, table.__name__)
    lines = [f"class Async{node.name}:", f'    """{ast.get_docstring(node)}"""', ""]
    if has_slots := [ast.unparse(each) for each in node.body if isinstance(each, ast.Assign)]:
        lines += [f"    {has_slots[0]}".replace("'", '"'), ""]
    lines += filled("    def __init__(", ["self", *method.parameters], ") -> None:")
    given = ", ".join(method.arguments)
    is_bound = len(method.arguments) > 1
    if is_bound:
        lines += filled(f"        sync = {node.name}(", method.arguments, ")")
    else:
        imports.discard((table.__name__, node.name))
    for each in made.body:
        assert isinstance(each, ast.Assign) and isinstance(each.value, ast.Call)
        name, cls = ast.unparse(each.targets[0]), getattr(table, ast.unparse(each.value.func))
        imports.add((f"{PACKAGE}.{cls.__module__.split('.')[2]}", f"Async{cls.__name__}"))
        argument = name.replace("self", "sync") if is_bound else given
        lines.append(f"        {name} = Async{cls.__name__}({argument})")
    return lines


def written(what: str, imports: Imports, lines: list[str]) -> str:
    """The text of a module."""
    head = [HEAD.format(what), "from __future__ import annotations", ""]
    head += sorted(f"import {module}" for module, name in imports if not name and is_of_python(module))
    modules = sorted({module for module, name in imports if name}, key=str.lower)
    for ours in (False, True):
        for module in modules:
            if is_of_python(module) is not ours:
                names = sorted((name for of, name in imports if of == module and name), key=as_isort)
                head += imported(module, names)
        head += [] if ours else [""]
    return "\n".join([*head, *lines, ""])


def is_of_python(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def as_isort(name: str) -> tuple[int, str]:
    """The order of names in an import: constants, classes, functions."""
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name.lower())


def imported(module: str, names: list[str]) -> list[str]:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= WIDTH:
        return [line]
    return [f"from {module} import (", *(f"    {name}," for name in names), ")"]


def files() -> dict[Path, str]:
    """What each file has to say."""
    primitives = dict.fromkeys(cls.__module__.split(".")[2] for cls in facades())
    found = {HERE / "facades" / f"{each}.py": module_of(each) for each in primitives}
    found[HERE / "facades" / "__init__.py"] = HEAD.format("The facades for asyncio")
    found[HERE / "facade_sets.py"] = facade_sets()
    return found


def main(arguments: list[str]) -> int:
    """Write the files; or with `--check` say which are not what they should be."""
    stale = {
        path: text for path, text in files().items()
        if not path.exists() or path.read_text("utf-8") != text
    }
    for path, text in stale.items():
        if "--check" not in arguments:
            path.write_text(text, "utf-8")
        print(f"{path.relative_to(HERE)} {'is stale' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
