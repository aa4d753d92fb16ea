"""The documents as a whole: every page has its place, and tables and lists say what the code says.

`make docs` builds the site, and fails for links, anchors and files; what can be
known without building is checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from architecture.test_imports import LAYERS
from otlp_receiver import receiver
from support import stop_writer
from typer.main import get_command
from typer.testing import CliRunner

import inmem
import inmem.aio
import inmem.exchange
import inmem.steps
from inmem import errors
from inmem.cli.app import app
from inmem.config import (
    ENTRY_BYTES,
    MAX_COMMIT_BYTES,
    MAX_TAGS,
    MAX_TRANSACTION_OPS,
    MIB,
    Settings,
)
from inmem.keys import MAX_COMPONENT_CHARS, MAX_LABEL_BYTES, MAX_NAME_BYTES, MAX_RUN_CHARS
from inmem.primitives.runs.rules import TRANSITIONS
from inmem.values import MAX_DEPTH, MAX_VALUE_BYTES
from inmem.wire import ERRORS_BY_CODE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

ELSEWHERE = {"index.md", "changelog.md"}  # made of README.md and CHANGELOG.md
WRITTEN_BY_BENCH = "PERFORMANCE.md"  # until it is, the site shows what README.md says


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def plain(text: str) -> str:
    """A text without line breaks and marks, as it is compared."""
    return " ".join(text.replace("`", "").split())


# --- the site -----------------------------------------------------------------------------------


def under(heading: str) -> str:
    """What mkdocs.yml has under a heading, up to the next empty line."""
    return SITE.partition(f"\n{heading}\n")[2].partition("\n\n")[0] + "\n"


def test_every_page_has_its_place() -> None:
    listed = re.findall(r"^ +- [^:]+: (\S+\.md)$", under("nav:"), re.MULTILINE)
    left_out = re.findall(r"^  (\S+)$", under("exclude_docs: |"), re.MULTILINE)
    pages = {
        str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")
        if not str(path.relative_to(DOCS)).startswith(tuple(left_out))
    }  # fmt: skip
    assert len(listed) == len(set(listed))
    assert set(listed) - {WRITTEN_BY_BENCH} == (pages | ELSEWHERE) - {WRITTEN_BY_BENCH}


def test_the_site_is_built_strictly_and_loads_nothing() -> None:
    assert re.search(r"^strict: true$", SITE, re.MULTILINE)
    assert re.search(r"^  font: false$", SITE, re.MULTILINE)
    assert "://" not in SITE
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "mkdocs build --strict" in makefile and re.search(r"^docs: .*## ", makefile, re.MULTILINE)
    assert re.search(r"^\.PHONY: .*\bdocs\b", makefile, re.MULTILINE), "there is a directory of that name"


def test_what_the_first_page_points_to_is_there() -> None:
    """README.md is shown at another place: only links that the site moves along are in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!\w+://|#)([^)#]+)", text):
        assert (ROOT / target).is_file(), target
        assert target.startswith("docs/") or target == "CHANGELOG.md" or not target.endswith(".md"), target


def test_the_readme_keeps_a_place_for_figures() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"<!-- performance:begin -->\n.+\n<!-- performance:end -->", text, re.DOTALL)


# --- the reference ------------------------------------------------------------------------------


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(named) == len(set(named))
    wanted = {f"inmem.{name}" for name in set(inmem.__all__) - set(errors.__all__) - {"__version__"}}
    wanted |= {  # what `db.run(run_id)` has: its methods are those of the facades that take the run first
        "inmem.primitives.kv.facade.RunKV", "inmem.primitives.events.facade.RunEvents",
        "inmem.primitives.cells.facade.RunCells", "inmem.primitives.traces.facade.RunTraces",
        "inmem.primitives.runs.facade.RunRuns", "inmem.primitives.leases.facade.RunLeases",
        "inmem.primitives.queues.facade.RunQueues",
    }
    wanted |= {f"inmem.exchange.{name}" for name in inmem.exchange.__all__}
    wanted |= {f"inmem.steps.{name}" for name in inmem.steps.__all__}
    wanted |= {"inmem.adapters.langgraph.InmemSaver", "inmem.adapters.langgraph.InmemStore"}
    wanted |= {"inmem.adapters.openai_agents.InmemSession"}
    wanted |= {"inmem.adapters.key_value.InmemStore", "inmem.adapters.dogpile.InmemBackend"}
    wanted |= {
        f"inmem.adapters.otel.{name}" for name in
        ("InmemSpanExporter", "SpansNotSentError", "export", "follow", "settle", "span_context")
    }
    wanted |= {"inmem.adapters.huey.InmemHuey", "inmem.adapters.huey.InmemStorage"}
    wanted |= {f"inmem.adapters.mcp.{name}" for name in ("mcp_server", "serve_http", "serve_stdio")}
    wanted |= {f"inmem.aio.{name}" for name in vars(inmem.aio) if name == "open" or name.startswith("Async")}
    assert set(named) == wanted | {"inmem.errors"}  # which shows all of its own


# --- tables -------------------------------------------------------------------------------------


def rows(text: str, columns: int) -> list[list[str]]:
    found = [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in text.splitlines()
             if line.startswith("| ")]  # fmt: skip
    return [row for row in found if len(row) == columns]


def test_the_table_of_errors_is_that_of_the_code() -> None:
    head, *table = rows(text_of("errors.md"), 4)
    assert head == ["code", "class", "retryable", "what to do"]
    expected = [
        [f"`{code}`", f"`{cls.__name__}`", "yes" if cls.retryable else "no", cls.default_hint]
        for code, cls in ERRORS_BY_CODE.items()
    ]
    assert table == expected


def test_the_table_of_statuses_is_that_of_the_code() -> None:
    allowed: dict[str, set[str]] = {}
    for left, right in rows(text_of("guide/runs.md"), 2)[1:]:
        for name in left.split(", "):
            allowed[name.lower()] = set() if right == "nothing" else set(right.lower().split(", "))
    assert allowed == {status.value: {to.value for to in reached} for status, reached in TRANSITIONS.items()}


def test_the_table_of_layers_is_that_of_the_imports() -> None:
    table = text_of("ARCHITECTURE.md").partition("\n## Layers\n")[2].partition("\n## ")[0]
    told = tuple(tuple(re.findall(r"`([\w.]+)`", names)) for names, _ in rows(table, 2)[1:])
    assert told == LAYERS


def test_the_limits_that_are_told_are_those_of_the_code() -> None:
    text = plain(text_of("concepts.md"))
    for sentence in (
        f"1 to {MAX_RUN_CHARS} characters", f"1 to {MAX_COMPONENT_CHARS} of the same",
        f"1 to {MAX_NAME_BYTES} bytes", f"1 to {MAX_LABEL_BYTES} bytes", f"at most {MAX_TAGS} tags",
        f"{MAX_VALUE_BYTES // MIB} MiB encoded, nested {MAX_DEPTH} deep",
        f"{MAX_COMMIT_BYTES // MIB} MiB and {MAX_TRANSACTION_OPS:,} writes", f"counts {ENTRY_BYTES:,} bytes",
        f"snapshot_max_age_s ({Settings().snapshot_max_age_s:g} s)", f"timeout_s, {Settings().timeout_s:g} s",
    ):  # fmt: skip
        assert sentence in text, sentence


# --- the command line ---------------------------------------------------------------------------


def sections() -> dict[str, str]:
    """The text about each command, by the words of its heading."""
    parts = re.split(r"^### (.+)$", text_of("cli.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def fields(section: str) -> set[str]:
    """The names in the first sentence after "`--json`:", which is what a document has at its top."""
    return sentence_after("`--json`:", section)


def sentence_after(start: str, section: str) -> set[str]:
    sentence = " ".join(section.partition(start)[2].split()).partition(". ")[0]
    return set(re.findall(r"`(\w+)`", sentence))


def names(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    for name, sub in command.commands.items():
        if getattr(sub, "commands", None):
            yield from names(sub, (*words, name))
        else:
            yield " ".join((*words, name))


def test_every_command_has_a_section_and_an_example() -> None:
    told = sections()
    assert {"config show" if name == "config" else name for name in told} == set(names(get_command(app)))
    for name, section in told.items():
        assert f"inmem {name} " in section.partition("```sh\n")[2].partition("```")[0], name
        assert fields(section), name


def test_what_json_gives_is_what_is_told(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but `mcp`, `serve`, `tail` and `ui`, which do not end by themselves."""
    monkeypatch.chdir(scratch)
    told = {name: fields(section) for name, section in sections().items()}
    seen = {"mcp", "serve", "tail", "ui"}

    def ask(name: str, *arguments: str) -> Any:
        result = CliRunner().invoke(app, [*name.split(), *arguments, "--json"])
        assert result.exit_code in (0, 3), (name, result.output)
        lines = result.stdout.splitlines()
        document = json.loads(lines[-1] if lines[-1].endswith("}") and len(lines[-1]) > 1 else result.stdout)
        document = document[0] if isinstance(document, list) else document
        asked = told[name] if document.get("serving") is not False else unserved
        assert set(document) == asked | (told["status"] if name == "top" else set()), name
        seen.add(name)
        return document

    unserved = sentence_after("what the directory says:", sections()["status"])
    try:
        ask("demo", "--seconds", "1", "--workers", "1")
        ask("init", "-d", "./data")
        ask("start", "-d", "./data")
        with inmem.open("./data") as db:
            db.runs.create_run(run_id="r")
            db.events.append("r", "planned", {"steps": 3})
            db.cells.init("r", "phase", "planning")
            db.traces.record("r", inmem.Thought("next"))
            db.leases.acquire("r", "deploy", ttl_s=30)
            db.queues.put_many("r", "mail", [1, 2])
            job = db.queues.claim("r", "mail")
            assert job is not None
            db.queues.nack(job, retry=False)
        ask("kv put", "r", "goal", '{"city": "Oslo"}', "-d", "./data")
        for name in ("run", "events", "cells", "traces", "leases", "verify", "kv ls", "queue list"):
            ask(name, "r", "-d", "./data")
        for name in ("status", "runs", "check", "checkpoint", "clock", "config", "doctor"):
            ask(name, "-d", "./data")
        ask("kv get", "r", "goal", "-d", "./data")
        ask("lease release", "r", "deploy", "-d", "./data")
        ask("kv del", "r", "goal", "-d", "./data")
        ask("kv clear", "r", "booked", "-d", "./data")
        ask("queue put", "r", "mail", "1", "-d", "./data")
        for name in ("queue counts", "queue peek", "queue dead"):
            ask(name, "r", "mail", "-d", "./data")
        for name in ("queue get", "queue requeue"):
            ask(name, "r", "mail/0", "-d", "./data")
        ask("queue purge", "r", "mail", "-d", "./data")
        ask("report", "r", "-d", "./data", "-o", "r.html")
        ask("top", "-d", "./data", "--interval", "0.1", "--count", "1")
        with receiver() as otlp:
            ask("otel", "r", "--endpoint", otlp.url, "-d", "./data")
        ask("export", "-d", "./data", "-o", "all.jsonl")
        ask("import", "-d", "./data", "all.jsonl")
        ask("backup", "-d", "./data", "./data.backup")
        ask("restore", "./data.backup", "-d", "./restored")
        ask("stop", "-d", "./data")
        assert ask("status", "-d", "./data")["left"] in ("cleanly", "killed")
        ask("config set", "durability", "sync", "-d", "./data")
        ask("salvage", "-d", "./data", "./salvaged")
    finally:
        stop_writer(scratch / "data")
    assert seen == set(told)
