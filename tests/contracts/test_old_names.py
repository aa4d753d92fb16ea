"""Names that methods had before: they work for a release, and say in the caller's own line what to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forms import new_run

import inmem


@pytest.mark.parametrize("form", ["facade", "scope", "transaction", "snapshot"])
@pytest.mark.parametrize(("old", "new", "given"), [
    ("len", "count", {}), ("read_by_type", "query_by_type", {"event_type": "t", "limit": 1, "reverse": True}),
])
def test_old_names_of_the_event_log(
    shared_db: inmem.Database, form: str, old: str, new: str, given: dict[str, Any]
) -> None:
    scope = shared_db.run(new_run())
    scope.events.append_many([("t", 1), ("t", 2)])
    holder: Any = {"facade": lambda: shared_db, "scope": lambda: scope, "transaction": scope.transaction,
                   "snapshot": scope.snapshot}[form]()
    arguments = {"run_id": scope.run_id} | given if form == "facade" else given
    with pytest.warns(DeprecationWarning, match=f"^{old} is deprecated: use {new}$") as warned:
        found = getattr(holder.events, old)(**arguments)
    assert found == getattr(holder.events, new)(**arguments)
    assert [Path(each.filename) for each in warned] == [Path(__file__)]
    if form in ("transaction", "snapshot"):
        (holder.abort if form == "transaction" else holder.close)()
