"""The direction of imports: a module imports from earlier layers, and from its own.

A few rules are narrower than the order. They keep promises, above all that
only the writer writes. Every import statement counts, in a function and under
TYPE_CHECKING too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

import pytest
from architecture.modules import COMPUTED, imports_of, real_modules

# From the ground up. A name is a module, or a package with all of it that has no layer of its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "version"),
    ("record", "changes", "keys", "values", "writeset", "wire", "jsonvalues"),
    ("host",),
    ("engines.base",),
    ("model",),
    ("primitives.server",),
    ("storage",),
    ("commit",),
    ("writer",),
    ("client",),
    ("primitives",),
    ("reading",),
    ("engines",),
    ("maintenance",),
    ("scopes", "database"),
    ("exchange",),
    ("cli",),
    ("exports",),
    ("__init__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# From a part of the package: the parts that it must not import, although the order would allow it.
NEVER: dict[str, frozenset[str]] = {
    "storage": frozenset({"model", "wire"}),  # knows bytes: no type tags, no messages
    "client": frozenset({"writer"}),
    "engines": frozenset({"commit", "writer"}),
    "primitives": frozenset({"commit", "writer"}),
    "scopes": frozenset({"commit", "writer"}),
    "database": frozenset({"commit", "writer"}),
    "reading": frozenset({"commit", "writer", "client", "primitives"}),  # knows what is stored, and nobody
    "exchange": frozenset({"commit", "writer"}),  # public, as the facades are: it asks the writer as they do
    "writer": frozenset({"client", "primitives", "scopes", "database"}),  # knows procedures, not facades
}
# These read, and reach nothing of storage that could write.
SNAPSHOT_ONLY = frozenset({"client", "engines", "primitives", "scopes", "database"})
SNAPSHOT = "inmem.storage.snapshot"
# Of one part, the modules that another part may import: nothing else of it.
ONLY: dict[tuple[str, str], frozenset[str]] = {
    # A transaction runs the writer's procedures itself. Deciding and publishing stay the writer's.
    ("client", "commit"): frozenset({
        "inmem.commit.footprint", "inmem.commit.procedures", "inmem.commit.workspace",
    }),
    ("primitives", "client"): frozenset({"inmem.client.retry"}),  # facades know engines by their protocols
    ("scopes", "client"): frozenset({"inmem.client.retry"}),
    ("database", "client"): frozenset({"inmem.client.retry"}),
}

# Packages from elsewhere, and the only parts that may import them. None: all parts.
FOREIGN: dict[str, frozenset[str] | None] = {
    "lmdb": frozenset({"storage"}),
    "zmq": frozenset({"writer"}),  # clients speak its protocol to the writer's socket themselves
    "msgpack": None,
    "sortedcontainers": None,
    "xxhash": None,
    "typer": frozenset({"cli"}),  # of the extra `cli`: the core must not need them
    "rich": frozenset({"cli"}),
}
# Loading any of these runs what a file or a peer says.
CODE_IN_DATA = frozenset({"pickle", "_pickle", "cPickle", "shelve", "marshal", "dill", "cloudpickle"})
# What commit is given from outside, so that it can be tested exhaustively: messages, time and chance.
PASSED_IN = frozenset({"zmq", "socket", "time", "random", "os", "datetime", "secrets", "uuid"})


def part_of(module: str) -> str:
    """`inmem.storage.wal` is of the part `storage`, `inmem.__init__` of `__init__`.

    What the server table describes is a part of its own below the facades: the writer loads it.
    """
    part, _, name = module.removeprefix("inmem.").partition(".")
    if part == "engines" and name == "base":
        return "engines.base"
    is_server = name in ("server", "record_type", "line_fields") or name.endswith("_records")
    return "primitives.server" if part == "primitives" and is_server else part


def violations(modules: Mapping[str, str]) -> list[str]:
    """What is wrong with modules, given as name (packages as `x.__init__`) and source."""
    known = frozenset(modules)
    return [
        f"{module}:{line} imports {target}: {problem}"
        for module, source in sorted(modules.items())
        for line, target in (
            [(0, "")] if part_of(module) not in RANK else imports_of(module, source, known)
        )
        for problem in problems(module, target)
    ]


def problems(module: str, target: str) -> Iterator[str]:
    part = part_of(module)
    if part not in RANK:
        yield f"{part} is in no layer"
        return
    if target in COMPUTED:
        yield "a name that is computed cannot be checked"
        return
    if not target.startswith("inmem."):
        yield from foreign_problems(part, target.split(".")[0])
        return
    other = part_of(target)
    if other not in RANK:
        yield f"{other} is in no layer"
        return
    if RANK[other] > RANK[part]:
        yield f"{other} is a later layer than {part}"
    if other in NEVER.get(part, ()):
        yield f"{part} must not know {other}"
    if part in SNAPSHOT_ONLY and other == "storage" and target != SNAPSHOT:
        yield f"{part} may reach {SNAPSHOT} only"
    if target not in ONLY.get((part, other), (target,)):
        yield f"{part} may not reach this of {other}"
    if part == other == "primitives" and module != "inmem.primitives.__init__":
        name = target.split(".")[2]
        if name == "__init__" or not name.startswith("_"):
            yield "primitives do not know each other"


def foreign_problems(part: str, top: str) -> Iterator[str]:
    if top in CODE_IN_DATA:
        yield "data must never be able to run"
    if part == "commit" and top in PASSED_IN:
        yield "commit is given sockets, time and chance from outside"
    if top in FOREIGN:
        allowed = FOREIGN[top]
        if allowed is not None and part not in allowed:
            yield f"{top} belongs to {' and '.join(sorted(allowed))}"
    elif top not in sys.stdlib_module_names:
        yield f"{top} is no dependency of the core"


def test_the_package_keeps_the_order() -> None:
    modules = real_modules()
    assert {"inmem.errors", "inmem.storage.__init__"} <= set(modules)
    assert not violations(modules), "\n" + "\n".join(violations(modules))


# The checker itself. The bystanders make `from package import module` resolvable.
BYSTANDERS = dict.fromkeys(
    [
        "inmem.__init__",
        "inmem.host.__init__",
        "inmem.host.clock",
        "inmem.errors",
        "inmem.keys",
        "inmem.wire",
        "inmem.model.__init__",
        "inmem.model.kv",
        "inmem.storage.__init__",
        "inmem.storage.snapshot",
        "inmem.storage.store",
        "inmem.storage.wal",
        "inmem.commit.__init__",
        "inmem.commit.committer",
        "inmem.commit.outcomes",
        "inmem.commit.workspace",
        "inmem.engines.__init__",
        "inmem.engines.base",
        "inmem.engines.local",
        "inmem.writer.__init__",
        "inmem.writer.loop",
        "inmem.client.__init__",
        "inmem.client.retry",
        "inmem.client.session",
        "inmem.client.transaction",
        "inmem.primitives.__init__",
        "inmem.primitives._base",
        "inmem.primitives.kv",
        "inmem.database",
    ],
    "",
)


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        # against the order
        ("inmem.errors", "from inmem.keys import Key", "later layer"),
        ("inmem.errors", "import inmem.keys", "later layer"),
        ("inmem.errors", "from inmem import keys", "later layer"),
        ("inmem.errors", "from . import keys", "later layer"),
        ("inmem.errors", "from .keys import Key", "later layer"),
        ("inmem.errors", "from .storage.snapshot import Snapshot", "later layer"),
        ("inmem.errors", "def f():\n    import inmem.keys as k", "later layer"),
        ("inmem.errors", "if TYPE_CHECKING:\n    from inmem.keys import Key", "later layer"),
        ("inmem.errors", "try:\n    pass\nexcept E:\n    from inmem.keys import Key", "later layer"),
        ("inmem.model.kv", "from ..storage import snapshot", "later layer"),
        ("inmem.model.__init__", "from ..storage import snapshot", "later layer"),
        ("inmem.storage.wal", "from inmem.commit import committer", "later layer"),
        ("inmem.commit.committer", "from inmem.writer.loop import Writer", "later layer"),
        ("inmem.keys", "import inmem", "later layer"),
        ("inmem.database", "from inmem import open", "later layer"),
        ("inmem.cli.main", "from inmem import *", "later layer"),
        # one writer
        ("inmem.client.session", "from inmem.storage.store import Store", "snapshot only"),
        ("inmem.client.session", "from inmem.storage import store", "snapshot only"),
        ("inmem.client.session", "from inmem.storage import snapshot, wal", "snapshot only"),
        ("inmem.client.session", "import inmem.storage", "snapshot only"),
        ("inmem.primitives.kv", "from ..storage.wal import Wal", "snapshot only"),
        ("inmem.database", "from inmem.storage import Table", "snapshot only"),
        ("inmem.client.session", "from inmem.commit import committer", "may not reach this"),
        ("inmem.client.session", "from inmem.commit.outcomes import Sessions", "may not reach this"),
        ("inmem.primitives.kv", "from inmem.client.transaction import Transaction", "may not reach this"),
        ("inmem.primitives.kv", "from inmem.engines.local import LocalEngine", "later layer"),
        ("inmem.client.session", "from inmem.engines.local import LocalEngine", "later layer"),
        ("inmem.engines.base", "from inmem.client.session import Session", "later layer"),
        ("inmem.primitives.kv", "import inmem.writer.loop", "must not know writer"),
        ("inmem.database", "from .writer import loop", "must not know writer"),
        ("inmem.writer.loop", "from inmem.client import session", "must not know client"),
        ("inmem.writer.loop", "from inmem.primitives import kv", "must not know primitives"),
        ("inmem.writer.loop", "from inmem.database import Database", "must not know database"),
        # who knows what
        ("inmem.storage.store", "from inmem.model import kv", "must not know model"),
        ("inmem.storage.store", "from inmem.wire import HELLO", "must not know wire"),
        ("inmem.primitives.event_log", "from inmem.primitives.kv import KVStore", "know each other"),
        ("inmem.primitives.event_log", "from . import kv", "know each other"),
        ("inmem.primitives.event_log", "from inmem.primitives import KVStore", "know each other"),
        ("inmem.primitives._base", "from .kv import KVStore", "know each other"),
        # packages from elsewhere
        ("inmem.client.session", "import lmdb", "belongs to storage"),
        ("inmem.commit.committer", "from lmdb import Error", "belongs to storage"),
        ("inmem.database", "import zmq", "belongs to writer"),
        ("inmem.storage.wal", "import zmq.asyncio", "belongs to writer"),
        ("inmem.commit.committer", "import zmq", "from outside"),
        ("inmem.commit.committer", "import socket", "from outside"),
        ("inmem.commit.committer", "from time import monotonic", "from outside"),
        ("inmem.commit.committer", "import random", "from outside"),
        ("inmem.commit.committer", "import os.path", "from outside"),
        ("inmem.database", "import rich", "belongs to cli"),
        ("inmem.database", "import requests", "no dependency"),
        ("inmem.keys", "import pickle", "able to run"),
        ("inmem.cli.main", "from marshal import loads", "able to run"),
        ("inmem.storage.wal", "def f():\n    import shelve", "able to run"),
        ("inmem.maintenance.check", "import dill", "able to run"),
        # ways around the checker
        ("inmem.keys", "import importlib\nimportlib.import_module(name)", "computed"),
        ("inmem.keys", "__import__('pickle')", "computed"),
        ("inmem.helpers", "", "in no layer"),
        ("inmem.keys", "import inmem.helpers", "in no layer"),
    ],
)
def test_the_checker_sees(module: str, source: str, problem: str) -> None:
    found = violations({**BYSTANDERS, module: source})
    assert found and all(text.startswith(module) for text in found)
    assert any(problem in text for text in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("inmem.keys", "from inmem.errors import InmemError"),
        ("inmem.keys", "from inmem import errors"),
        ("inmem.keys", "from . import errors\nfrom .errors import InmemError"),
        ("inmem.keys", "import inmem.errors"),
        ("inmem.writeset", "from inmem.keys import Key\nimport msgpack, xxhash"),
        ("inmem.model.kv", "from ..keys import Key\nfrom sortedcontainers import SortedDict"),
        ("inmem.storage.store", "import lmdb\nfrom .snapshot import Snapshot\nfrom inmem.storage import wal"),
        ("inmem.commit.committer", "from inmem.storage import store\nfrom inmem.model.kv import Entry"),
        ("inmem.commit.committer", "from inmem.host.clock import StoreClock"),
        ("inmem.writer.loop", "import zmq, os, time\nfrom inmem.commit.committer import Committer"),
        ("inmem.client.session", "import socket\nfrom inmem.storage.snapshot import Snapshot"),
        ("inmem.client.session", "from inmem.storage import snapshot"),
        ("inmem.primitives.kv", "from inmem.primitives._base import Facade\nfrom ..client import retry"),
        ("inmem.primitives.kv", "from inmem.engines.base import View"),
        ("inmem.client.session", "from inmem.engines.base import Pending"),
        ("inmem.client.transaction", "from inmem.commit.workspace import Workspace"),
        ("inmem.engines.local", "from inmem.client.session import Session\nfrom .base import Engine"),
        ("inmem.primitives.kv", "from ._base import Facade"),
        ("inmem.primitives.__init__", "from inmem.primitives.kv import KVStore"),
        ("inmem.maintenance.check", "from inmem.storage.wal import scan"),
        ("inmem.database", "from inmem.primitives import KVStore\nfrom inmem.storage.snapshot import Image"),
        ("inmem.cli.main", "import typer\nfrom rich.table import Table\nfrom inmem.database import Database"),
        ("inmem.__init__", "from inmem.database import Database\nfrom inmem.keys import Key"),
        ("inmem.__init__", "from . import keys"),
    ],
)
def test_the_checker_allows(module: str, source: str) -> None:
    assert violations({**BYSTANDERS, module: source}) == []
