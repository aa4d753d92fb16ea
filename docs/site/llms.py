"""Writes what coding agents read: `python docs/site/llms.py [--check]`.

`docs/llms.txt` lists the pages, each with its first sentence. `docs/llms-full.txt`
has the pages that are needed to write programs, and the whole public API with
signatures and docstrings. Nothing is written here that is not said elsewhere:
the order is that of mkdocs.yml, and the names are those of docs/reference.
See https://llmstxt.org for the form. mkdocs copies both files to the site.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
IN_FULL: Final = (  # the pages that are needed to write programs, in the order of reading
    "which.md", "concepts.md", "values.md", "guide/kv.md", "guide/events.md", "guide/cells.md",
    "guide/traces.md", "guide/runs.md", "guide/leases.md", "guide/queues.md", "guide/transactions.md",
    "guide/waiting.md", "guide/asyncio.md", "guide/steps.md", "guide/durability.md", "recipes.md",
    "errors.md", "caveats.md",
)  # fmt: skip
OPTIONAL: Final = ("Inside",)  # sections of mkdocs.yml whose pages nobody needs to use it
LEFT_OUT: Final = ("index.md", "changelog.md")
FENCE: Final = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#]+)")


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# --- the list ---------------------------------------------------------------------------------------


def nav() -> dict[str, list[tuple[str, str]]]:
    """Titles and files of mkdocs.yml by section; those that are in none begin the list."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    found: dict[str, list[tuple[str, str]]] = {"Start": []}
    section = "Start"
    for line in text.partition("\nnav:\n")[2].partition("\n\n")[0].splitlines():
        entry = re.fullmatch(r"( +)- ([^:]+):(?: (\S+\.md))?", line)
        if entry is None:
            raise ValueError(f"mkdocs.yml: {line}")
        indent, title, file = entry.groups()
        if file is None:
            section = title
            found[section] = []
        else:
            found["Start" if len(indent) == 2 else section].append((title, file))
    return found


def first_sentence(text: str) -> str:
    """What a page begins with, without its marks."""
    paragraph = text.partition("\n\n")[2].partition("\n\n")[0]
    plain = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", " ".join(paragraph.split()))
    return re.split(r"(?<=[.?])(?: |$)", plain)[0].rstrip(".")


def head() -> str:
    """The name, what it is, and how the README begins."""
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    description = re.findall(r"^site_description: (.+)$", site, re.MULTILINE)[0]
    begins = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n\n")[2].partition("\n\n## ")[0]
    begins = re.sub(r"!\[.*?\]\(.*?\)\n+", "", begins)
    return f"# inmem\n\n> {description}\n\n{begins.replace('](docs/', '](')}\n"


def short() -> str:
    """The text of llms.txt."""
    parts = [head(), "The public API and the guides in one file: [llms-full.txt](llms-full.txt)\n"]
    for section, pages in nav().items():
        entries = [
            f"- [{title}]({file}): {first_sentence(page(file))}" for title, file in pages
            if file not in LEFT_OUT and not file.startswith("reference/")
        ]
        name = "Optional" if section in OPTIONAL else section
        parts.append("\n".join([f"## {name}\n", *entries, ""]))
    return "\n".join(parts)


# --- everything in one file ---------------------------------------------------------------------------


def whole(name: str) -> str:
    """A page one level down, with links as seen from docs."""
    place = posixpath.dirname(name)

    def shifted(text: str) -> str:
        text = re.sub(r"^#", "##", text, flags=re.MULTILINE)
        return LINK.sub(lambda match: posixpath.normpath(posixpath.join(place, match[1])), text)

    text, parts, at = page(name), [], 0
    for fence in FENCE.finditer(text):
        parts += [shifted(text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, shifted(text[at:])])


class Shown(str):
    """An annotation as it is written."""

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, thing: Any) -> str:
    """How it is called."""
    found = inspect.signature(thing)

    def shown(annotation: Any) -> Any:
        return Shown(annotation) if isinstance(annotation, str) else annotation

    def given(default: Any) -> Any:
        if isinstance(default, FunctionType):
            return Shown(default.__name__)
        if isinstance(default, enum.Enum):
            return Shown(f"{type(default).__name__}.{default.name}")
        if isinstance(default, frozenset):  # whose order is another one in each process
            return Shown("{" + ", ".join(sorted(repr(given(each)) for each in default)) + "}")
        return default

    found = found.replace(
        parameters=[
            each.replace(annotation=shown(each.annotation), default=given(each.default))
            for each in found.parameters.values()
        ],
        return_annotation=shown(found.return_annotation),
    )
    text = f"{name}{found}"
    if " at 0x" in text:
        raise ValueError(f"{text} is another one in each process")
    kind = "async def " if inspect.iscoroutinefunction(thing) else ""
    return kind + text


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """What the reference shows of a class: what it has of its own, in order, if it is documented."""
    for name, raw in vars(cls).items():
        thing = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        if not name.startswith("_") and isinstance(thing, FunctionType | property) and thing.__doc__:
            yield name, thing


def entry(level: str, name: str, thing: Any) -> str:
    """Its heading, how it is called, and its docstring."""
    parts = [f"{level} `{name}`\n"]
    if isinstance(thing, FunctionType) or dataclasses.is_dataclass(thing):
        parts.append(f"```python\n{signature(name.rpartition('.')[2], thing)}\n```\n")
    if isinstance(thing, enum.EnumType):
        parts.append("Members: " + ", ".join(f"`{each.name}`" for each in thing) + "\n")
    doc = inspect.getdoc(thing) if getattr(thing, "__doc__", None) else None
    made_by_python = dataclasses.is_dataclass(thing) and str(doc).startswith(f"{name.rpartition('.')[2]}(")
    if doc and not made_by_python:
        parts.append(doc + "\n")
    return "\n".join(parts)


def described(path: str, wanted: list[str]) -> str:
    """A name of the reference, with its members."""
    module, _, name = path.rpartition(".")
    if path == "inmem.errors":
        errors = sys.modules[path]
        return "\n".join(entry("####", f"inmem.{each}", getattr(errors, each)) for each in errors.__all__)
    thing = getattr(loaded(module), name)
    parts = [entry("####", path, thing)]
    if isinstance(thing, type) and not isinstance(thing, enum.EnumType):
        parts += [
            entry("#####", f"{name}.{each}", member) for each, member in members(thing)
            if not wanted or each in wanted
        ]
    return "\n".join(parts)


def loaded(path: str) -> ModuleType:
    __import__(path)
    return sys.modules[path]


def reference(name: str) -> str:
    """A page of the reference, with what it only names, but for what is the same without the run."""
    text, parts = page(name), []
    for block in re.split(r"\n(?=::: |## )", text):
        asked = re.match(r"::: (\S+)\n?(.*)", block, re.DOTALL)
        if asked is None:
            shown = re.sub(r"^#", "###", block, flags=re.MULTILINE)
            shown = LINK.sub(lambda match: posixpath.normpath(f"reference/{match[1]}"), shown)
            parts.append(shown.rstrip() + "\n")
        elif not re.fullmatch(r"inmem\.primitives\..*\.Run\w+", asked[1]):
            chosen = re.findall(r"members: \[(.+)\]", asked[2])
            parts.append(described(asked[1], chosen[0].split(", ") if chosen else []))
            rest = re.sub(r"^    .*\n?", "", asked[2], flags=re.MULTILINE).strip()
            parts += [rest + "\n"] if rest else []
    return "\n".join(parts)


def full() -> str:
    """The text of llms-full.txt."""
    references = [file for _, file in nav()["Reference"] if file.startswith("reference/")]
    return "\n".join([
        head(), *(whole(name) for name in IN_FULL), "## Public API\n",
        "Methods are shown as they are called on a handle: `db.kv.put(run_id, ...)`. What is of one run has "
        "them without `run_id`: `db.run(run_id).kv.put(...)`, `txn.kv.put(...)`.\n",
        *(reference(name) for name in references),
    ])  # fmt: skip


def main(arguments: list[str]) -> int:
    """Write both files, or say whether they are current; the exit code."""
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = []
    for name, text in (("llms.txt", short()), ("llms-full.txt", full())):
        file = DOCS / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not arguments:
                file.write_text(text, encoding="utf-8")
    if stale:
        print(("not current: " if arguments else "written: ") + ", ".join(stale))
    return int(bool(stale and arguments))


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(ROOT))
    sys.exit(main(sys.argv[1:]))
