"""Examples in docstrings run: each module's on its own, and none is left out."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import pytest

PACKAGE = Path(__file__).parents[2] / "inmem"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

MODULES = sorted(
    ".".join(("inmem", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    return doctest.DocTestFinder(exclude_empty=True).find(module)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # an example may create "./data"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in examples_of(importlib.import_module(name)):
        skipped = [example for example in test.examples if example.options.get(doctest.SKIP)]
        assert not skipped, f"{test.name} skips {skipped[0].source}"
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_every_example_in_a_source_file_is_found() -> None:
    """A prompt in a file that no docstring of the module holds would never run."""
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__file__ is not None
        written = Path(module.__file__).read_text(encoding="utf-8").count(">>> ")
        # A method that facades share is found once in each of them.
        once = {test.docstring: test for test in examples_of(module)}
        found = sum(len(test.examples) for test in once.values())
        assert found == written, f"{name}: {written} examples are written, {found} are found"


def test_a_wrong_example_is_caught() -> None:
    module = ModuleType("wrong")
    module.__doc__ = ">>> 1 + 1\n3\n"
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for test in examples_of(module):
        runner.run(test, out=lambda text: None)
    assert (runner.failures, runner.tries) == (1, 1)
