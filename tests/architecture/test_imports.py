"""The direction of imports: a module imports from earlier layers, and from its own.

A few rules are narrower than the order. They keep promises, above all that
only the writer writes. Every import statement counts, in a function and under
TYPE_CHECKING too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping

import pytest
from architecture.modules import COMPUTED, imports_of, real_modules

# From the ground up. A name is a module, or a package with all of it that has no layer of its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "config", "version", "conversions", "reports"),
    ("record", "changes", "keys", "values", "writeset", "wire", "jsonvalues", "callables", "pending",
     "stepping"),
    ("host",),
    ("engines.base",),
    ("commit",),
    ("primitives",),
    ("storage",),
    ("writer",),
    ("client",),
    ("primitives.facades",),
    ("reading",),
    ("maintenance",),
    ("engines.postgres",),
    ("engines",),
    ("scopes", "database", "transactional"),
    ("aio",),
    ("steps",),
    ("exchange",),
    ("cli", "web"),
    ("exports",),
    ("__init__",),
    ("adapters",),
    ("cli.app", "demo"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# From a part of the package: the parts that it must not import, although the order would allow it.
NEVER: dict[str, frozenset[str]] = {
    "storage": frozenset({"commit", "primitives", "wire"}),  # knows bytes: no type tags, no messages
    "client": frozenset({"writer"}),
    "engines": frozenset({"commit", "writer"}),
    "engines.postgres": frozenset({"writer", "storage"}),  # it decides commits itself
    "primitives.facades": frozenset({"commit", "writer"}),
    "scopes": frozenset({"commit", "writer"}),
    "database": frozenset({"commit", "writer"}),
    # It knows what is stored, and nobody.
    "reading": frozenset({"commit", "writer", "client", "primitives.facades"}),
    "exchange": frozenset({"commit", "writer"}),  # public, as the facades are: it asks the writer as they do
    # It knows procedures, and no facades.
    "writer": frozenset({"client", "primitives.facades", "scopes", "database"}),
}
# These read, and reach nothing of storage that could write.
SNAPSHOT_ONLY = frozenset({"client", "engines", "primitives.facades", "scopes", "database"})
SNAPSHOT = "inmem.storage.snapshot"
# Of one part, the modules that another part may import: nothing else of it.
ONLY: dict[tuple[str, str], frozenset[str]] = {
    # A transaction runs the writer's procedures itself. Deciding and publishing stay the writer's.
    ("client", "commit"): frozenset({
        "inmem.commit.footprint", "inmem.commit.workspace",
        "inmem.commit.validation",  # who waits asks whether what he read would be refused
    }),
    ("client", "primitives"): frozenset({"inmem.primitives.server", "inmem.primitives.import_mark"}),
    # Facades know engines by their protocols.
    ("primitives.facades", "client"): frozenset({"inmem.client.retry"}),
    ("scopes", "client"): frozenset({"inmem.client.retry", "inmem.client.waiting"}),
    ("database", "client"): frozenset({"inmem.client.retry"}),
}

# Packages from elsewhere, and the only parts that may import them. None: all parts.
FOREIGN: dict[str, frozenset[str] | None] = {
    "lmdb": frozenset({"storage"}),
    "zmq": frozenset({"writer"}),  # clients speak its protocol to the writer's socket themselves
    "msgpack": None,
    "sortedcontainers": None,
    "xxhash": None,
    "psycopg": frozenset({"engines.postgres"}),  # of the extra `postgres`
    "greenlet": frozenset({"engines.postgres"}),
    "typer": frozenset({"cli", "cli.app"}),  # of the extra `cli`: the core must not need them
    "rich": frozenset({"cli", "cli.app", "demo"}),
    "starlette": frozenset({"web", "adapters"}),  # of the extras `ui` and `mcp`
    "uvicorn": frozenset({"web", "adapters"}),
    "langgraph": frozenset({"adapters"}),  # of an extra for each
    "langchain_core": frozenset({"adapters"}),
    "agents": frozenset({"adapters"}),
    "key_value": frozenset({"adapters"}),
    "dogpile": frozenset({"adapters"}),
    "pytest": frozenset({"adapters"}),
    "opentelemetry": frozenset({"adapters"}),
    "mcp": frozenset({"adapters"}),
    "mcp_types": frozenset({"adapters"}),
    "pydantic": frozenset({"adapters"}),
    "huey": frozenset({"adapters"}),
    "gevent": frozenset({"adapters"}),  # for its greenlets, where a program has it
    "numpy": frozenset({"adapters"}),  # of none: used where it is installed
}
# Loading any of these runs what a file or a peer says.
CODE_IN_DATA = frozenset({"pickle", "_pickle", "cPickle", "shelve", "marshal", "dill", "cloudpickle"})
# What commit is given from outside, so that it can be tested exhaustively: messages, time and chance.
PASSED_IN = frozenset({"zmq", "socket", "time", "random", "os", "datetime", "secrets", "uuid"})
# So are procedures, and these of the writer.
GIVEN = frozenset({"inmem.writer.committer", "inmem.writer.outcomes", "inmem.writer.turns"})

# In `primitives`: what is of no single primitive lies beside their folders, and knows none of them. Only
# these do, by what each folder has for them.
COLLECTORS = {
    "inmem.primitives.server": frozenset({"procedures", "records"}),
    "inmem.primitives.facades": frozenset({"facade", "reads"}),
}
# The table is filled by `server`. Others import it from there, or it may be empty.
TABLE = "inmem.primitives.record_table"
KNOW_TABLE = frozenset(
    {"inmem.primitives.server", "inmem.primitives.runs.procedures", "inmem.primitives.index_repair"}
)
FACADE_MODULES = frozenset({
    "facade", "facades", "putting", "reads", "byrun", "_common", "holding", "_paging", "_waiting",
    "calls", "held", "owners", "pruning",  # what facades are made of
})
KNOWN_TO_FACADES = (
    "facade", "held", "job", "putting", "reads", "rules", "shown", "versioned",
    "watching", "calls", "owners", "pruning",
)
# One primitive that knows another: the first release gave `import.begin` the mark of a run's deleted cells.
# What owns a run is a lease: runs give it to their users, and leave what it is to its own facade.
NEIGHBOURS = frozenset({
    ("inmem.primitives.runs.import_procedures", "inmem.primitives.cells.rules"),
    ("inmem.primitives.runs.facade", "inmem.primitives.leases.shown"),
    ("inmem.primitives.runs.owners", "inmem.primitives.leases.shown"),
})


# What puts the commands together, and the commands of what uses the public API.
COMMANDS = frozenset({
    "inmem.cli.__init__", "inmem.cli.app", "inmem.cli.demo", "inmem.cli.mcp", "inmem.cli.otel",
})


def part_of(module: str) -> str:
    """`inmem.storage.wal` is of the part `storage`, `inmem.__init__` of `__init__`.

    Facades are a part of their own, above the client: the writer does not load them.
    """
    part, _, name = module.removeprefix("inmem.").partition(".")
    if part == "engines" and name.partition(".")[0] in ("base", "postgres"):
        return f"engines.{name.partition('.')[0]}"
    if module in COMMANDS:
        return "cli.app"
    is_facade = part == "primitives" and name.rpartition(".")[2] in FACADE_MODULES
    return "primitives.facades" if is_facade else part


def primitive_of(module: str) -> str:
    """The folder of a primitive that a module is in, empty for what is of no single one."""
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["primitives"] and len(parts) > 3 else ""


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
        yield from foreign_problems(module, target.split(".")[0])
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
    if target == TABLE and module not in KNOW_TABLE:
        yield "the table is imported from server, which fills it"
    if part.startswith("primitives"):
        yield from problems_of_a_primitive(module, target)


def problems_of_a_primitive(module: str, target: str) -> Iterator[str]:
    own, other, name = primitive_of(module), primitive_of(target), target.rpartition(".")[2]
    if module in COLLECTORS:
        if other and name not in COLLECTORS[module]:
            yield f"of a primitive only {' and '.join(sorted(COLLECTORS[module]))} belong here"
    elif target in COLLECTORS:
        yield "primitives do not know their table"
    elif other and own != other and (module, target) not in NEIGHBOURS:
        yield "primitives do not know each other" if own else "this is of no single primitive"
    if part_of(module) == "primitives.facades" and other and name not in KNOWN_TO_FACADES:
        yield "a facade knows the rules, and asks the writer for the rest"


def foreign_problems(module: str, top: str) -> Iterator[str]:
    part = part_of(module)
    if top in CODE_IN_DATA:
        yield "data must never be able to run"
    if (part in ("commit", "primitives") or module in GIVEN) and top in PASSED_IN:
        yield f"{part} is given sockets, time and chance from outside"
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


def test_the_writer_loads_no_facade() -> None:
    """Nor does a helper. The imports of modules that are loaded in turn count here too."""
    helpers = [f"inmem.maintenance.{name}" for name in ("backup", "check", "checkpoint", "salvage")]
    for module in ("inmem.writer.__main__", "inmem.primitives.server", *helpers):
        code = f"import sys, {module}; print(*sys.modules)"
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        loaded = [name for name in ran.stdout.split() if name.startswith("inmem.")]
        needed = "inmem.storage.checkpoint" if module in helpers else "inmem.primitives.kv.procedures"
        assert needed in loaded
        assert [name for name in loaded if part_of(name) == "primitives.facades"] == []


# The checker itself. The bystanders make `from package import module` resolvable.
BYSTANDERS = dict.fromkeys(
    [
        "inmem.__init__",
        "inmem.host.__init__",
        "inmem.host.clock",
        "inmem.errors",
        "inmem.keys",
        "inmem.wire",
        "inmem.storage.__init__",
        "inmem.storage.snapshot",
        "inmem.storage.store",
        "inmem.storage.wal",
        "inmem.commit.__init__",
        "inmem.commit.decide",
        "inmem.commit.workspace",
        "inmem.engines.__init__",
        "inmem.engines.base",
        "inmem.engines.local",
        "inmem.writer.__init__",
        "inmem.writer.committer",
        "inmem.writer.loop",
        "inmem.writer.outcomes",
        "inmem.client.__init__",
        "inmem.client.retry",
        "inmem.client.session",
        "inmem.client.transaction",
        "inmem.primitives.__init__",
        "inmem.primitives._common",
        "inmem.primitives.counts",
        "inmem.primitives.facades",
        "inmem.primitives.record_table",
        "inmem.primitives.server",
        "inmem.primitives.cells.__init__",
        "inmem.primitives.cells.rules",
        "inmem.primitives.events.__init__",
        "inmem.primitives.events.facade",
        "inmem.primitives.events.rules",
        "inmem.primitives.kv.__init__",
        "inmem.primitives.kv.facade",
        "inmem.primitives.kv.procedures",
        "inmem.primitives.kv.rules",
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
        ("inmem.primitives.kv.rules", "from ...storage import snapshot", "later layer"),
        ("inmem.primitives.kv.__init__", "from ...storage import snapshot", "later layer"),
        ("inmem.storage.wal", "from inmem.writer import committer", "later layer"),
        ("inmem.commit.decide", "from inmem.primitives.kv import rules", "later layer"),
        ("inmem.commit.decide", "from inmem.primitives.server import PROCEDURES", "later layer"),
        ("inmem.primitives.kv.procedures", "from inmem.primitives.kv.facade import KVStore", "later layer"),
        ("inmem.commit.decide", "from inmem.writer.loop import Writer", "later layer"),
        ("inmem.keys", "import inmem", "later layer"),
        ("inmem.database", "from inmem import open", "later layer"),
        ("inmem.cli.main", "from inmem import *", "later layer"),
        # one writer
        ("inmem.client.session", "from inmem.storage.store import Store", "snapshot only"),
        ("inmem.client.session", "from inmem.storage import store", "snapshot only"),
        ("inmem.client.session", "from inmem.storage import snapshot, wal", "snapshot only"),
        ("inmem.client.session", "import inmem.storage", "snapshot only"),
        ("inmem.primitives.kv.facade", "from ...storage.wal import Wal", "snapshot only"),
        ("inmem.database", "from inmem.storage import Table", "snapshot only"),
        ("inmem.client.session", "from inmem.commit import decide", "may not reach this"),
        ("inmem.client.session", "from inmem.writer.outcomes import Sessions", "must not know writer"),
        ("inmem.client.session", "from inmem.primitives.kv import procedures", "may not reach this"),
        (
            "inmem.primitives.kv.facade",
            "from inmem.client.transaction import Transaction",
            "may not reach this",
        ),
        ("inmem.primitives.kv.facade", "from inmem.engines.local import LocalEngine", "later layer"),
        ("inmem.client.session", "from inmem.engines.local import LocalEngine", "later layer"),
        ("inmem.engines.base", "from inmem.client.session import Session", "later layer"),
        ("inmem.primitives.kv.facade", "import inmem.writer.loop", "must not know writer"),
        ("inmem.database", "from .writer import loop", "must not know writer"),
        ("inmem.writer.loop", "from inmem.client import session", "must not know client"),
        ("inmem.writer.loop", "from inmem.primitives.kv import facade", "must not know primitives.facades"),
        ("inmem.writer.loop", "from inmem.primitives import facades", "must not know primitives.facades"),
        ("inmem.writer.loop", "from inmem.database import Database", "must not know database"),
        # who knows what
        ("inmem.storage.store", "from inmem.primitives.kv import rules", "must not know primitives"),
        ("inmem.storage.store", "from inmem.wire import HELLO", "must not know wire"),
        (
            "inmem.primitives.events.facade",
            "from inmem.primitives.kv.facade import KVStore",
            "know each other",
        ),
        ("inmem.primitives.events.facade", "from ..kv import facade", "know each other"),
        ("inmem.primitives.events.procedures", "from inmem.primitives.kv import rules", "know each other"),
        (
            "inmem.primitives.runs.import_procedures",
            "from inmem.primitives.kv import rules",
            "know each other",
        ),
        ("inmem.primitives.runs.procedures", "from inmem.primitives.cells import rules", "know each other"),
        ("inmem.primitives._common", "from .kv.facade import KVStore", "of no single primitive"),
        ("inmem.primitives.counts", "from .kv import rules", "of no single primitive"),
        ("inmem.primitives.kv.procedures", "from inmem.primitives import server", "do not know their table"),
        ("inmem.primitives.server", "from inmem.primitives.kv import rules", "only procedures and records"),
        ("inmem.primitives.facades", "from inmem.primitives.kv import rules", "only facade"),
        ("inmem.primitives.kv.facade", "from inmem.primitives.facades import ScopeFacades", "their table"),
        ("inmem.primitives.server", "from inmem.primitives.kv import facade", "later layer"),
        ("inmem.primitives.kv.facade", "from inmem.primitives.kv import procedures", "asks the writer"),
        ("inmem.primitives.kv.procedures", "from inmem.primitives.record_table import add", "which fills it"),
        ("inmem.maintenance.check", "from inmem.primitives import record_table", "which fills it"),
        # packages from elsewhere
        ("inmem.client.session", "import lmdb", "belongs to storage"),
        ("inmem.writer.committer", "from lmdb import Error", "belongs to storage"),
        ("inmem.database", "import zmq", "belongs to writer"),
        ("inmem.storage.wal", "import zmq.asyncio", "belongs to writer"),
        ("inmem.commit.decide", "import zmq", "from outside"),
        ("inmem.primitives.kv.procedures", "import socket", "from outside"),
        ("inmem.writer.committer", "from time import monotonic", "from outside"),
        ("inmem.writer.outcomes", "import random", "from outside"),
        ("inmem.commit.decide", "import os.path", "from outside"),
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
        ("inmem.primitives.kv.rules", "from ...keys import Key\nfrom sortedcontainers import SortedDict"),
        ("inmem.storage.store", "import lmdb\nfrom .snapshot import Snapshot\nfrom inmem.storage import wal"),
        ("inmem.writer.committer", "from inmem.storage import store\nfrom inmem.commit.decide import decide"),
        ("inmem.primitives.kv.procedures", "from inmem.primitives.kv import rules\nfrom .. import counts"),
        ("inmem.primitives.kv.procedures", "from inmem.commit.workspace import Workspace"),
        ("inmem.primitives.server", "from inmem.primitives.kv import procedures"),
        ("inmem.primitives.facades", "from inmem.primitives.kv.facade import KVStore"),
        ("inmem.primitives.runs.procedures", "from inmem.primitives import record_table"),
        ("inmem.primitives.runs.import_procedures", "from inmem.primitives.cells import rules as cell"),
        (
            "inmem.writer.loop",
            "from inmem.primitives.server import PROCEDURES\nfrom inmem.primitives.events import rules",
        ),
        ("inmem.writer.committer", "from inmem.host.clock import StoreClock"),
        ("inmem.writer.loop", "import zmq, os, time\nfrom inmem.writer.committer import Committer"),
        ("inmem.client.session", "import socket\nfrom inmem.storage.snapshot import Snapshot"),
        ("inmem.client.session", "from inmem.storage import snapshot"),
        (
            "inmem.primitives.kv.facade",
            "from inmem.primitives._common import check_limit\nfrom ...client import retry",
        ),
        ("inmem.primitives.kv.facade", "from inmem.engines.base import View\nfrom .rules import Number"),
        ("inmem.client.session", "from inmem.engines.base import Pending"),
        ("inmem.client.transaction", "from inmem.commit.workspace import Workspace"),
        ("inmem.client.transaction", "from inmem.primitives.server import PROCEDURES"),
        ("inmem.engines.local", "from inmem.client.session import Session\nfrom .base import Engine"),
        ("inmem.primitives.kv.facade", "from .._common import check_limit"),
        ("inmem.database", "from inmem.primitives.kv.facade import KVStore"),
        ("inmem.maintenance.check", "from inmem.storage.wal import scan"),
        ("inmem.database", "from inmem.storage.snapshot import Image"),
        ("inmem.cli.main", "import typer\nfrom rich.table import Table\nfrom inmem.database import Database"),
        ("inmem.__init__", "from inmem.database import Database\nfrom inmem.keys import Key"),
        ("inmem.__init__", "from . import keys"),
    ],
)
def test_the_checker_allows(module: str, source: str) -> None:
    assert violations({**BYSTANDERS, module: source}) == []
