"""What coding agents read is current: `python docs/site/llms.py` writes it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import inmem
import inmem.exchange
import inmem.steps

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "run python docs/site/llms.py"


@pytest.fixture(scope="module")
def llms() -> ModuleType:
    for name in ("langgraph", "agents", "key_value.aio", "dogpile.cache", "huey", "mcp", "opentelemetry"):
        pytest.importorskip(name, reason="the reference has all adapters, and some extra is not installed")
    spec = importlib.util.spec_from_file_location("llms", DOCS / "site" / "llms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_files_are_current(llms: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert llms.main(["--check"]) == 0, f"{capsys.readouterr().out}{AGAIN}"


def test_a_file_that_is_not_is_noticed_and_written(
    llms: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llms, "short", lambda: "now")
    monkeypatch.setattr(llms, "full", lambda: "the same")
    monkeypatch.setattr(llms, "DOCS", tmp_path)
    (tmp_path / "llms.txt").write_text("before")
    (tmp_path / "llms-full.txt").write_text("the same")
    assert llms.main(["--check"]) == 1
    assert capsys.readouterr().out == "not current: llms.txt\n"
    assert llms.main([]) == 0 and llms.main(["--check"]) == 0
    assert (tmp_path / "llms.txt").read_text() == "now"
    assert llms.main(["--chekc"]) == 2


def test_the_list_has_every_page_and_what_each_is_about() -> None:
    entries = re.findall(r"^- \[.+?\]\((.+?)\): (.+)$", (DOCS / "llms.txt").read_text("utf-8"), re.MULTILINE)
    pages = {
        str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md")
        if file.parent.name != "reference" and file.name != "MAPPING.md"
    }  # fmt: skip
    assert {file for file, _ in entries} == pages
    for file, about in entries:
        assert re.match(r"[\w`]", about) and 20 < len(about) < 250, f"{file}: {about}"


def test_the_whole_has_every_public_name() -> None:
    text = (DOCS / "llms-full.txt").read_text(encoding="utf-8")
    names = {f"inmem.{name}" for name in set(inmem.__all__) - {"__version__"}}
    names |= {f"inmem.exchange.{name}" for name in inmem.exchange.__all__}
    names |= {f"inmem.steps.{name}" for name in inmem.steps.__all__}
    assert not [name for name in sorted(names) if f"#### `{name}`\n" not in text]
    put = "put(self, run_id: str | RunScope, key: str, value: Any, *, ttl: float | timedelta | None = None)"
    assert put in text


def test_what_the_two_files_point_to_is_there() -> None:
    for name in ("llms.txt", "llms-full.txt"):
        targets = re.findall(r"\]\((?!\w+:|#)([^)#]+)", (DOCS / name).read_text(encoding="utf-8"))
        assert len(targets) > 30
        assert not [target for target in targets if not (DOCS / target).is_file()]
