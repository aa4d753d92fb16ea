"""Procedures of cells: each gives a version that its name never had before in the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from inmem.commit.arguments import check_name, check_prefix, check_time, check_type
from inmem.commit.footprint import Footprint, exactly
from inmem.commit.workspace import Workspace
from inmem.errors import CellExistsError, InvalidInputError
from inmem.keys import MAX_NAME_BYTES
from inmem.primitives.cells import rules as cell
from inmem.primitives.importing import importing_records, parts, past


class _Cell:
    """A cell and its run's mark, as they are now."""

    def __init__(self, workspace: Workspace, prefix: object, name: object) -> None:
        run = check_prefix(prefix)
        self.name = check_name(name, MAX_NAME_BYTES)
        self.key = cell.cell_key(run, self.name.encode())
        self.mark_key = cell.mark_key(run)
        self._workspace = workspace
        workspace.check_open(self.key)
        self.payload = workspace.get(self.key)

    def mark(self) -> bytes | None:
        return self._workspace.get(self.mark_key)

    def write(self, version: int, value: object) -> int:
        check_type("value", value, bytes)
        assert isinstance(value, bytes)
        self._workspace.put(self.key, cell.pack(version, value))
        return version


def init(workspace: Workspace, prefix: bytes, name: bytes, value: bytes) -> int:
    """Create a cell; its version."""
    found = _Cell(workspace, prefix, name)
    return found.write(cell.initialized(found.name, found.payload, found.mark()), value)


def ensure(workspace: Workspace, prefix: bytes, name: bytes, value: bytes) -> int:
    """Create a cell if there is none; its version."""
    payload = _Cell(workspace, prefix, name).payload
    return init(workspace, prefix, name, value) if payload is None else cell.version_in(payload)


def assign(workspace: Workspace, prefix: bytes, name: bytes, value: bytes) -> int:
    """Create or overwrite a cell; its version."""
    found = _Cell(workspace, prefix, name)
    return found.write(cell.overwritten(found.payload, found.mark()), value)


def cas(workspace: Workspace, prefix: bytes, name: bytes, expected: int, value: bytes) -> int:
    """Change a cell if it has the expected version; its new version."""
    check_type("expected_version", expected, int)
    found = _Cell(workspace, prefix, name)
    return found.write(cell.exchanged(found.name, found.payload, expected), value)


def delete(workspace: Workspace, prefix: bytes, name: bytes) -> bool:
    """Remove a cell and remember its version; whether there was one."""
    found = _Cell(workspace, prefix, name)
    if found.payload is None:
        return False
    version = max(cell.version_in(found.payload), cell.version_in(found.mark()))
    workspace.put(found.mark_key, version.to_bytes(8, "big"))
    workspace.delete(found.key)
    return True


def import_cells(workspace: Workspace, prefix: bytes, token: bytes, items: list[Any]) -> None:
    """Cells: `[name, version, timestamp, value]`."""
    with importing_records(workspace, prefix, token, "cells", items):
        for item in items:
            name, version, timestamp, value = parts(item, 4)
            text = check_name(name, MAX_NAME_BYTES)
            check_type("value", value, bytes)
            if check_time(version, "version") < 1:
                raise InvalidInputError(f"cell {text!r} has version 0: they begin at 1", argument="version")
            key = cell.cell_key(prefix, name)
            if workspace.record(key) is not None:
                raise CellExistsError(f"cell {text!r} comes twice", name=text)
            workspace.put(key, cell.pack(version, value), timestamp=past(timestamp))


def assign_footprint(prefix: bytes, name: bytes, *_: Any) -> Footprint:
    """Of `init`, `ensure` and `set`: the cell, whose first version depends on the run's mark."""
    key = exactly(cell.cell_key(prefix, name))
    return Footprint((key, exactly(cell.mark_key(prefix))), (key,))


def cas_footprint(prefix: bytes, name: bytes, *_: Any) -> Footprint:
    """Of `cas`: the cell."""
    return Footprint.of(exactly(cell.cell_key(prefix, name)))


def delete_footprint(prefix: bytes, name: bytes) -> Footprint:
    """Of `delete`: the cell and the run's mark."""
    return Footprint.of(exactly(cell.cell_key(prefix, name)), exactly(cell.mark_key(prefix)))


PROCEDURES: Final[Mapping[str, Callable[..., Any]]] = {
    "cell.cas": cas,
    "cell.delete": delete,
    "cell.ensure": ensure,
    "cell.init": init,
    "cell.set": assign,
    "import.cells": import_cells,
}

FOOTPRINTS: Final[Mapping[str, Callable[..., Footprint]]] = {
    "cell.cas": cas_footprint,
    "cell.delete": delete_footprint,
    "cell.ensure": assign_footprint,
    "cell.init": assign_footprint,
    "cell.set": assign_footprint,
}
