"""What `import inmem` offers is exactly what is documented, and each of it is explained."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

import inmem
from inmem import errors

PUBLIC = {
    "__version__",
    # opening, and handles
    "open", "Database", "RunScope", "Status",
    "BackupReport", "CheckReport", "CheckpointReport", "RepairReport",
    # names
    "Namespace", "RunId", "TypeTag", "Key",
    # primitives and their records
    "Value",
    "KVStore", "Versioned", "Change", "PendingNumber",
    "EventLog", "Event", "Appended", "PendingAppend", "ChainVerification",
    "StateCell", "State", "PendingVersion",
    "TraceStore", "Trace", "TraceTree", "NewTrace",
    "ToolCall", "Decision", "Query", "Thought", "ErrorTrace", "Custom",
    "LeaseStore", "Lease", "HeldLease",
    "RunIndex", "RunMetadata", "RunStatus", "RunStats", "RunQuery", "CreateRunOptions", "DeletedRun",
    "is_valid_transition",
    "JobQueues", "Job", "HeldJob", "JobId", "JobInfo", "QueueCounts", "PendingJobId",
    # transactions
    "transactional", "Transaction", "Snapshot", "Pipeline", "Pending",
    *errors.__all__,
}  # fmt: skip

NOT_EXPLAINED = {"__version__", "Value"}  # a str and a type alias: they have no docstring of their own


def test_the_public_names_are_exactly_the_documented_ones() -> None:
    assert set(inmem.__all__) == PUBLIC
    assert len(inmem.__all__) == len(set(inmem.__all__))


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(inmem, name) is not None


def test_nothing_else_looks_public() -> None:
    strays = {
        name
        for name, value in vars(inmem).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert strays <= PUBLIC


def test_the_version_is_the_distribution_s() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    module, _, name = project["tool"]["setuptools"]["dynamic"]["version"]["attr"].rpartition(".")
    assert inmem.__version__ == getattr(importlib.import_module(module), name)


def test_the_package_is_typed() -> None:
    assert (Path(errors.__file__).parent / "py.typed").exists()


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """The public functions and properties that a class of ours defines or inherits from ours."""
    for owner in cls.__mro__:
        if owner.__module__.partition(".")[0] == "inmem":
            for name, value in vars(owner).items():
                function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if not name.startswith("_") and isinstance(function, FunctionType | property):
                    yield f"{cls.__name__}.{name}", value


def is_explained(thing: Any) -> bool:
    text = inspect.getdoc(thing) or ""
    generated = getattr(thing, "__name__", "?") + "("  # dataclass and NamedTuple write such a line
    return bool(text.strip()) and not text.startswith(generated)


@pytest.mark.parametrize("name", sorted(PUBLIC - NOT_EXPLAINED))
def test_every_public_class_and_function_has_a_docstring(name: str) -> None:
    thing = getattr(inmem, name)
    assert inspect.isclass(thing) or callable(thing)
    assert is_explained(thing), name
    if inspect.isclass(thing):
        missing = sorted({where for where, value in members(thing) if not is_explained(value)})
        assert not missing, missing


def test_the_judge_of_docstrings_sees_generated_ones() -> None:
    from dataclasses import dataclass
    from typing import NamedTuple

    @dataclass
    class Generated:
        field: int

    class Tuple(NamedTuple):
        field: int

    class Bare:
        pass

    class Explained:
        """What it is."""

    assert [is_explained(cls) for cls in (Generated, Tuple, Bare, Explained)] == [False, False, False, True]


@pytest.mark.parametrize("module", ["inmem", "inmem.exchange", "inmem.aio"])
def test_a_name_that_a_module_does_not_have(module: str) -> None:
    """In a program of its own: what was imported before must not help."""
    program = f"import {module} as module; assert not hasattr(module, 'nothing'); module.nothing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == f"AttributeError: module '{module}' has no attribute 'nothing'"
